"""CIFAR-10: 32x32 color images of ten kinds of animals and vehicles, in memory, augmented in batches on the device.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torchvision import datasets
from typing_extensions import override

from datamodules.common.base import ImageDataModule, download_failed
from datamodules.common.image_io import read_image
from datamodules.common.tensors import random_flip, random_shift
from lit_models.common.arguments import NonNegativeInt, PositiveInt, Range, check_arguments


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10: `(batch, 3, 32, 32)` uint8 images and int64 labels.

    Validation is split from the 50,000 training images by its own seed; the 10,000 test images are the published ones.

    Args:
        data_dir: torchvision's root: the folder with `cifar-10-batches-py`, or where it is downloaded to.
        download: Download the files into `data_dir` if they aren't there.
        batch_size: Batch size per process.
        val_size: Number of training images held out for validation; 0 trains on all, without validation.
        split_seed: Seed of that split.
        flip: Augmentation: random horizontal flip.
        shift: Augmentation: random shift of up to this many pixels along each axis; 0 is off.
        num_workers: Number of processes that fetch batches; 0 is the fastest, since the data are in memory.
        cache_on_device: Keep images and labels in the device's memory, and transfer only the indices of a batch.

    Raises:
        FileNotFoundError: The files aren't in `data_dir`, or are damaged, and `download` is off.
        ValueError: An argument is out of range.
        ConnectionError: The download failed.
    """

    resume_may_change = frozenset({"data_dir", "download", "num_workers", "cache_on_device"})

    def __init__(
        self,
        data_dir: str = "data",
        download: bool = False,
        batch_size: PositiveInt = 128,
        val_size: NonNegativeInt = 5000,
        split_seed: int = 0,
        flip: bool = True,
        shift: Annotated[int, Range(0, below=32)] = 4,
        num_workers: NonNegativeInt = 0,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(CIFAR10DataModule, locals())
        self.save_hyperparameters(logger=False)
        self.num_workers = num_workers
        self.shape = (3, 32, 32)
        self.read = partial(read_image, side=32, channels=3)

    @override
    def prepare_data(self) -> None:
        if self.hparams.download:
            self._open(train=True, download=True)

    @override
    def augment(self, images: Tensor) -> Tensor:
        images = random_flip(images) if self.hparams.flip else images
        return random_shift(images, self.hparams.shift) if self.hparams.shift else images

    @override
    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        data = self._open(train, download=False)
        self.class_names, self.num_classes = data.classes, len(data.classes)
        self.source = f"CIFAR-10 ({self.hparams.data_dir})"
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(data.targets, dtype=torch.int64)

    def _open(self, train: bool, download: bool) -> datasets.CIFAR10:
        root = self.hparams.data_dir
        try:
            return datasets.CIFAR10(root, train=train, download=download)
        except (RuntimeError, OSError) as error:
            if download:
                raise download_failed("CIFAR-10", root, error) from error
            raise FileNotFoundError(
                f"no CIFAR-10 in {root}, or damaged files: set download to true, or data_dir to the folder that holds "
                "cifar-10-batches-py"
            ) from error
