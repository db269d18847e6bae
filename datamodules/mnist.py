"""MNIST and its drop-in variants: 28x28 gray images, in memory, augmented in batches on the device.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998.

MNIST itself ships with this package, since its mirrors fail often; torchvision downloads the variants.
"""

import gzip
import hashlib
import lzma
import math
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from typing_extensions import override

from datamodules.common.base import ImageDataModule, download_failed
from datamodules.common.digits import BOX, EMNIST_BOX, DigitFileDataset, read_digits
from datamodules.common.image_io import read_garment
from datamodules.common.tensors import random_affine
from lit_models.common.arguments import Fraction, NonNegativeInt, PositiveInt, check_arguments
from lit_models.common.messages import format_list

SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
BUNDLED = Path(__file__).parent / "files"
MOST_CLASSES = 65536  # that labels of one's own may say
IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4"}  # by the third byte of a file
Variant = Literal[
    "MNIST",
    "FashionMNIST",
    "KMNIST",
    "QMNIST",
    "EMNIST-balanced",
    "EMNIST-byclass",
    "EMNIST-bymerge",
    "EMNIST-digits",
    "EMNIST-letters",
    "EMNIST-mnist",
]


class MNISTDataModule(ImageDataModule):
    """MNIST or a drop-in variant: `(batch, 1, 28, 28)` uint8 images and int64 labels.

    Validation is split from the training images by its own seed; the test set is the published one. Augmented training
    images are float in 0..1.

    Args:
        variant: Name of the data set. torchvision downloads all but MNIST: see `data_dir` and `download`.
        data_dir: A folder with the four IDX files (plain, `.gz` or `.xz`), the variant's folder above it, or
            torchvision's root above that. If not given, MNIST's are the bundled files, and a variant's are in `data`.
        download: Download the variant into `data_dir`, torchvision's root, if it isn't there.
        verify: Check MNIST's files in `data_dir` against the official SHA-256, not only their format. Without, they may
            be data of your own, with as many classes as their labels say.
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
        variant: Variant = "MNIST",
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
        self.kind, _, self.split = variant.partition("-")  # torchvision's class, and the part of EMNIST
        self.shape = (1, 28, 28)
        self.read = read_garment  # what fills the image; for digits and letters, see `file_dataset`

    @override
    def prepare_data(self) -> None:
        if self.kind == "MNIST" or not self.hparams.download or all(map(self._find, self._names())):
            return
        root, options = self.hparams.data_dir or "data", {"split": self.split} if self.split else {}
        try:
            for train in (True, False):
                getattr(datasets, self.kind)(root, train=train, download=True, **options)
        except (RuntimeError, OSError, ValueError, zlib.error) as error:
            raise download_failed(self.kind, root, error) from error

    @override
    def augment(self, images: Tensor) -> Tensor:
        return random_affine(images, self.hparams.rotation, self.hparams.shift, self.hparams.scale)

    @override
    def file_dataset(self, files: list[Path]) -> Dataset:
        if self.kind in ("FashionMNIST", "KMNIST"):
            return super().file_dataset(files)
        read = partial(read_digits, box=EMNIST_BOX if self.kind == "EMNIST" else BOX)
        return DigitFileDataset(files, read, self.shape)

    @override
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        part = "train" if train else "test"
        images, images_file = self._read(f"{part} images")
        labels, labels_file = self._read(f"{part} labels")
        if len(images) != len(labels):
            raise ValueError(f"{images_file} holds {len(images)} images, but {labels_file} {len(labels)} labels")
        if self.kind == "EMNIST":
            images = images.transpose(1, 2)  # it lies on its side in the files
        if self.split == "letters":
            labels = labels - 1  # 1..26 in the files
        self.class_names = self._class_names(labels)
        self.num_classes = len(self.class_names)
        if len(wrong := ((labels < 0) | (labels >= self.num_classes)).nonzero()):
            first = int(wrong[0])
            raise ValueError(f"{labels_file}: label {int(labels[first])} at {first}, outside 0..{self.num_classes - 1}")
        where = "in the package" if images_file.parent == BUNDLED else images_file.parent
        self.source = f"{self.hparams.variant} ({where})"
        return images.unsqueeze(1).contiguous(), labels

    def _class_names(self, labels: Tensor) -> list[str]:
        """The names of the classes; numbers up to the largest label of training or test in data of one's own."""
        if self.kind == "EMNIST":
            return [name for name in datasets.EMNIST.classes_split_dict[self.split] if name != "N/A"]
        if self.kind in ("FashionMNIST", "KMNIST"):
            return list(getattr(datasets, self.kind).classes)
        if self.kind == "QMNIST" or self.hparams.verify:
            return [str(digit) for digit in range(10)]
        both = [labels, *(self._read(part)[0] for part in ("train labels", "test labels") if self._find(part))]
        present = torch.cat(both).unique().tolist()
        count = min(max(2, present[-1] + 1), MOST_CLASSES)
        if absent := sorted({*range(count)} - {*present}):
            warnings.warn(
                f"no image has the label {format_list([str(label) for label in absent])}: each number from 0 to the "
                "largest label is a class; number them without gaps",
                stacklevel=2,
            )
        return [str(label) for label in range(count)]

    def _names(self) -> dict[str, str]:
        """The names of the four files."""
        prefix = {"QMNIST": "qmnist-", "EMNIST": f"emnist-{self.split}-"}.get(self.kind, "")
        test, kind = "test" if prefix else "t10k", "idx2-int" if self.kind == "QMNIST" else "idx1-ubyte"
        return {
            f"{part} {what}": f"{prefix}{start}-{what}-{'idx3-ubyte' if what == 'images' else kind}"
            for part, start in (("train", "train"), ("test", test))
            for what in ("images", "labels")
        }

    def _folders(self) -> list[Path]:
        """Where the files may be."""
        if self.hparams.data_dir is None and self.kind == "MNIST":
            return [BUNDLED]
        root = Path(self.hparams.data_dir or "data")
        return [root, root / self.kind / "raw", root / "raw", root / self.kind, root / "gzip"]  # as EMNIST's archive

    def _find(self, which: str) -> Path | None:
        """The path of one of the four files, "train images" and so on, if it is there."""
        name = self._names()[which]
        names = [known + end for known in (name, name.replace("-idx", ".idx")) for end in ("", ".gz", ".xz")]
        return next((path for folder in self._folders() for one in names if (path := folder / one).is_file()), None)

    def _read(self, which: str) -> tuple[Tensor, Path]:
        """One of the four files, and its path."""
        name, variant = self._names()[which], self.hparams.variant
        path = self._find(which)
        if path is None:
            way_out = "without data_dir, the files that come with the package are used"
            way_out = way_out if variant == "MNIST" else "set download to true, or data_dir to the folder that has it"
            raise FileNotFoundError(
                f"no {name} (plain, .gz or .xz) in {', '.join(map(str, self._folders()))}; {way_out}"
            )
        verify = variant == "MNIST" and self.hparams.verify
        dimensions = 3 if which.endswith("images") else 2 if variant == "QMNIST" else 1
        content = read_idx(path, dimensions, SHA256[name] if verify else None)
        if dimensions == 3:
            return content, path
        if self.kind in ("FashionMNIST", "KMNIST"):  # whose files have MNIST's names
            raw = bytes([0, 0, 8, 1]) + len(content).to_bytes(4, "big") + content.numpy().tobytes()
            if hashlib.sha256(raw).hexdigest() == SHA256[name]:
                raise ValueError(f"{path} is MNIST's, not that of {variant}: set data_dir to the folder of {variant}")
        return content[:, 0].long() if dimensions == 2 else content.long(), path  # the others are of the writer


def read_idx(path: Path, dimensions: int, sha256: str | None = None) -> Tensor:
    """An IDX file, plain, `.gz` or `.xz`; checked, unless None, against an SHA-256.

    It holds bytes, which become uint8, or, if it has no more than two dimensions, whole numbers of up to 32 bits, which
    become int64.
    """
    unpack = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with unpack(path, "rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    # A header of 0, 0, the type and the number of dimensions, then each dimension in 4 bytes.
    start, kinds = 4 + 4 * dimensions, IDX_TYPES if dimensions < 3 else {8: ">u1"}
    if len(content) < start or content[:2] != b"\0\0" or content[2] not in kinds or content[3] != dimensions:
        raise ValueError(f"{path} is not an IDX file of bytes with {dimensions} dimension(s)")
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    kind = np.dtype(kinds[content[2]])
    size, announced = len(content) - start, math.prod(shape) * kind.itemsize
    if size != announced:
        state = "truncated" if size < announced else "too long"
        raise ValueError(f"{path} is {state}: {size} bytes of data, {announced} announced")
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the official file (SHA-256 differs); verify=False takes data of your own")
    if kind == np.uint8:
        return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
    return torch.from_numpy(np.frombuffer(content, kind, offset=start).astype(np.int64)).view(shape)
