"""What all data modules share: loaders of whole batches, for one process or several, that go on where they stopped."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler, SequentialSampler

T = TypeVar("T")


class BatchDataModule(LightningDataModule):
    """The base of the data modules: makes their loaders, and says in a checkpoint how far training has come.

    The order of the training data depends on the seed and the epoch alone, so that a run that goes on in the middle of
    an epoch trains on what is left of it. With several processes, each gets its own share of every batch.

    Its hyperparameters include `batch_size`, of each process, and may include `device_resident`.

    Attributes:
        num_workers: Processes that fetch batches; data in memory need none.
    """

    num_workers: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.order_seed: int | None = None
        self.position = (0, 0)

    def state_dict(self) -> dict[str, int]:
        """The seed of the order, and where in it a run is to go on: the epoch, and the batches of it that are done."""
        loop = self.trainer.fit_loop
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current.processed
        # The epoch counts as begun until all that belongs to its end is done, its last checkpoint too.
        within = epochs.processed < epochs.started and batches < self.trainer.num_training_batches
        epoch, batch = (epochs.started - 1, batches) if within else (epochs.started, 0)
        return {"order_seed": self.order_seed, "epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` returned, where training goes on."""
        if self.trainer.training:
            self.order_seed, self.position = state["order_seed"], (state["epoch"], state["batch"])

    def train_loader(self, dataset: Dataset) -> DataLoader:
        """Shuffled batches of a dataset that has `__getitems__`."""
        if self.order_seed is None:
            seed = torch.initial_seed() % 2**32
            self.order_seed = seed if self.trainer is None else self.trainer.strategy.broadcast(seed)
        (epoch, batch), self.position = self.position, (0, 0)
        size = self.hparams.batch_size
        sampler = EpochSampler(dataset, self.order_seed, epoch, skip=batch * size)
        return self._loader(self._placed(dataset), batch_size=size, sampler=sampler)

    def eval_loader(self, dataset: Dataset) -> DataLoader:
        """Batches in order of a dataset that has `__getitems__`, each item once, whatever the number of processes."""
        dataset = self._placed(dataset)
        if processes()[0] == 1:
            return self._loader(dataset, batch_size=self.hparams.batch_size)
        return self._loader(
            WholeBatches(dataset), batch_size=None, sampler=EvenBatches(dataset, self.hparams.batch_size)
        )

    def predict_loader(self, dataset: Dataset) -> DataLoader:
        """Batches in order, which Lightning shares out itself, to know the index of every item."""
        return self._loader(dataset, batch_size=self.hparams.batch_size)

    def _placed(self, dataset: Dataset) -> Dataset:
        """The dataset, in the device's memory if that is asked for."""
        if not self.hparams.get("device_resident"):
            return dataset
        if self.num_workers:
            raise ValueError(
                f"device_resident: these data are read by {self.num_workers} worker process(es), which cannot reach "
                "a device's memory: set num_workers to 0, or leave device_resident out"
            )
        return dataset.to(self.trainer.strategy.root_device)

    def _loader(self, dataset: Dataset, **options: Any) -> DataLoader:
        return DataLoader(
            dataset,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available() and not self.hparams.get("device_resident"),
            persistent_workers=self.num_workers > 0,
            collate_fn=whole_batch,
            generator=torch.Generator(),  # a loader draws a number, which would come from the model's generator
            **options,
        )


def whole_batch(batch: T) -> T:
    """The collate function of a dataset whose `__getitems__` already returns a batch."""
    return batch


def processes() -> tuple[int, int]:
    """How many processes train together, and which of them this one is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0


class EpochSampler(DistributedSampler):
    """Indices in an order that a seed and the epoch decide, those of this process alone.

    A DistributedSampler since Lightning leaves these as they are; as there, a few indices come twice where the
    processes don't divide the dataset, so that all have as many. N processes with batches of B train on what one has
    with batches of N times B.

    Args:
        dataset: What is drawn from.
        seed: Of the order, the same for all processes.
        epoch: The one that comes first.
        skip: How many indices of it are done already.
    """

    def __init__(self, dataset: Dataset, seed: int, epoch: int = 0, skip: int = 0) -> None:
        world, rank = processes()
        super().__init__(dataset, num_replicas=world, rank=rank, seed=seed)
        self.epoch, self.first, self.skip = epoch, epoch, skip

    def __iter__(self) -> Iterator[int]:
        draw = torch.Generator().manual_seed(self.seed * 2**20 + self.epoch)
        order = torch.randperm(len(self.dataset), generator=draw)
        order = order.repeat(-(-self.total_size // max(len(order), 1)))[self.rank : self.total_size : self.num_replicas]
        return iter(order.tolist()[self.skip if self.epoch == self.first else 0 :])


class EvenBatches(DistributedSampler, SequentialSampler):
    """Batches of indices in order, those of this process alone: no index twice, and as many batches as the others have.

    Processes exchange what a model keeps beside its weights before every batch, so one of them must not have more.
    Lightning leaves samplers of these two kinds as they are.

    Args:
        dataset: What is gone through.
        batch_size: The most indices in a batch; processes that have fewer than others have smaller batches.
    """

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        world, rank = processes()
        DistributedSampler.__init__(self, dataset, num_replicas=world, rank=rank, shuffle=False)
        self.data_source = dataset  # SequentialSampler's
        self.batches = -(-self.num_samples // batch_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        own = torch.arange(self.rank, len(self.dataset), self.num_replicas)
        return iter([batch.tolist() for batch in own.tensor_split(self.batches)])


class WholeBatches(Dataset):
    """A dataset whose items are batches: for a sampler that gives the indices of whole ones.

    Args:
        dataset: One that has `__getitems__`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: list[int]) -> Any:
        return self.dataset.__getitems__(indices)
