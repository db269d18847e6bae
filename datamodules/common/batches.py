"""What all data modules share: loaders of whole batches, for one process or several, that go on where they stopped."""

from typing import Any, ClassVar, TypeVar

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.common.samplers import EpochSampler, EvenBatches, WholeBatches, processes

T = TypeVar("T")


class BatchDataModule(LightningDataModule):
    """The base of the data modules: makes their loaders, and says in a checkpoint how far training has come.

    The order of the training data depends on the seed and the epoch alone, so that a run that goes on in the middle of
    an epoch trains on what is left of it. With several processes, each gets its own share of every batch.

    Its hyperparameters include `batch_size`, of each process, unless the property is overridden, and may include
    `device_resident`.

    Attributes:
        resume_may_change: Hyperparameters that may be others when a run is resumed: where data are, how they are read.
        num_workers: Processes that fetch batches; data in memory need none.
        order_seed: Seed of the order; torch's seed when training starts.
        position: The epoch that a resumed run goes on in, and how many batches of it are done.
    """

    resume_may_change: ClassVar[frozenset[str]] = frozenset(
        {"data_dir", "root", "path", "download", "num_workers", "memory_limit", "device_resident"}
    )
    num_workers: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.order_seed: int | None = None
        self.position = (0, 0)

    def state_dict(self) -> dict[str, Any]:
        """The seed of the order, and where in it a run is to go on; nothing without a Trainer."""
        if self.trainer is None:
            return {}
        loop = self.trainer.fit_loop
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current.processed
        # The epoch counts as begun until all that belongs to its end is done, its last checkpoint too.
        within = epochs.processed < epochs.started and batches < self.trainer.num_training_batches
        epoch, batch = (epochs.started - 1, batches) if within else (epochs.started, 0)
        return {"order_seed": self.order_seed, "epoch": epoch, "batch": batch, "batch_size": self._global_batch_size()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned, where training goes on.

        Raises:
            ValueError: That is in the middle of an epoch, and batches are of another size now, over all processes.
        """
        if self.trainer is None or not self.trainer.training:
            return
        if state["batch"] and state["batch_size"] != self._global_batch_size():
            raise ValueError(
                f"the checkpoint is of the middle of an epoch, with batches of {state['batch_size']} over all "
                f"processes, not {self._global_batch_size()}: go on with as many, or from the end of an epoch"
            )
        self.order_seed, self.position = state["order_seed"], (state["epoch"], state["batch"])

    def teardown(self, stage: str) -> None:
        """Forgets where training was."""
        if stage == "fit":
            self.order_seed, self.position = None, (0, 0)

    @property
    def batch_size(self) -> int:
        """Items in a batch of a process."""
        return self.hparams.batch_size

    def sampler(self, dataset: Dataset, seed: int, epoch: int, skip: int) -> EpochSampler:
        """Draws the training batches: see EpochSampler."""
        return EpochSampler(dataset, seed, epoch, skip)

    def _global_batch_size(self) -> int:
        return self.batch_size * self.trainer.world_size

    def train_loader(self, dataset: Dataset) -> DataLoader:
        """Shuffled batches of a dataset that has `__getitems__`."""
        if self.order_seed is None:
            seed = torch.initial_seed() % 2**32
            self.order_seed = seed if self.trainer is None else self.trainer.strategy.broadcast(seed)
        (epoch, batch), size = self.position, self.batch_size
        sampler = self.sampler(dataset, self.order_seed, epoch, skip=batch * size)
        if self.trainer is not None:  # which may ask for a new loader in every epoch
            sampler.set_epoch(max(epoch, self.trainer.current_epoch))
        return self._loader(self._placed(dataset), batch_size=size, sampler=sampler)

    def eval_loader(self, dataset: Dataset) -> DataLoader:
        """Batches in order of a dataset that has `__getitems__`, each item once, whatever the number of processes."""
        dataset = self._placed(dataset)
        if processes()[0] == 1:
            return self._loader(dataset, batch_size=self.batch_size)
        return self._loader(WholeBatches(dataset), batch_size=None, sampler=EvenBatches(dataset, self.batch_size))

    def predict_loader(self, dataset: Dataset) -> DataLoader:
        """Batches in order, which Lightning shares out itself, to know the index of every item."""
        return self._loader(dataset, batch_size=self.batch_size)

    def _placed(self, dataset: Dataset) -> Dataset:
        """The dataset, in the device's memory if that is asked for."""
        if not self.hparams.get("device_resident"):
            return dataset
        if self.num_workers:
            raise ValueError(
                f"device_resident: these data are read by {self.num_workers} worker process(es), which cannot reach "
                "a device's memory: set num_workers to 0, or leave device_resident out"
            )
        if self.trainer is None:
            raise ValueError("device_resident: there is no Trainer that says which device: leave it out")
        return dataset.to(self.trainer.strategy.root_device)

    def _loader(self, dataset: Dataset, **options: Any) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available() and not self.hparams.get("device_resident"),
            persistent_workers=self.num_workers > 0,
            collate_fn=whole_batch,
            # A loader draws the seed of its workers, which would else come from the model's generator.
            generator=torch.Generator().manual_seed(torch.initial_seed() % 2**63),
            **options,
        )


def check_fractions(val_share: float, test_share: float) -> None:
    """Raises a ValueError where validation and test together leave nothing to train on."""
    if val_share + test_share >= 1:
        raise ValueError(f"val_share is {val_share} and test_share {test_share}: together they must be below 1")


def whole_batch(batch: T) -> T:
    """The collate function of a dataset whose `__getitems__` already returns a batch."""
    return batch
