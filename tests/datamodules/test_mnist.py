import gzip
import hashlib
import logging
import lzma
import struct
from functools import partial

import pytest
import torch
from lightning import Trainer

from datamodules import BatchDataset, MNISTDataModule
from datamodules.common.tensors import random_affine
from datamodules.mnist import BUNDLED, SHA256
from lit_models import Net


def idx(array):
    """The bytes of an IDX file."""
    return struct.pack(f">BBBB{array.dim()}I", 0, 0, 8, array.dim(), *array.shape) + bytes(array.flatten().tolist())


def write_mnist(folder, count=20, labels=None, prefix="", dot=False, compress=False):
    folder.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)

    def write(name, array):
        content, name = idx(array), name.replace("-idx", ".idx") if dot else name
        (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)

    for part in ("train", "t10k") if not prefix else ("train", "test"):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=draw)
        digits = torch.arange(count) % 10 if labels is None else labels
        write(f"{prefix}{part}-images-idx3-ubyte", images)
        write(f"{prefix}{part}-labels-idx1-ubyte", digits)


@pytest.fixture(scope="module")
def mnist():
    data = MNISTDataModule(rotation=10, shift=2, scale=0.1)
    data.setup("fit")
    data.setup("test")
    return data


@pytest.mark.parametrize("name", SHA256)
def test_bundled_files_are_the_official_ones(name):
    assert hashlib.sha256(lzma.decompress((BUNDLED / f"{name}.xz").read_bytes())).hexdigest() == SHA256[name]


def test_split_is_disjoint_seeded_and_stable(mnist):
    assert (len(mnist.train_set), len(mnist.val_set), len(mnist.test_set)) == (55_000, 5_000, 10_000)
    everything = MNISTDataModule(val_size=0)
    everything.setup("fit")
    together = torch.cat([mnist.train_set.images, mnist.val_set.images]).flatten(1)
    keys = together.long() @ torch.randint(1, 2**40, (784,), generator=torch.Generator().manual_seed(0))
    whole = everything.train_set.images.flatten(1).long() @ torch.randint(
        1, 2**40, (784,), generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(keys.sort().values, whole.sort().values)
    again, other = MNISTDataModule(), MNISTDataModule(split_seed=1)
    again.setup("validate")
    other.setup("validate")
    assert torch.equal(again.val_set.images, mnist.val_set.images)
    assert not torch.equal(other.val_set.images, mnist.val_set.images)
    # Known labels of the first validation images: the split must not move from one release to the next.
    assert mnist.val_set.labels[:10].tolist() == [0, 1, 5, 3, 9, 6, 2, 3, 8, 1]


def test_batches_are_bytes_with_the_channel_second(mnist):
    images, labels = next(iter(mnist.test_dataloader()))
    assert images.shape == (128, 1, 28, 28)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_order_of_test_and_training(mnist):
    labels = torch.cat([labels for _, labels in mnist.test_dataloader()])
    assert torch.equal(labels, mnist.test_set.labels)
    numbers = MNISTDataModule()
    numbers.train_set = BatchDataset(torch.arange(100), torch.arange(100))
    loader, orders = numbers.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([labels for _, labels in loader]))
    assert not torch.equal(*orders)
    assert torch.equal(*(order.sort().values for order in orders))


def test_data_order_leaves_the_global_generator_alone():
    numbers = MNISTDataModule()
    numbers.train_set = BatchDataset(torch.arange(10), torch.arange(10))
    loader = numbers.train_dataloader()
    state = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_affine_moves_a_pixel_to_where_it_should_go(monkeypatch):
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[0, 0, 10, 20] = 255
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.tensor([[0.5], [0.5], [1.0], [0.5]]))
    moved = random_affine(image, degrees=0, shift=3, scale=0)
    assert moved[0, 0, 10, 17] == pytest.approx(1)  # what is shown at x comes from x + 3
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.tensor([[1.0], [0.5], [0.5], [0.5]]))
    turned = random_affine(image, degrees=90, shift=0, scale=0)
    assert torch.allclose(turned, torch.rot90(image.float() / 255, dims=(2, 3)), atol=1e-4)


def test_affine_of_an_oblong_image_keeps_right_angles(monkeypatch):
    image = torch.zeros(1, 1, 20, 40)
    image[..., 4:16, 10:30] = 1
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.tensor([[1.0], [0.5], [0.5], [0.5]]))
    turned = random_affine(image, degrees=90, shift=0, scale=0)
    shown = turned[0, 0] > 0.5
    rows, columns = shown.any(1).nonzero(), shown.any(0).nonzero()
    assert (len(rows), len(columns)) == (20, 12)


def test_augmentation_differs_within_a_batch_and_only_in_training(mnist):
    images = mnist.train_set.images[:1].expand(8, 1, 28, 28)
    torch.manual_seed(0)
    moved = random_affine(images, 10, 2, 0.1)
    assert all(not torch.equal(moved[0], other) for other in moved[1:])
    assert 0 <= moved.min() <= moved.max() <= 1

    seen = {}

    class Watch(Net):
        def training_step(self, batch, batch_idx):
            seen["train"] = batch[0]
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen["val"] = batch[0]
            return super().validation_step(batch, batch_idx)

    trainer = Trainer(
        fast_dev_run=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Watch(optimizer=partial(torch.optim.SGD, lr=0.1)), datamodule=mnist)
    assert seen["train"].dtype == torch.float32
    assert torch.equal(seen["val"], mnist.val_set.images[:128])


@pytest.mark.parametrize("compress", [None, gzip, lzma])
def test_own_files(tmp_path, compress):
    raw = tmp_path / "MNIST" / "raw"
    write_mnist(raw)
    if compress:
        for file in list(raw.iterdir()):
            file.with_name(file.name + {gzip: ".gz", lzma: ".xz"}[compress]).write_bytes(
                compress.compress(file.read_bytes())
            )
            file.unlink()
    for folder in (tmp_path, raw):
        data = MNISTDataModule(data_dir=str(folder), verify=False, val_size=4)
        data.setup("fit")
        assert (len(data.train_set), len(data.val_set)) == (16, 4)


@pytest.mark.parametrize("compress", [False, True])
def test_files_with_a_dot_in_their_names(tmp_path, compress):
    write_mnist(tmp_path, dot=True, compress=compress)
    data = MNISTDataModule(data_dir=str(tmp_path), verify=False, val_size=4)
    data.setup("fit")
    assert sorted(data.train_set.labels.tolist() + data.val_set.labels.tolist()) == sorted([*range(10)] * 2)


@pytest.mark.parametrize("classes", [3, 36])
def test_own_files_have_as_many_classes_as_their_labels_say(classes, tmp_path, caplog):
    write_mnist(tmp_path, count=72, labels=torch.arange(72) % classes)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(torch.zeros(72, dtype=torch.uint8)))
    with caplog.at_level(logging.INFO, "lit_models"):
        for stage in ("fit", "test"):
            data = MNISTDataModule(data_dir=str(tmp_path), verify=False, val_size=8)
            data.setup(stage)
            assert data.class_names == [str(label) for label in range(classes)]
    assert [record.getMessage() for record in caplog.records] == [
        f"MNIST ({tmp_path}): 64 train and 8 val images, {classes} classes",
        f"MNIST ({tmp_path}): 72 test images, {classes} classes",
    ]
    with pytest.raises(ValueError, match=f"has {classes} classes, but num_classes of Net is 10: to train"):
        Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).test(Net(), datamodule=data)


def test_labels_with_gaps_are_warned_of(tmp_path):
    write_mnist(tmp_path, labels=torch.tensor([1, 3] * 10))
    data = MNISTDataModule(data_dir=str(tmp_path), verify=False, val_size=4)
    with pytest.warns(UserWarning, match="no image has the label 0, 2: each number from 0 to the largest label"):
        data.setup("fit")
    assert data.num_classes == 4


def test_labels_of_four_bytes(tmp_path):
    write_mnist(tmp_path)
    for name, labels in (("train", [*range(5)] * 4), ("t10k", [2**30] * 20)):
        header = struct.pack(">BBBBI", 0, 0, 12, 1, 20)
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(header + struct.pack(">20i", *labels))
    data = MNISTDataModule(data_dir=str(tmp_path), verify=False, val_size=4)
    with (
        pytest.warns(UserWarning, match="no image has the label 5, 6, 7, 8, 9, "),
        pytest.raises(ValueError, match=f"label {2**30} at 0, outside"),
    ):
        data.setup("test")


def damage(file, how):
    content = file.read_bytes()
    if how == "truncated":
        file.write_bytes(content[:-5])
    elif how == "too long":
        file.write_bytes(content + b"x")
    elif how == "not an IDX":
        file.write_bytes(b"PNG" + content[3:])
    elif how == "not an IDX file":
        file.write_bytes(b"")


@pytest.mark.parametrize("how", ["truncated", "too long", "not an IDX", "not an IDX file"])
def test_damaged_files_are_refused_by_name(tmp_path, how):
    write_mnist(tmp_path)
    damage(tmp_path / "train-images-idx3-ubyte", how)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte is {how}"):
        MNISTDataModule(data_dir=str(tmp_path), verify=False, val_size=4).setup("fit")


def test_altered_files_and_wrong_labels_are_refused(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is not the official file"):
        MNISTDataModule(data_dir=str(tmp_path)).setup("fit")
    write_mnist(tmp_path, labels=torch.tensor([3, 12] * 10))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte: label 12 at 1, outside 0\.\.9"):
        MNISTDataModule("KMNIST", data_dir=str(tmp_path), val_size=4).setup("fit")
    for name in ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"):
        (tmp_path / name).unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    (tmp_path / "t10k-images-idx3-ubyte.xz").write_bytes(lzma.compress(b"x" * 1000)[:-20])
    for stage, name in (("fit", "train-images-idx3-ubyte.gz"), ("test", "t10k-images-idx3-ubyte.xz")):
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            MNISTDataModule(data_dir=str(tmp_path), verify=False).setup(stage)
    with pytest.raises(FileNotFoundError, match="no train-images-idx3-ubyte"):
        MNISTDataModule(data_dir=str(tmp_path / "nowhere")).setup("fit")


@pytest.mark.parametrize(
    ("variant", "folder", "prefix", "classes"),
    [
        ("FashionMNIST", "FashionMNIST", "", 10),
        ("KMNIST", "KMNIST", "", 10),
        ("EMNIST-letters", "EMNIST", "emnist-letters-", 26),
        ("EMNIST-digits", "EMNIST", "emnist-digits-", 10),
        ("EMNIST-mnist", "EMNIST", "emnist-mnist-", 10),
        ("EMNIST-balanced", "EMNIST", "emnist-balanced-", 47),
        ("EMNIST-bymerge", "EMNIST", "emnist-bymerge-", 47),
        ("EMNIST-byclass", "EMNIST", "emnist-byclass-", 62),
    ],
)
def test_variants_in_any_folder_of_theirs(tmp_path, variant, folder, prefix, classes):
    labels = torch.arange(70) % classes + (variant == "EMNIST-letters")
    write_mnist(tmp_path / folder / "raw", count=70, labels=labels, prefix=prefix, compress=variant == "EMNIST-mnist")
    for data_dir in (tmp_path, tmp_path / folder, tmp_path / folder / "raw"):
        data = MNISTDataModule(variant, data_dir=str(data_dir), val_size=4, download=True)
        data.prepare_data()  # which has nothing to do
        data.setup("fit")
        data.setup("test")
        assert data.num_classes == len(data.class_names) == classes
        assert data.test_set.labels.tolist() == [label % classes for label in range(70)]
    if variant == "EMNIST-balanced":
        assert "".join(data.class_names) == "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
    if variant == "FashionMNIST":
        assert data.class_names[9] == "Ankle boot"
    if variant == "EMNIST-letters":
        assert data.class_names[0].lower() == "a"


def test_missing_variant_names_the_way_out(tmp_path):
    with pytest.raises(FileNotFoundError, match="set download to true"):
        MNISTDataModule("KMNIST", data_dir=str(tmp_path)).setup("fit")


def test_failed_download_names_the_way_out(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(ConnectionError, match="with no network here"):
        MNISTDataModule("KMNIST", data_dir=str(tmp_path), download=True).prepare_data()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"scale": 1.0}, {"scale": -0.1}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="it must be"):
        MNISTDataModule(**options)


def test_validation_must_leave_something_to_train_on():
    with pytest.raises(ValueError, match="between 0 and 59999"):
        MNISTDataModule(val_size=60_000).setup("fit")


def test_emnist_stands_upright(tmp_path):
    write_mnist(tmp_path / "EMNIST" / "raw", prefix="emnist-digits-")
    data = MNISTDataModule("EMNIST-digits", data_dir=str(tmp_path), val_size=0)
    data.setup("fit")
    raw = (tmp_path / "EMNIST" / "raw" / "emnist-digits-train-images-idx3-ubyte").read_bytes()[16:]
    stored = torch.tensor(list(raw), dtype=torch.uint8).view(20, 28, 28)
    assert torch.equal(data.train_set.images[:, 0], stored.transpose(1, 2))


def test_qmnist_keeps_the_digit_of_its_labels(tmp_path):
    folder = tmp_path / "QMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        images, labels = torch.zeros(20, 28, 28, dtype=torch.uint8), torch.full((20, 8), 77, dtype=torch.int32)
        labels[:, 0] = torch.arange(20) % 10
        (folder / f"qmnist-{part}-images-idx3-ubyte").write_bytes(idx(images))
        numbers = struct.pack(">160i", *labels.flatten().tolist())
        (folder / f"qmnist-{part}-labels-idx2-int").write_bytes(struct.pack(">BBBBII", 0, 0, 12, 2, 20, 8) + numbers)
    data = MNISTDataModule("QMNIST", data_dir=str(tmp_path), val_size=0)
    data.setup("fit")
    assert data.train_set.labels.tolist() == [*range(10), *range(10)]


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_files_of_mnist_are_not_taken_for_those_of_a_variant(stage):
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte\.xz is MNIST's, not that of KMNIST"):
        MNISTDataModule(variant="KMNIST", data_dir=str(BUNDLED)).setup(stage)
