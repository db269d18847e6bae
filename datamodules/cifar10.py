"""CIFAR-10: 32x32 colour images of ten kinds of animals and vehicles, in memory, augmented a batch at a time.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from functools import partial
from typing import Annotated

import torch
from torch import Tensor
from torchvision import datasets

from datamodules.common.base import ImageDataModule
from datamodules.common.pictures import read_square
from datamodules.common.tensors import random_flip, random_shift
from lit_models.common.arguments import NonNegativeInt, PositiveInt, Range, check_arguments


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10: `(batch, 3, 32, 32)` uint8 images and int64 labels.

    Validation is split from the 50,000 training images by its own seed; the 10,000 test images are the published ones.

    Args:
        data_dir: torchvision's root: the folder with `cifar-10-batches-py`, or where it is downloaded to.
        download: Download the files into `data_dir` if they aren't there.
        batch_size: Images a batch.
        val_size: Images split off the training set for validation; 0 trains on all of them, without validation.
        split_seed: Seed of that split.
        flip: Augmentation: left and right exchanged at random.
        shift: Augmentation: up to this many pixels along each axis, 0 to 31. 0 is off.
        num_workers: Processes that fetch batches. The data lie in memory, so 0 is the fastest.
        cache_on_device: Whether images and labels are kept in the device's memory, a GPU's for one: nothing is left to
            be transferred but the indices of a batch.

    Raises:
        FileNotFoundError: The files aren't in `data_dir`, or are damaged, and `download` is off.
        ValueError: An option is out of range.
        ConnectionError: The download failed.
    """

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
        self.read = partial(read_square, side=32, channels=3)

    def prepare_data(self) -> None:
        """Downloads the files, once a machine."""
        if self.hparams.download:
            self._open(train=True, download=True)

    def setup(self, stage: str) -> None:
        """Loads what the stage needs: train and validation to fit, validation to validate, else the test set."""
        self.load_published(stage, self._load)

    def augment(self, images: Tensor) -> Tensor:
        """Training images, each mirrored and moved at random."""
        images = random_flip(images) if self.hparams.flip else images
        return random_shift(images, self.hparams.shift) if self.hparams.shift else images

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images `(count, 3, 32, 32)` uint8 and labels `(count,)` int64."""
        data = self._open(train, download=False)
        self.class_names, self.num_classes = data.classes, len(data.classes)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return images, torch.tensor(data.targets, dtype=torch.int64)

    def _open(self, train: bool, download: bool) -> datasets.CIFAR10:
        root = self.hparams.data_dir
        try:
            return datasets.CIFAR10(root, train=train, download=download)
        except (RuntimeError, OSError) as error:
            if download:
                raise ConnectionError(
                    f"could not download CIFAR-10 into {root}: {error}; with no network here, download it elsewhere "
                    "with torchvision and give the folder as data_dir"
                ) from error
            raise FileNotFoundError(
                f"no CIFAR-10 in {root}, or damaged files: set download to true, or data_dir to the folder that holds "
                "cifar-10-batches-py"
            ) from error
