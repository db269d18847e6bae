import csv
import warnings

import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch.utils.data import DataLoader

from datamodules import ImageFolderDataModule
from datamodules.common.image_io import ImageFileDataset
from datamodules.common.splits import stratified_split
from lit_models import CNN
from lit_models.cli import main as cli

COLORS = {"cat": (200, 30, 30), "dog": (30, 30, 200)}


def draw(path, color, size=(60, 50), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)


def loaded(root, stage="fit", **options):
    data = ImageFolderDataModule(str(root), image_size=8, **options)
    data.setup(stage)
    return data


def counts(dataset):
    return dataset.labels.bincount(minlength=2).tolist()


def test_split_is_stratified_and_seeded(pets):
    data = loaded(pets, val_fraction=0.2, test_fraction=0.1)
    data.setup("test")
    assert (data.class_names, data.num_classes) == (["cat", "dog"], 2)
    assert [counts(part) for part in (data.train_set, data.val_set, data.test_set)] == [[14, 7], [4, 2], [2, 1]]
    images = torch.cat([part.images for part in (data.train_set, data.val_set, data.test_set)])
    assert len(images.flatten(1).unique(dim=0)) == 30
    torch.manual_seed(7)
    again, other = loaded(pets, val_fraction=0.2, test_fraction=0.1), loaded(pets, val_fraction=0.2, split_seed=1)
    assert torch.equal(again.val_set.images, data.val_set.images)
    assert not torch.equal(other.val_set.images, data.val_set.images)


def test_batches_are_bytes_with_the_channel_second(pets):
    images, labels = next(iter(loaded(pets, batch_size=5).train_dataloader()))
    assert (images.shape, images.dtype, labels.dtype) == ((5, 3, 8, 8), torch.uint8, torch.int64)
    assert next(iter(loaded(pets, grayscale=True, batch_size=5).train_dataloader()))[0].shape == (5, 1, 8, 8)
    data = loaded(pets)
    assert ((data.train_set.images[:, 0, 4, 4] > 190) == (data.train_set.labels == 0)).all()


@pytest.mark.parametrize(("given", "split_off"), [(("val", "test"), []), (("test",), ["val"]), ((), ["val", "test"])])
def test_missing_parts_are_split_off_train(given, split_off, pets, tmp_path):
    root = tmp_path / "parts"
    root.mkdir()
    pets.rename(root / "train")
    for part in given:
        draw(root / part / "dog" / "one.png", (0, 0, 0))
    data = loaded(root)
    data.setup("test")
    assert len(data.train_set) == 30 - 3 * len(split_off)
    for part in ("val", "test"):
        assert counts(getattr(data, f"{part}_set")) == ([2, 1] if part in split_off else [0, 1])


def test_train_may_be_the_name_of_a_class(tmp_path):
    for name in ("train", "car"):
        for number in range(4):
            draw(tmp_path / name / f"{number}.png", (number, 0, 0))
    assert loaded(tmp_path).class_names == ["car", "train"]


def test_unknown_class_is_refused(pets, tmp_path):
    root = tmp_path / "parts"
    root.mkdir()
    pets.rename(root / "train")
    draw(root / "val" / "Cat" / "one.png", (0, 0, 0))
    with pytest.raises(ValueError, match="Cat: train/ has no such class, only cat, dog; did you mean 'cat'"):
        loaded(root)


def test_empty_part_is_refused(pets, tmp_path):
    root = tmp_path / "parts"
    root.mkdir()
    pets.rename(root / "train")
    (root / "val" / "cat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no images in .*val"):
        loaded(root)


def test_images_outside_of_classes_are_left_out(pets):
    draw(pets / "stray.png", (0, 0, 0))
    with pytest.warns(UserWarning, match=r"1 image\(s\)"):
        assert len(loaded(pets, val_fraction=0, test_fraction=0).train_set) == 30


def test_nested_folders_any_extension_no_hidden_files(tmp_path):
    for name in ("indoors/A.JPG", "indoors/at night/b.Png", "c.webp", "d.gif", "e.pgm", ".hidden.png", ".thumbs/f.png"):
        draw(tmp_path / "cat" / name, (9, 9, 9), mode="L" if name.endswith("pgm") else "RGB")
    draw(tmp_path / "dog" / "one.bmp", (0, 0, 0))
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / ".git").mkdir()
    with pytest.warns(UserWarning, match="too few images"):
        data = loaded(tmp_path, val_fraction=0)
    assert counts(data.train_set) == [4, 1]


def test_classes_with_one_image_or_none(pets):
    draw(pets / "bird" / "one.png", (0, 0, 0))
    with pytest.warns(UserWarning, match="too few images to be in every part: bird"):
        data = loaded(pets)
    assert int((data.train_set.labels == 0).sum()) == 1
    (pets / "bird" / "one.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no images in .*bird: fill the folder, or remove it"):
        loaded(pets)


def test_missing_folder_or_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere: set data\.root"):
        loaded(tmp_path / "nowhere")
    draw(tmp_path / "one.png", (0, 0, 0))
    with pytest.raises(ValueError, match="has 0 subfolder"):
        loaded(tmp_path)
    draw(tmp_path / "cat" / "one.png", (0, 0, 0))
    with pytest.raises(ValueError, match="has 1 subfolder"):
        loaded(tmp_path)


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "text": b"hello"}[how])


@pytest.mark.parametrize("memory_limit", [2.0, 0.0])
def test_damaged_files_are_named_and_left_out(pets, memory_limit):
    for number, how in enumerate(("empty", "cut", "text")):
        damage(pets / "cat" / f"{number:02}.png", how)
    options = {"val_fraction": 0, "test_fraction": 0, "memory_limit": memory_limit}
    with pytest.warns(UserWarning, match=r"3 of 30 images .*cat/00\.png .*cat/01\.png .*cat/02\.png"):
        data = loaded(pets, max_unreadable=3, **options)
    assert counts(data.train_set) == [17, 10]
    with pytest.raises(ValueError, match=r"3 of 30 images cannot be read, and data\.max_unreadable is 2: .*00\.png"):
        loaded(pets, max_unreadable=2, **options)


def test_class_without_readable_image_is_refused(pets):
    for path in (pets / "dog").iterdir():
        damage(path, "text")
    with pytest.raises(ValueError, match="cannot be read, 8 of 8 of dog: mend or remove them"):
        loaded(pets, max_unreadable=100)


def test_workers_read_beyond_memory_limit(pets):
    small, large = loaded(pets), loaded(pets, memory_limit=1e-6, num_workers=2)
    assert isinstance(large.train_set, ImageFileDataset)
    loader = large.train_dataloader()
    assert isinstance(loader, DataLoader)
    assert loader.num_workers == 2
    images, labels = (torch.cat(parts) for parts in zip(*large.val_dataloader(), strict=True))
    assert torch.equal(images, small.val_set.images)
    assert torch.equal(labels, small.val_set.labels)
    seen = torch.cat([labels for _, labels in loader])
    assert torch.equal(seen.sort().values, small.train_set.labels.sort().values)
    damage(large.val_set.paths[1], "cut")
    with pytest.raises(OSError, match=rf"{large.val_set.paths[1]} could be read at the start, but cannot any more"):
        large.val_set.__getitems__([0, 1])


def test_stratified_split_by_hand():
    labels = torch.tensor([0] * 100 + [1] * 10 + [2] * 3 + [3] * 2 + [4])
    names = [f"{index}.png" for index in range(116)]
    parts = stratified_split(labels, names, [0.2, 0.1], seed=0)
    assert [labels[part].bincount(minlength=5).tolist() for part in parts] == [
        [70, 7, 1, 1, 1],
        [20, 2, 1, 1, 0],
        [10, 1, 1, 0, 0],
    ]
    assert sorted(index for part in parts for index in part) == list(range(116))
    assert stratified_split(labels, names, [0.0], seed=0)[1] == []
    assert stratified_split(labels, names, [0.2, 0.1], seed=1) != parts


def test_new_image_leaves_others_in_their_parts():
    names = [f"{index}.png" for index in range(100)]
    labels = torch.tensor([0] * 50 + [1] * 50)
    before = stratified_split(labels, names, [0.2, 0.2], seed=0)
    after = stratified_split(torch.cat([torch.tensor([0]), labels]), ["new.png", *names], [0.2, 0.2], seed=0)
    moved = [
        len({f"{index}.png" for index in old} - {["new.png", *names][index] for index in new})
        for old, new in zip(before, after, strict=True)
    ]
    assert max(moved) <= 1


def test_augmentation_is_off_by_default(pets):
    data = loaded(pets, flip=True, rotation=10, shift=2, scale=0.1)
    images = torch.rand(8, 3, 8, 8)
    assert data.augment(images).shape == images.shape
    assert not torch.equal(data.augment(images), data.augment(images))
    assert torch.equal(loaded(pets).augment(images), images)


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": 0},
        {"batch_size": 0},
        {"num_workers": 0},
        {"memory_limit": -1.0},
        {"max_unreadable": -1},
        {"val_fraction": 0.5, "test_fraction": 0.5},
        {"val_fraction": -0.1},
        {"scale": 1.0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"must be (at least|below)") as error:
        ImageFolderDataModule("anywhere", **options)
    assert all(name in str(error.value) for name in options)


def test_nothing_to_test_on(pets):
    with pytest.raises(ValueError, match=r"set data\.test_fraction above 0"):
        loaded(pets, "test", test_fraction=0)


@pytest.fixture
def trained_on_pets(pets, tmp_path):
    flags = [f"--data.root={pets}", "--model.num_classes=2", f"--trainer.default_root_dir={tmp_path / 'logs'}"]
    assert cli.main(["fit", f"--config={ROOT / 'configs/cnn_folder.yaml'}", *flags, "--trainer.max_epochs=8"]) == 0
    return next((tmp_path / "logs").rglob("last.ckpt"))


def test_predict_says_cat(trained_on_pets, pets, tmp_path):
    draw(tmp_path / "new" / "Tom.JPG", COLORS["cat"], size=(300, 200))
    draw(tmp_path / "new" / "Rex.png", COLORS["dog"])
    output = tmp_path / "out.csv"
    predict = ["predict", f"--ckpt_path={trained_on_pets}", f"--output={output}"]
    assert cli.main([*predict, f"--images={tmp_path / 'new'}"]) == 0
    with output.open() as file:
        rows = {row["file"].split("/")[-1]: row for row in csv.DictReader(file)}
    assert {name: row["label"] for name, row in rows.items()} == {"Tom.JPG": "cat", "Rex.png": "dog"}
    assert list(rows["Tom.JPG"]) == ["file", "label", "cat", "dog"]
    # What fails leaves the earlier file as it was.
    kept = output.read_text()
    damage(tmp_path / "new" / "Tom.JPG", "text")
    damage(tmp_path / "new" / "Rex.png", "text")
    with pytest.warns(UserWarning, match="cannot read"):
        assert cli.main([*predict, f"--images={tmp_path / 'new'}"]) == 1
    assert output.read_text() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "new", "out.csv", "pets"]
    # Without a folder, the files of the test part, by name.
    assert cli.main(predict) == 0
    with output.open() as file:
        assert {row["file"].split("/")[-2]: row["label"] for row in csv.DictReader(file)} == {
            "cat": "cat",
            "dog": "dog",
        }


def test_data_with_other_classes_are_refused(trained_on_pets, pets, tmp_path, capsys):
    test = ["test", f"--ckpt_path={trained_on_pets}"]
    (pets / "cat").rename(pets / "bird")
    assert cli.main(test) == 1
    assert "are bird, dog, but those of the model are cat, dog" in capsys.readouterr().err
    draw(pets / "cat" / "one.png", (0, 0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(test) == 1
    assert (
        "has 3 classes, but num_classes of CNN is 2: to train on them, set model.num_classes to 3"
        in capsys.readouterr().err
    )


def test_class_names_are_in_the_checkpoint(trained_on_pets):
    model = CNN.load_from_checkpoint(trained_on_pets, weights_only=True)
    assert model.class_names == ["cat", "dog"]


def test_only_the_needed_part_is_read(pets):
    parts = loaded(pets)._find()
    dog = next(path for path, label in parts["test"] if label == 1)
    damage(dog, "text")
    with pytest.warns(UserWarning, match="1 of 3 images cannot be read"):
        assert counts(loaded(pets, "test").test_set) == [2, 0]
