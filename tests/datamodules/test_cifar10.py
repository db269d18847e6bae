import pickle

import pytest
import torch

from datamodules import CIFAR10DataModule
from datamodules.common.tensors import random_flip, random_shift


def test_images_and_labels_match_the_files(cifar10):
    data = CIFAR10DataModule(str(cifar10), val_size=0)
    data.setup("fit")
    data.setup("test")
    assert data.class_names[:2] == ["airplane", "automobile"]
    assert data.num_classes == 10
    assert (len(data.train_set), len(data.test_set)) == (100, 20)
    with (cifar10 / "cifar-10-batches-py" / "data_batch_3").open("rb") as file:
        batch = pickle.load(file, encoding="latin1")
    assert data.train_set.labels[40:60].tolist() == batch["labels"]
    # A row of the file is the red plane, then the green and the blue one, each row by row.
    assert data.train_set.images[41, 1, 2].tolist() == batch["data"][1][1024 + 2 * 32 : 1024 + 3 * 32].tolist()
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, images.dtype, labels.dtype) == ((100, 3, 32, 32), torch.uint8, torch.int64)


def test_validation_is_split_off_by_its_own_seed(cifar10):
    data, again = (CIFAR10DataModule(str(cifar10), val_size=30) for _ in range(2))
    data.setup("fit")
    torch.manual_seed(3)
    again.setup("validate")
    assert torch.equal(data.val_set.images, again.val_set.images)
    together = torch.cat([data.train_set.images, data.val_set.images]).flatten(1)
    assert len(together.unique(dim=0)) == 100


def test_missing_or_altered_files_name_the_way_out(cifar10, tmp_path):
    with pytest.raises(FileNotFoundError, match="set download to true"):
        CIFAR10DataModule(str(tmp_path / "nowhere")).setup("fit")
    (cifar10 / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="damaged"):
        CIFAR10DataModule(str(cifar10)).setup("fit")


def test_failed_download_names_the_way_out(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ConnectionError, match="with no network here"):
        CIFAR10DataModule(str(tmp_path), download=True).prepare_data()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"shift": 32}, {"shift": -1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="must be at least"):
        CIFAR10DataModule(**options)


def test_flip_mirrors_some_and_leaves_the_others():
    torch.manual_seed(0)
    images = torch.arange(40 * 3 * 4 * 5).view(40, 3, 4, 5)
    flipped = random_flip(images)
    mirrored = [torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 10 < sum(mirrored) < 30


def test_shift_is_a_random_crop_after_reflection_padding():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (64, 3, 6, 7), dtype=torch.uint8)
    shifted = random_shift(images, 2)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").byte()
    found = set()
    for new, old in zip(shifted, padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(new, old[:, y : y + 6, x : x + 7])]
        assert places
        found.add(places[0])
    assert len(found) > 15
    assert shifted.dtype == torch.uint8


def test_augmentation_can_be_turned_off(cifar10):
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(CIFAR10DataModule(str(cifar10), flip=False, shift=0).augment(images), images)
    assert not torch.equal(CIFAR10DataModule(str(cifar10)).augment(images), images)
