"""What every data module of labelled images shares: loaders, augmentation on the device, a split for validation."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.common.batches import BatchDataModule
from datamodules.common.pictures import PictureDataset, find_pictures
from datamodules.common.tensors import TensorDataset


class ImageDataModule(BatchDataModule):
    """The base of the image data modules: a subclass fills the sets in `setup`, and may augment.

    Attributes:
        train_set: What is trained on; like the others, a dataset of images and labels that fetches whole batches.
        val_set: What is validated on; may be empty.
        test_set: What is tested on.
        num_classes: The number of classes, known once the data are loaded, like `class_names`.
        class_names: Their names, by label.
        shape: An image's `(channels, height, width)`.
        read: Makes such an image, uint8, of a picture file.
    """

    task = "classification"

    train_set: Dataset
    val_set: Dataset
    test_set: Dataset
    num_classes: int
    class_names: list[str]
    shape: tuple[int, int, int]
    read: Callable[[Path], Tensor]

    def augment(self, images: Tensor) -> Tensor:
        """Training images as the model is to see them: here, as they are."""
        return images

    def train_dataloader(self) -> DataLoader:
        """Shuffled training batches."""
        return self.train_loader(self.train_set)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Validation batches; none where nothing is split off for validation."""
        return self.eval_loader(self.val_set) if len(self.val_set) else []

    def test_dataloader(self) -> DataLoader:
        """Test batches."""
        return self.eval_loader(self.test_set)

    def predict_dataloader(self) -> DataLoader:
        """Test batches."""
        return self.predict_loader(self.test_set)

    def picture_dataloader(self, folder: str) -> DataLoader:
        """Batches of a folder's pictures, of any size and colour, made to look like the images trained on.

        Raises:
            FileNotFoundError: There is no such folder, or no file in it.
        """
        return self.predict_loader(PictureDataset(find_pictures(folder), self.read, self.shape))

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Augments a training batch, on the device it has just reached."""
        if not self.trainer.training or isinstance(batch, Tensor):
            return batch  # a tensor alone is the model's example input, for its summary and graph
        images, labels = batch
        return self.augment(images), labels

    def load_published(self, stage: str, load: Callable[[bool], tuple[Tensor, Tensor]]) -> None:
        """Fills the sets that a stage needs, of data that are published as a training and a test set.

        Validation is split off the training set by `val_size` and `split_seed`, which are hyperparameters too.

        Args:
            stage: Lightning's: train and validation are for "fit", validation for "validate", else it is the test set.
            load: Called with True for the training set, returns its images and labels.

        Raises:
            ValueError: Nothing would be left to train on.
        """
        if stage not in ("fit", "validate"):
            self.test_set = TensorDataset(*load(False))
            return
        images, labels = load(True)
        size, count = self.hparams.val_size, len(labels)
        if not 0 <= size < count:
            raise ValueError(f"val_size is {size}: it must be between 0 and {count - 1} images")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.hparams.split_seed))
        train, val = order[size:].sort().values, order[:size].sort().values
        self.train_set = TensorDataset(images[train], labels[train])
        self.val_set = TensorDataset(images[val], labels[val])
