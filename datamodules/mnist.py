"""MNIST and its drop-in variants: 28x28 gray images, in memory, augmented in batches on the device.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.

MNIST itself ships with this package, since its mirrors fail often; torchvision downloads the variants.
"""

import gzip
import hashlib
import lzma
import math
import zlib
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from typing_extensions import override

from datamodules.common.base import ImageDataModule, download_failed
from datamodules.common.digits import DigitFileDataset, read_digits
from datamodules.common.image_io import find_images, read_garment
from datamodules.common.tensors import random_affine
from lit_models.common.arguments import Fraction, NonNegativeInt, PositiveInt, check_arguments

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
BUNDLED = Path(__file__).parent / "files"


class MNISTDataModule(ImageDataModule):
    """MNIST or a drop-in variant: `(batch, 1, 28, 28)` uint8 images and int64 labels.

    Validation is split from the training images by its own seed; the test set is the published one. Augmented training
    images are float in 0..1.

    Args:
        variant: Name of the data set. torchvision reads all but MNIST: see `data_dir` and `download`.
        data_dir: For MNIST, a folder with the four IDX files (plain, `.gz` or `.xz`), or torchvision's root above it,
            to use instead of the bundled files. For a variant, torchvision's root (`data` if not given).
        download: Download the variant into `data_dir` if it isn't there.
        verify: Check MNIST's files in `data_dir` against the official SHA-256, not only their format.
        batch_size: Batch size per process.
        val_size: Number of training images held out for validation; 0 trains on all, without validation.
        split_seed: Seed of that split.
        rotation: Augmentation: random rotation of up to this many degrees; 0 is off.
        shift: Augmentation: random shift of up to this many pixels along each axis; 0 is off.
        scale: Augmentation: random scaling by a factor of 1 - scale..1 + scale; 0 is off.
        num_workers: Number of processes that fetch batches; 0 is the fastest, since the data are in memory.
        cache_on_device: Keep images and labels in the device's memory, and transfer only the indices of a batch.

    Raises:
        FileNotFoundError: The files aren't in `data_dir`, or the variant isn't and `download` is off.
        ValueError: A file is truncated, altered or not IDX; a label or an argument is out of range.
        ConnectionError: The download failed.
    """

    resume_may_change = frozenset({"data_dir", "download", "num_workers", "cache_on_device"})

    def __init__(
        self,
        variant: Literal["MNIST", "FashionMNIST", "KMNIST", "QMNIST", "EMNIST-letters", "EMNIST-digits"] = "MNIST",
        data_dir: str | None = None,
        download: bool = False,
        verify: bool = True,
        batch_size: PositiveInt = 128,
        val_size: NonNegativeInt = 5000,
        split_seed: int = 0,
        rotation: float = 0.0,
        shift: float = 0.0,
        scale: Fraction = 0.0,
        num_workers: NonNegativeInt = 0,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(MNISTDataModule, locals())
        self.save_hyperparameters(logger=False)
        self.num_workers = num_workers
        self.shape = (1, 28, 28)
        self.read = read_garment  # what fills the image; for digits and letters, see `image_dataloader`

    @override
    def prepare_data(self) -> None:
        if self.hparams.variant != "MNIST" and self.hparams.download:
            self._variant(train=True, download=True)
            self._variant(train=False, download=True)

    @override
    def augment(self, images: Tensor) -> Tensor:
        return random_affine(images, self.hparams.rotation, self.hparams.shift, self.hparams.scale)

    @override
    def image_dataloader(self, folder: str) -> DataLoader:
        if self.hparams.variant in ("FashionMNIST", "KMNIST"):
            return super().image_dataloader(folder)
        return self._loader(DigitFileDataset(find_images(folder), read_digits, self.shape), batch_size=self.batch_size)

    @override
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        if self.hparams.variant == "MNIST":
            self.class_names = [str(digit) for digit in range(10)]
            part = "train" if train else "t10k"
            images, images_file = self._read(f"{part}-images-idx3-ubyte", dimensions=3)
            labels, labels_file = self._read(f"{part}-labels-idx1-ubyte", dimensions=1)
            if len(images) != len(labels):
                raise ValueError(f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels")
            where = str(labels_file)
        else:
            data = self._variant(train, download=False)
            images, labels, self.class_names = data.data, data.targets, list(data.classes)
            where = f"the labels of {self.hparams.variant}"
            if self.hparams.variant == "QMNIST":
                labels = labels[:, 0]  # the other columns are of the writer
                self.class_names = [str(digit) for digit in range(10)]
            if self.hparams.variant.startswith("EMNIST"):
                images = images.transpose(1, 2)  # torchvision delivers EMNIST lying on its side
            if self.hparams.variant == "EMNIST-letters":
                labels = labels - 1  # 1..26 in the files, whose first name is "N/A"
                self.class_names = self.class_names[1:]
        self.num_classes = len(self.class_names)
        if len(wrong := ((labels < 0) | (labels >= self.num_classes)).nonzero()):
            first = int(wrong[0])
            raise ValueError(f"{where}: label {int(labels[first])} at {first}, outside 0..{self.num_classes - 1}")
        return images.unsqueeze(1).contiguous(), labels.long()

    def _read(self, name: str, dimensions: int) -> tuple[Tensor, Path]:
        """A file of MNIST, from `data_dir` or the package, and its path."""
        root = self.hparams.data_dir
        folders = [BUNDLED] if root is None else [Path(root), Path(root) / "MNIST" / "raw", Path(root) / "raw"]
        found = [path for folder in folders for end in ("", ".gz", ".xz") if (path := folder / (name + end)).is_file()]
        if not found:
            raise FileNotFoundError(
                f"no {name} (plain, .gz or .xz) in {', '.join(map(str, folders))}; without data_dir, the files that "
                "come with the package are used"
            )
        return read_idx(found[0], dimensions, SHA256[name] if self.hparams.verify else None), found[0]

    def _variant(self, train: bool, download: bool) -> datasets.MNIST:
        name, _, split = self.hparams.variant.partition("-")
        root = self.hparams.data_dir or "data"
        options = {"split": split} if split else {}
        try:
            return getattr(datasets, name)(root, train=train, download=download, **options)
        except (RuntimeError, OSError, ValueError, zlib.error) as error:
            if download:
                raise download_failed(name, root, error) from error
            if "not found" in str(error):
                raise FileNotFoundError(f"no {name} in {root}: set download to true, or data_dir to it") from error
            raise ValueError(f"the files of {name} in {root} are damaged: {error}; delete them") from error


def read_idx(path: Path, dimensions: int, sha256: str | None = None) -> Tensor:
    """An IDX file of bytes, plain, `.gz` or `.xz`, as a uint8 tensor; checked, unless None, against an SHA-256."""
    unpack = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with unpack(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    # A header of 0, 0, the type (8: unsigned byte) and the number of dimensions, then each dimension in 4 bytes.
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path} is not an IDX file of bytes with {dimensions} dimension(s)")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) - start != math.prod(shape):
        state = "truncated" if len(content) - start < math.prod(shape) else "too long"
        raise ValueError(f"{path} is {state}: {len(content) - start} bytes of data, {math.prod(shape)} announced")
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the official file (SHA-256 differs); verify=False takes data of your own")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
