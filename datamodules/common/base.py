"""Base classes of the data modules: loaders of whole batches that resume exactly, and augmentation on the device."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from datamodules.common.image_io import ImageFileDataset, find_images
from datamodules.common.samplers import EpochSampler, EvenBatches, WholeBatches, world_and_rank
from datamodules.common.tensors import BatchDataset
from lit_models.common.arguments import plain_hyperparameters
from lit_models.common.messages import format_list, inform


class BatchDataModule(LightningDataModule):
    """The base of all data modules: a subclass fills the sets in `setup`.

    The order of the training data depends on the seed and the epoch alone, and the checkpoint stores the position in
    it, so that a run that is resumed within an epoch trains on the rest of it. With several processes, each gets its
    own share of every batch.

    The hyperparameters must include `batch_size`, per process, unless the property is overridden, and may include
    `cache_on_device`. A set is a dataset whose `__getitems__` returns a whole batch; `val_set` may be empty.
    """

    task: ClassVar[str]  # what the data are for, such as "classification"; compared with the model's
    resume_may_change: ClassVar[frozenset[str]]  # hyperparameters that say where data are and how they are read
    from_data: ClassVar[frozenset[str]] = frozenset()  # hyperparameters that, where None, are found in the data
    train_set: Dataset
    val_set: Dataset
    test_set: Dataset
    resumable = True  # by its own state, so that Lightning's warning about its loaders does not apply
    num_workers: int = 0  # processes that fetch batches; 0 is the fastest for data in memory
    order_seed: int | None = None  # of the training order; torch's seed when training starts
    position = (0, 0)  # the epoch at which a resumed run starts, and the number of its batches that are done

    @override
    def train_dataloader(self) -> DataLoader:
        if self.order_seed is None:
            seed = torch.initial_seed() % 2**32
            self.order_seed = seed if self.trainer is None else self.trainer.strategy.broadcast(seed)
        (epoch, batch), size = self.position, self.batch_size
        sampler = self.sampler(self.train_set, self.order_seed, epoch, skip=batch * size)
        if self.trainer is not None:  # which may ask for a new loader in every epoch
            sampler.set_epoch(max(epoch, self.trainer.current_epoch))
        return self._loader(self._cached(self.train_set), batch_size=size, sampler=sampler)

    @override
    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self.eval_loader(self.val_set) if len(self.val_set) else []

    @override
    def test_dataloader(self) -> DataLoader:
        return self.eval_loader(self.test_set)

    @override
    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.test_set, batch_size=self.batch_size)  # Lightning tracks the index of every item

    @override
    def state_dict(self) -> dict[str, Any]:
        if self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current.processed
        # An epoch counts as started until all that belongs to its end is done, its last checkpoint too.
        within = epochs.processed < epochs.started and batches < self.trainer.num_training_batches
        epoch, batch = (epochs.started - 1, batches) if within else (epochs.started, 0)
        return {"order_seed": self.order_seed, "epoch": epoch, "batch": batch, "batch_size": self._global_batch_size()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.trainer is None or not self.trainer.training:
            return
        if state["batch"] and state["batch_size"] != self._global_batch_size():
            raise ValueError(
                f"the checkpoint is of the middle of an epoch, with batches of {state['batch_size']} over all "
                f"processes, not {self._global_batch_size()}: go on with as many, or from the end of an epoch"
            )
        self.order_seed, self.position = state["order_seed"], (state["epoch"], state["batch"])

    @override
    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self.order_seed, self.position = None, (0, 0)

    @override
    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(plain_hyperparameters(type(self), hp))

    @property
    def batch_size(self) -> int:
        """Batch size per process; Lightning's BatchSizeFinder sets it."""
        return self.hparams.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.hparams.batch_size = size

    def sampler(self, dataset: Dataset, seed: int, epoch: int, skip: int) -> EpochSampler:
        """The sampler of the training data, see EpochSampler."""
        return EpochSampler(dataset, seed, epoch, skip)

    def eval_loader(self, dataset: Dataset) -> DataLoader:
        """A loader of batches in order, each item exactly once, whatever the number of processes."""
        dataset = self._cached(dataset)
        if world_and_rank()[0] == 1:
            return self._loader(dataset, batch_size=self.batch_size)
        return self._loader(WholeBatches(dataset), batch_size=None, sampler=EvenBatches(dataset, self.batch_size))

    def _global_batch_size(self) -> int:
        return self.batch_size * self.trainer.world_size

    def _cached(self, dataset: Dataset) -> Dataset:
        """The dataset, in the device's memory with `cache_on_device`."""
        if not self.hparams.get("cache_on_device"):
            return dataset
        if self.num_workers:
            raise ValueError(
                f"cache_on_device: these data are read by {self.num_workers} worker process(es), which cannot reach "
                "a device's memory: set num_workers to 0, or leave cache_on_device out"
            )
        if self.trainer is None:
            raise ValueError("cache_on_device: without a Trainer there is no device: leave it out")
        return dataset.to(self.trainer.strategy.root_device)

    def _loader(self, dataset: Dataset, **options: Any) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available() and not self.hparams.get("cache_on_device"),
            persistent_workers=self.num_workers > 0,
            collate_fn=whole_batch,
            # A loader draws the seed of its workers, by default from the global generator, which the model uses.
            generator=torch.Generator().manual_seed(torch.initial_seed() % 2**63),
            **options,
        )


class ImageDataModule(BatchDataModule):
    """The base of the image data modules: a subclass has `load` or fills the sets in `setup`, and may have `augment`.

    Validation is split off the training set of `load` by the hyperparameters `val_size` and `split_seed`.
    """

    task = "classification"
    num_classes: int  # like the class names, set by `setup`
    class_names: list[str]  # by label
    shape: tuple[int, int, int]  # of an image, (channels, height, width)
    read: Callable[[Path], Tensor]  # an image file as a uint8 tensor of that shape
    source: str  # what `load` has read

    def augment(self, images: Tensor) -> Tensor:
        """Augmented training images, of the same shape; here, unchanged."""
        return images

    @override
    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        if not self.trainer.training or isinstance(batch, Tensor):
            return batch  # a tensor alone is the model's example input, for its summary and graph
        images, labels = batch
        return self.augment(images), labels

    def image_dataloader(self, *images: str | Path) -> DataLoader:
        """A loader of image files, or of those in folders, of any size, brought to the shape of the training images."""
        return self._loader(self.file_dataset(find_all(images)), batch_size=self.batch_size)

    def file_dataset(self, files: list[Path]) -> Dataset:
        """Image files as a dataset of images and their names."""
        return ImageFileDataset(files, self.read, self.shape)

    def load(self, train: bool) -> tuple[Tensor, Tensor]:
        """Images `(count, *shape)` uint8 and labels `(count,)` int64 of a published training or test set."""
        raise NotImplementedError

    @override
    def setup(self, stage: str) -> None:
        images, labels = self.load(train=stage in ("fit", "validate"))
        if stage not in ("fit", "validate"):
            self.test_set = BatchDataset(images, labels)
            inform(f"{self.source}: {len(labels):,} test images, {self.num_classes} classes")
            return
        size, count = self.hparams.val_size, len(labels)
        if size >= count:
            raise ValueError(f"val_size is {size}: it must be between 0 and {count - 1} images")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.hparams.split_seed))
        train, val = order[size:].sort().values, order[:size].sort().values
        self.train_set = BatchDataset(images[train], labels[train])
        self.val_set = BatchDataset(images[val], labels[val])
        inform(f"{self.source}: {len(train):,} train and {size:,} val images, {self.num_classes} classes")


def find_all(images: Sequence[str | Path]) -> list[Path]:
    """The image files, and those in the folders, that are named; says how many there are."""
    files = [file for path in images for file in find_images(path)]
    inform(f"{format_list([str(path) for path in images])}: {len(files):,} file(s) to label")
    return files


def describe_classes(labels: Sequence[int], names: Sequence[str], noun: str) -> str:
    """How many items there are, and of each class, in a few words where there are many classes."""
    counts = Counter(labels)
    text = f"{len(labels):,} {noun} of {len(names)} classes"
    if len(names) <= 10:
        return f"{text}: {', '.join(f'{counts[label]:,} {name}' for label, name in enumerate(names))}"
    sizes = sorted((counts[label], name) for label, name in enumerate(names))
    return f"{text}: {sizes[0][0]:,} ({sizes[0][1]}) to {sizes[-1][0]:,} ({sizes[-1][1]}) of each"


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Raises a ValueError where validation and test together leave nothing to train on."""
    if val_fraction + test_fraction >= 1:
        raise ValueError(
            f"val_fraction is {val_fraction} and test_fraction {test_fraction}: together they must be below 1"
        )


def download_failed(name: str, root: str, error: Exception) -> ConnectionError:
    """The error that torchvision could not download a data set."""
    return ConnectionError(
        f"could not download {name} into {root}: {error}; with no network here, download it elsewhere with torchvision "
        "and give the folder as data_dir"
    )


def whole_batch(batch: Any) -> Any:
    """The collate function for a dataset whose `__getitems__` already returns a batch."""
    return batch
