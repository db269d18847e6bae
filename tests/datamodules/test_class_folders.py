"""Folders of parts and classes, as people have them, and what is left out of them."""

import logging
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, fails
from PIL import Image

from datamodules import ImageFolderDataModule
from datamodules.common import image_io
from datamodules.common.class_folders import find_class_folders
from datamodules.common.image_io import find_files, find_images
from lit_models.cli import main as cli

PETS = ("cat", "dog")


def fill(folder, *names, count=2, ending=".png"):
    """Pictures in a folder, or in folders of these names in it, each of another grey."""
    for name in names or ("",):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            grey = (len(str(folder / name)) * 31 + sum(map(ord, name)) + number) % 256
            path = folder / name / f"{number}.png"
            Image.new("L", (4, 4), grey).save(path)
            path.rename(path.with_suffix(ending))


def layout(root):
    """The classes by part, and the names of the unlabelled parts."""
    found = find_class_folders(root)
    return {part: sorted(folders) for part, folders in found.parts.items()}, [path.name for path in found.unlabelled]


def loaded(root, stage="fit", **options):
    data = ImageFolderDataModule(str(root), image_size=8, **options)
    data.setup(stage)
    return data


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("training_set", None, "test_set"),
        ("Train", "Valid", "TEST"),
        ("training", "validation", "testing"),
        ("train_data", "val_data", "eval_data"),
        ("TrainSet", "DevSet", "TestSet"),
        ("trainset", "valset", "testset"),
        ("Training Images", "Validation Images", "Test Images"),
        ("seg_train/seg_train", None, "seg_test/seg_test"),
        ("train/train", "dev", "test/test"),
        ("train2017", "val2017", None),
        ("archive/data/train", "archive/data/valid", "archive/data/test"),
    ],
)
def test_parts_by_the_names_that_people_give_them(train, val, test, tmp_path):
    given = {part: name for part, name in (("train", train), ("val", val), ("test", test)) if name}
    for name in given.values():
        fill(tmp_path / name, *PETS)
    assert layout(tmp_path) == ({part: list(PETS) for part in given}, [])


def test_the_only_folder_in_the_root_is_the_root(tmp_path, caplog):
    fill(tmp_path / "PetImages", *PETS, count=3)
    fill(tmp_path / "__MACOSX" / "PetImages", *PETS)
    with caplog.at_level(logging.INFO, "lit_models"):
        assert loaded(tmp_path).class_names == list(PETS)
    assert f"read from {tmp_path / 'PetImages'}" in caplog.text
    fill(tmp_path / "PetImages" / "cat", "indoors")
    assert layout(tmp_path / "PetImages")[0] == {"train": list(PETS)}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["a/cat", "a/dog", "b/cat", "b/dog"], "the same folders, cat, dog, in a, b: if the latter are its parts"),
        (["a/0", "a/1", "b/0", "b/1", "c/0", "c/2"], "the same folders, 0, 1, in a, b, c"),
        (["test/cat", "test/dog", "val/cat", "val/dog"], "no train/ beside test and val"),
        (["test/cat", "test/dog"], "no train/ beside test"),
        (["train", "test"], "data/train has no folders of classes: sort its pictures into one per class"),
        (["train/cat", "train/dog", "extra/cat"], "extra/ beside train, which is no known part"),
        (["train/cat", "train/dog", "training_set/cat"], "train/ and training_set/, both named like train/"),
        (["cat", "dog", "more/cat"], "data/more holds cat, as"),
        (["cat/train", "cat/test", "cat/more", "dog/train", "dog/test"], "train in its classes, but other folders too"),
    ],
)
def test_what_cannot_be_a_data_set_is_refused(folders, message, tmp_path, capsys):
    fill(tmp_path / "data", *folders)
    flags = ["--model=CNN", "--data=ImageFolderDataModule", f"--data.root={tmp_path / 'data'}"]
    assert message in fails(capsys, "fit", *flags, f"--trainer.default_root_dir={tmp_path}")


@pytest.mark.parametrize(
    "folders",
    [
        ["cat/indoors", "cat/outdoors", "dog/park"],
        ["train", "car/red", "car/blue", "ship"],
        ["freight_train", "test_tube"],
        ["train/fast", "car"],
        ["cat", "dog/2019", "dog/2020"],
    ],
)
def test_classes_with_further_folders_stay_classes(folders, tmp_path, recwarn):
    fill(tmp_path, *folders)
    assert layout(tmp_path) == ({"train": sorted({name.partition("/")[0] for name in folders})}, [])
    assert not recwarn


@pytest.mark.parametrize("below", [("2019", "2020"), ("2019-12", "2020-01"), ("images",)])
def test_the_same_folders_in_every_class_are_said(below, tmp_path):
    for name in PETS:
        fill(tmp_path / name, *below)
    with pytest.warns(UserWarning, match=f"cat, dog, have the same subfolders, {', '.join(below)}"):
        data = loaded(tmp_path, val_fraction=0, test_fraction=0)
    assert data.class_names == list(PETS)
    assert len(data.train_set) == 4 * len(below)


def test_parts_within_the_classes(tmp_path):
    for name in PETS:
        fill(tmp_path / name, "train", "test")
    assert layout(tmp_path) == ({"train": list(PETS), "test": list(PETS)}, [])
    data = loaded(tmp_path, "test")
    assert sorted(path.parent.name for path in (tmp_path / "cat").rglob("*.png")) == ["test"] * 2 + ["train"] * 2
    assert data.test_set.labels.tolist() == [0, 0, 1, 1]


def test_a_folder_of_classes_beside_a_part_is_a_part(tmp_path):
    fill(tmp_path / "seg_train", *PETS)
    fill(tmp_path / "test")
    assert layout(tmp_path) == ({"train": list(PETS)}, ["test"])


@pytest.mark.parametrize("flat", ["test", "test1", "test/test", "Test Images/images", "seg_pred/seg_pred", "val"])
def test_a_part_without_classes_is_said_to_be_unlabelled(flat, tmp_path, caplog):
    fill(tmp_path / ("seg_train" if "seg" in flat else "train"), *PETS, count=10)
    fill(tmp_path / flat)
    folders, unlabelled = layout(tmp_path)
    assert folders == {"train": list(PETS)}
    with caplog.at_level(logging.INFO, "lit_models"):
        data = loaded(tmp_path)
        data.setup("test")
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [16, 2, 2]
    assert f"{unlabelled[0]} holds images without classes, which are left out: predict --images" in caplog.text


def test_links_are_read_and_cycles_end(tmp_path):
    fill(tmp_path / "elsewhere", *PETS)
    root = tmp_path / "root"
    root.mkdir()
    (root / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    fill(root, "cat", count=1)
    (root / "cat" / "more").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "cat" / "linked.png").symlink_to(tmp_path / "elsewhere" / "dog" / "0.png")
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for loop, target in (("cat/here", root / "cat"), ("cat/up", root), ("cat/more/up", root), ("up", tmp_path)):
        (root / loop).symlink_to(target)
    os.mkfifo(root / "cat" / "pipe.png")
    names, left_out = find_files(root / "cat")
    assert [str(path.relative_to(root)) for path in names] == [
        *("cat/0.png", "cat/linked.png", "cat/more/0.png", "cat/more/1.png")
    ]
    assert left_out == {"links to folders that are read already": 3, "broken links": 1, "no files": 1}
    data = loaded(root, val_fraction=0, test_fraction=0)
    assert data.class_names == list(PETS)
    assert data.train_set.labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_one_folder_as_two_classes_is_refused(tmp_path):
    fill(tmp_path, *PETS)
    (tmp_path / "kitten").symlink_to(tmp_path / "cat")
    with pytest.raises(ValueError, match="is the folder of the class kitten, too: remove the link"):
        loaded(tmp_path)


def test_what_was_read_and_left_out_is_said(tmp_path, caplog):
    fill(tmp_path, "dog", count=10)
    fill(tmp_path, "cat", count=20)
    for name in ("a.txt", "b.TXT", "Thumbs.db", ".DS_Store", "README"):
        (tmp_path / "cat" / name).write_text("no picture")
    shutil.copy(tmp_path / "dog" / "0.png", tmp_path / "dog" / "picture without ending")
    with caplog.at_level(logging.INFO, "lit_models"):
        data = loaded(tmp_path)
        data.setup("test")
    assert [record.getMessage().removeprefix(f"{tmp_path}: ") for record in caplog.records] == [
        "train: left out 2 .txt, 1 hidden, 1 without an ending, 1 .db",
        "train 25 images of 2 classes: 16 cat, 9 dog",
        "val 3 images of 2 classes: 2 cat, 1 dog",
        "test 3 images of 2 classes: 2 cat, 1 dog",
        "train: left out 2 .txt, 1 hidden, 1 without an ending, 1 .db",
        "test 3 images of 2 classes: 2 cat, 1 dog",
    ]


def test_uneven_classes_are_warned_of(tmp_path):
    fill(tmp_path, "dog", count=57)
    fill(tmp_path, "cat", count=3)
    with pytest.warns(UserWarning, match="45 train images are of dog, 1 of cat: set model.class_weights to balanced"):
        loaded(tmp_path)


@pytest.fixture
def without_heic(monkeypatch):
    """As if the extra were not installed."""
    image_io.image_extensions()
    if "HEIF" in Image.OPEN:
        monkeypatch.delitem(Image.OPEN, "HEIF")
        monkeypatch.setattr(Image, "ID", [kind for kind in Image.ID if kind != "HEIF"])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_io.image_extensions.cache_clear()
    yield
    image_io.image_extensions.cache_clear()


def test_pictures_of_iphones(tmp_path):
    pytest.importorskip("pillow_heif", reason="needs the extra heic")
    image_io.image_extensions()
    for name, colour in (("cat", (200, 30, 30)), ("dog", (30, 30, 200))):
        (tmp_path / name).mkdir()
        for number in range(3):
            picture = Image.new("RGB", (64, 64), tuple(value + number for value in colour))
            picture.save(tmp_path / name / f"{number}.{'HEIC' if number else 'jpg'}", format=None if number else "JPEG")
    data = loaded(tmp_path, val_fraction=0, test_fraction=0)
    assert data.train_set.labels.tolist() == [0] * 3 + [1] * 3
    assert ((data.train_set.images[:, 0, 4, 4] > 150) == (data.train_set.labels == 0)).all()


@pytest.mark.usefixtures("without_heic")
def test_pictures_of_iphones_without_their_extra(tmp_path):
    fill(tmp_path, *PETS, count=6)
    for name, number in (("a.heic", 3), ("b.HEIC", 3)):
        (tmp_path / "cat" / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(number))
    with pytest.warns(UserWarning, match=r"2 of 8 pictures in .*cat are .heic, .* needs the extra heic"):
        assert len(loaded(tmp_path, val_fraction=0, test_fraction=0).train_set) == 12
    fill(tmp_path, "cat", count=6, ending=".heic")
    for number in range(6):
        (tmp_path / "cat" / f"{number}.HEIC").touch()
    with pytest.raises(ValueError, match=r"14 of 14 pictures in .*cat are .heic, which cannot be read: reading .heic"):
        loaded(tmp_path)
    with pytest.raises(ValueError, match=r"reading .HEIC needs the extra heic"):
        image_io.open_file(tmp_path / "cat" / "b.HEIC")


def test_a_class_that_loses_most_of_its_pictures_is_an_error(tmp_path):
    fill(tmp_path, *PETS, count=5)
    for number in range(6):
        (tmp_path / "dog" / f"{number}.CR2").touch()
    with pytest.raises(ValueError, match=r"6 of 11 pictures in .*dog are .cr2, which cannot be read: convert them"):
        loaded(tmp_path)
    for path in (tmp_path / "dog").glob("*.CR2"):
        path.rename(path.with_suffix(".txt"))  # which are no pictures
    loaded(tmp_path)
    fill(tmp_path, "bird", ending=".csv")
    with pytest.raises(FileNotFoundError, match=r"no images in .*bird, but 2 .csv: fill the folder, or remove it"):
        loaded(tmp_path)
    shutil.rmtree(tmp_path / "bird")
    for number in range(3):
        (tmp_path / "dog" / f"{number}.png").write_text("damaged")
    options = {"val_fraction": 0.0, "test_fraction": 0.0}
    with (
        pytest.warns(UserWarning, match="3 of 10 images cannot be read"),
        pytest.raises(ValueError, match="of a class cannot be read, 3 of 5 of dog: mend or remove them"),
    ):
        loaded(tmp_path, **options)


def deep_pictures(folder, bits, ending, largest=1.0):
    """The same four pictures, a gradient in two directions by class, in some number of bits."""
    x = np.linspace(0, largest, 32)
    for name, values in (("up", x), ("down", x[::-1])):
        (folder / name).mkdir(parents=True)
        for number, exponent in enumerate((1, 2)):
            numbers = np.tile(values**exponent, (32, 1)) * (2**bits - 1)
            kind = np.uint8 if bits == 8 and ending == "png" else np.uint16
            Image.fromarray(numbers.round().astype(kind)).save(folder / name / f"{number}.{ending}")
    return folder


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_picture_looks_the_same_in_any_number_of_bits(bits, ending, tmp_path):
    options = {"val_fraction": 0.0, "test_fraction": 0.0, "grayscale": True}
    expected = loaded(deep_pictures(tmp_path / "8", 8, "png"), **options).train_set.images
    root = deep_pictures(tmp_path / "deep", bits, ending)
    data = loaded(root, **options)
    assert (data.train_set.images.int() - expected.int()).abs().max() <= 1
    streamed = loaded(root, **options, memory_limit=0.0, num_workers=1)
    assert torch.equal(streamed.train_set.__getitems__([0, 1, 2, 3])[0], data.train_set.images)


def test_what_is_white_is_that_of_the_whole_folder_or_given(tmp_path, caplog):
    deep_pictures(tmp_path / "data", 12, "png")
    dark = np.full((32, 32), 400, np.uint16)
    Image.fromarray(dark).save(tmp_path / "data" / "up" / "dark.png")
    options = {"val_fraction": 0.0, "test_fraction": 0.0, "grayscale": True}
    with caplog.at_level(logging.INFO, "lit_models"):
        data = loaded(tmp_path / "data", **options)
    assert "5 images are deeper than 8 bits: 4095 is white" in caplog.text
    assert data.hparams.max_value == 4095
    assert data.train_set.images.flatten(1).amax(1).min() == round(400 / 4095 * 255)
    given = loaded(tmp_path / "data", **options, max_value=400)
    assert given.train_set.images.flatten(1).amax(1).min() == 255
    # What is new is read like what it was trained on.
    assert data.read(tmp_path / "data" / "up" / "dark.png").max() == round(400 / 4095 * 255)


def test_find_images_follows_links(tmp_path):
    fill(tmp_path / "elsewhere")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    assert len(find_images(tmp_path / "root")) == 2


def test_what_is_white_travels_with_the_checkpoint(tmp_path):
    root = deep_pictures(tmp_path / "data", 12, "tiff")
    run, config = tmp_path / "logs" / "cnn_folder" / "version_0", ROOT / "configs" / "cnn_folder.yaml"
    flags = [f"--data.root={root}", "--data.grayscale=true", "--model.in_channels=1", "--model.num_classes=2"]
    flags += ["--data.test_fraction=0", f"--trainer.default_root_dir={tmp_path / 'logs'}"]
    assert cli.main(["fit", f"--config={config}", *flags, "--trainer.max_epochs=1"]) == 0
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["datamodule_hyper_parameters"]["max_value"] == 4095
    # One dark picture by itself does not tell of how many bits it is.
    dark = np.tile(np.linspace(0, 200, 32), (32, 1))
    for name, scale, kind in (("8.png", 255 / 4095, np.uint8), ("12.png", 1, np.uint16)):
        (tmp_path / "new").mkdir(exist_ok=True)
        Image.fromarray((dark * scale).round().astype(kind)).save(tmp_path / "new" / name)
    output = tmp_path / "out.csv"
    assert cli.main(["predict", f"--ckpt_path={last}", f"--images={tmp_path / 'new'}", f"--output={output}"]) == 0
    rows = [line.split(",")[2:] for line in output.read_text().splitlines()[1:]]
    assert np.allclose(*np.array(rows, float), atol=1e-3)
    # The run's own config has no max_value, which is no contradiction.
    assert cli.main(["fit", f"--config={run / 'config.yaml'}", f"--ckpt_path={last}"]) == 0
