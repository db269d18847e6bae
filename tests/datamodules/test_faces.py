"""FaceDataModule: folders of people, splits, batches of people, published sets and lists of pairs."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import fails
from PIL import Image

from datamodules import FaceDataModule
from datamodules.common.samplers import IdentitySampler
from datamodules.face_data.face_folder import COPY_COMMENT
from datamodules.face_data.face_sources import read_pairs

NAMES = ["Ann Lee", "Bo, Jr.", "Chloé", "Дмитрий", "Eve", "Finn", "Gül", "Hana", "Ian", "王"]


def draw(path, tone, size=(30, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, tone).save(path)


@pytest.fixture
def people(tmp_path):
    """Ten people with six pictures each, in which the tens of the tone say who it is."""
    for number, name in enumerate(NAMES):
        for picture in range(6):
            draw(tmp_path / "people" / name / f"{name}_{picture + 1:04}.pgm", 10 * number + picture)
    return tmp_path / "people"


def loaded(root, *stages, **options):
    data = FaceDataModule(str(root), image_size=8, **options)
    for stage in stages or ("fit", "test"):
        data.setup(stage)
    return data


def shown(dataset):
    """Who is in the pictures of a set, by their tones, which must agree with the labels' order."""
    tones = dataset.images[:, 0, 4, 4].int()
    return set((tones // 10).tolist())


def enrolled(dataset):
    """Whether others are identified by an image of validation or test."""
    return dataset.tensors[3]


def test_split_by_person_shares_nobody(people):
    data = loaded(people, val_fraction=0.2, test_fraction=0.3)
    parts = [shown(part) for part in (data.train_set, data.val_set, data.test_set)]
    assert [len(part) for part in parts] == [5, 2, 3]
    assert set.union(*parts) == set(range(10))
    assert data.num_classes == 5
    assert {data.identities.index(name) for name in data.class_names} == {
        data.identities.index(NAMES[number]) for number in parts[0]
    }
    assert sorted(data.train_set.labels.unique().tolist()) == list(range(5))
    assert not enrolled(data.test_set).any()
    for image, label in zip(data.train_set.images, data.train_set.labels, strict=True):
        assert data.class_names[label] == NAMES[int(image[0, 4, 4]) // 10]
    for image, label in zip(data.test_set.images, data.test_set.labels, strict=True):
        assert data.identities[label] == NAMES[int(image[0, 4, 4]) // 10]


def test_split_by_image_enrolls_training_images(people):
    data = loaded(people, split_by="image", train_images=3, val_images=1)
    assert data.train_set.labels.bincount().tolist() == [3] * 10
    assert enrolled(data.test_set).sum() == 30
    assert data.test_set.labels[~enrolled(data.test_set)].bincount().tolist() == [2] * 10
    assert data.val_set.labels[~enrolled(data.val_set)].bincount().tolist() == [1] * 10
    tones = [part.images[~enrolled(part)][:, 0, 4, 4].tolist() for part in (data.val_set, data.test_set)]
    trained = data.train_set.images[:, 0, 4, 4].tolist()
    assert len({*trained, *tones[0], *tones[1]}) == 60
    assert sorted(data.test_set.images[enrolled(data.test_set)][:, 0, 4, 4].tolist()) == sorted(trained)


def test_splits_depend_on_their_seed_alone(people):
    for options in ({"split_by": "person"}, {"split_by": "image", "train_images": 3}):
        first = loaded(people, **options).train_set.images
        torch.manual_seed(5)
        assert torch.equal(loaded(people, **options).train_set.images, first)
        other = loaded(people, split_seed=1, **options).train_set.images
        assert not torch.equal(other, first)


def test_batch_has_indices_and_enrolled(people):
    data = loaded(people, "test", split_by="image", train_images=3)
    images, labels, indices, known = next(iter(data.test_dataloader()))
    assert (images.shape[1:], images.dtype) == ((1, 8, 8), torch.uint8)
    assert indices.tolist() == list(range(len(labels)))
    assert torch.equal(data.test_set.images[indices], images)
    assert known.dtype == torch.bool
    assert loaded(people, "test", grayscale=False).test_set.images.shape[1] == 3


def test_training_batches_hold_p_identities_times_k_images(people):
    data = loaded(people, "fit", identities_per_batch=3, images_per_identity=4, val_fraction=0, test_fraction=0.2)
    batches = list(data.train_dataloader())
    assert len(batches) == 4  # as many pictures as there are
    for _, labels in batches:
        groups = labels.view(3, 4)
        assert (groups == groups[:, :1]).all()
        assert len(groups[:, 0].unique()) == 3
    pictures = batches[0][0][:, 0, 4, 4]
    assert len(pictures.unique()) == 12  # no picture twice


@pytest.mark.parametrize(("people_there", "pictures_there"), [(5, 6), (2, 6), (5, 2)])
def test_two_processes_draw_like_one_with_twice_the_identities(people_there, pictures_there, monkeypatch):
    labels = torch.arange(people_there).repeat_interleave(pictures_there)
    whole = IdentitySampler(labels, identities=4, images=3, seed=7)
    ranks = []
    for rank in (0, 1):
        monkeypatch.setattr("datamodules.common.samplers.world_and_rank", lambda rank=rank: (2, rank))
        ranks.append(IdentitySampler(labels, identities=2, images=3, seed=7))
    for _ in range(3):  # epochs
        batches = torch.tensor(list(whole)).view(-1, 12)
        halves = [torch.tensor(list(sampler)).view(-1, 6) for sampler in ranks]
        assert len(batches) == len(halves[0]) == len(halves[1])
        for batch, *parts in zip(batches, *halves, strict=True):
            assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())
            for part in parts:
                groups = labels[part].view(2, 3)
                assert (groups == groups[:, :1]).all()
    first, again = (list(IdentitySampler(labels, 2, 3, seed=1, epoch=4)) for _ in range(2))
    assert first == again
    assert list(IdentitySampler(labels, 2, 3, seed=1, epoch=4, skip=6)) == first[6:]
    assert list(IdentitySampler(labels, 2, 3, seed=1, epoch=5)) != first


def test_images_without_a_face_are_named(tmp_path, caplog):
    pytest.importorskip("cv2", reason="needs the extra faces")
    from drawn import person, scene

    for number in range(4):
        (tmp_path / str(number)).mkdir()
        for variation in range(3):
            person(number, variation).save(tmp_path / str(number) / f"{variation}.png")
    draw(tmp_path / "2" / "wall.png", 90, (120, 120))
    scene([(0, (20, 20, 150)), (3, (250, 60, 220))]).save(tmp_path / "3" / "two.png")
    options = {"detect": True, "split_by": "image", "train_images": 1}
    with pytest.warns(UserWarning, match=r"no face is found in 1 of 14 images, which are left out: .*2/wall.png"):
        largest = loaded(tmp_path, **options)
    assert largest.labels.bincount().tolist() == [3, 3, 3, 4]
    assert f"{tmp_path}: 13 faces of 4 people; left out: 1 without a face" in caplog.text
    with pytest.warns(UserWarning, match="wall"):
        everyone = loaded(tmp_path, faces="all", **options)
    assert everyone.labels.bincount().tolist() == [3, 3, 3, 5]


def test_damaged_images_are_named(people):
    (people / "Eve" / "Eve_0002.pgm").write_bytes(b"")
    (people / "Eve" / "Eve_0003.pgm").write_bytes(b"P5 30 40 255 too short")
    with pytest.warns(UserWarning, match=r"2 of 60 images cannot be read and are left out: .*Eve_0002.*Eve_0003"):
        assert len(loaded(people, "fit").labels) == 58
    with pytest.raises(ValueError, match=r"2 of 60 images cannot be read, and data.max_unreadable is 1"):
        loaded(people, max_unreadable=1)
    for number in (1, 4, 5, 6):
        (people / "Eve" / f"Eve_{number:04}.pgm").write_bytes(b"")
    with pytest.warns(UserWarning, match="6 of 60"), pytest.raises(ValueError, match="no image of Eve can be used"):
        loaded(people)


def test_what_was_read_and_left_out_is_said_once(people, caplog):
    (people / "Eve" / "Eve_0002.pgm").write_bytes(b"")
    (people / "Eve" / "thumbs.db").touch()
    (people / "list.txt").touch()
    for number in range(2, 7):
        (people / "Ian" / f"Ian_{number:04}.pgm").unlink()
    (people / "recognised").mkdir()
    Image.new("L", (30, 40)).save(people / "recognised" / "Eve.faces.jpg", comment=COPY_COMMENT)
    with pytest.warns(UserWarning, match="1 of 55 images cannot be read"):
        loaded(people, "fit", "validate", "test", val_fraction=0.2, test_fraction=0.3)
    read, split, single = [record.getMessage() for record in caplog.records if record.name == "lit_models"]
    left_out = "2 file(s) of other kinds (.db, .txt), 1 copies drawn by identify, 1 that cannot be read"
    assert read == f"{people}: 54 images of 10 people; left out: {left_out}"
    assert re.fullmatch(
        r"split by person: train \d+ images of 5 people, val \d+ images of 2 people, test \d+ images of 3 people", split
    )
    assert sum(map(int, re.findall(r"(\d+) images", split))) == 54
    assert single == "one image only, which can be compared with other people's alone, of Ian"


def test_bad_input_is_one_line(people, tmp_path, capsys, monkeypatch):
    def refused(*flags, root=people):
        return fails(capsys, "fit", "--model=FaceEmbedder", "--data=FaceDataModule", f"--data.root={root}", *flags)

    assert "no folder" in refused(root=tmp_path / "nowhere")
    assert "has 0 subfolder(s): it takes one per person" in refused(root=people / "Eve")
    by_image = "--data.split_by=image"
    message = refused(by_image, "--data.train_images=6")
    assert "too few images of Ann Lee (6), Bo, Jr. (6)" in message
    assert "lower data.train_images" in message
    assert "val_fraction is for a split by person: leave it out" in refused(by_image, "--data.val_fraction=0.1")
    assert "train_images is for a split by image" in refused("--data.train_images=2")
    assert "together they must be below 1" in refused("--data.val_fraction=0.5", "--data.test_fraction=0.5")
    assert "too few to train on two or more" in refused("--data.val_fraction=0.3", "--data.test_fraction=0.6")
    assert "set detect to true" in refused("--data.faces=all")
    assert "download is for published data sets: set it to false" in refused("--data.download=true")
    assert "identities_per_batch is 0" in refused("--data.identities_per_batch=0")
    assert "no list of pairs" in refused("--data.pairs=nowhere.txt")
    (tmp_path / "pairs.txt").write_text("Ann Lee 1 2")
    assert "is no list of pairs as LFW's" in refused(f"--data.pairs={tmp_path / 'pairs.txt'}")
    (people / "Zed").mkdir()
    assert "no images in" in refused()
    draw(people / "Zed" / "one.png", 200)
    assert "too few images of Zed (1)" in refused(by_image)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "pip install -e '.[faces]'" in refused("--data.detect=true")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for source in ("olivetti", "lfw"):
        message = refused(f"--data.source={source}", "--data.download=true")
        assert "pip install -e '.[face-data]'" in message


@pytest.mark.parametrize(
    "options", [{"source": "web"}, {"split_by": "photo"}, {"faces": "both"}, {"margin": -0.1}, {"erasing": 1.0}]
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*: it must be"):
        FaceDataModule(**options)


def test_people_of_listed_pairs_are_the_test(people, tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_text("2\t1\nEve\t1\t2\nEve\t3\tIan\t4\nIan\t1\t6\nFinn\t1\tEve\t6\n", encoding="utf-8")
    listed = read_pairs(path)
    assert listed[1] == ("Eve_0003", "Ian_0004", False, 0)
    assert [(same, fold) for *_, same, fold in listed] == [(True, 0), (False, 0), (True, 1), (False, 1)]
    data = loaded(people, val_fraction=0.2, pairs=str(path))
    assert {NAMES[number] for number in shown(data.test_set)} == {"Eve", "Finn", "Ian"}
    tones = data.test_set.images[:, 0, 4, 4]
    assert tones[data.pairs.first].tolist() == [40, 42, 80, 50]
    assert tones[data.pairs.second].tolist() == [41, 83, 85, 45]
    assert data.pairs.same.tolist() == [True, False, True, False]
    (people / "Eve" / "Eve_0003.pgm").unlink()
    with pytest.warns(UserWarning, match="1 of 4 pairs lack an image"):
        assert len(loaded(people, pairs=str(path)).pairs.same) == 3


def test_list_without_folds_has_ten(tmp_path):
    rows = [f"A\t{n}\t{n + 1}" for n in range(1, 21)] + [f"A\t{n}\tB\t{n}" for n in range(1, 21)]
    (tmp_path / "pairs.txt").write_text("\n".join(["20", *rows]))
    folds = torch.tensor([fold for *_, fold in read_pairs(tmp_path / "pairs.txt")])
    assert folds.bincount().tolist() == [4] * 10
    assert folds[:20].bincount().tolist() == [2] * 10


def test_olivetti(tmp_path):
    joblib = pytest.importorskip("joblib", reason="needs scikit-learn")
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    with pytest.raises(FileNotFoundError, match=r"no Olivetti's faces in .*: set data.download to true"):
        loaded(tmp_path, source="olivetti")
    faces = np.random.default_rng(0).random((400, 64 * 64)).astype(np.float32)
    joblib.dump(faces, tmp_path / "olivetti_py3.pkz", compress=6)  # as scikit-learn keeps what it has downloaded
    data = loaded(tmp_path, source="olivetti", split_by="image", train_images=5)
    assert (len(data.identities), len(data.train_set), data.shape) == (40, 200, (1, 8, 8))
    upright = faces[0].reshape(64, 64).T
    large = FaceDataModule(str(tmp_path), source="olivetti", image_size=64)
    large.setup("fit")
    scaled = (upright - faces.min()) / (faces.max() - faces.min())
    assert np.abs(large.images[0, 0].numpy() - scaled * 255).max() <= 1


def test_lfw(people, tmp_path):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    with pytest.raises(FileNotFoundError, match=r"no LFW in .*: set data.download to true"):
        loaded(tmp_path, source="lfw")
    (tmp_path / "lfw_home").mkdir()
    people.rename(tmp_path / "lfw_home" / "lfw_funneled")
    (tmp_path / "lfw_home" / "pairsDevTest.txt").write_text("1\nEve\t1\t2\nEve\t3\tIan\t4\n")
    data = loaded(tmp_path, source="lfw")
    assert {NAMES[number] for number in shown(data.test_set)} == {"Eve", "Ian"}


@pytest.mark.filterwarnings("ignore:Retry downloading")
def test_failed_download_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **options: (_ for _ in ()).throw(OSError("no network")))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for source in ("olivetti", "lfw"):
        data = FaceDataModule(str(tmp_path), source=source, download=True)
        with pytest.raises(ConnectionError, match=r"could not download .* no network here"):
            data.prepare_data()


def test_orl_has_forty_people(orl):
    data = FaceDataModule(str(orl), split_by="image")
    data.setup("fit")
    assert (len(data.identities), len(data.images), len(data.train_set)) == (40, 400, 200)
    assert Path(data.names[0]).suffix == ".pgm"
