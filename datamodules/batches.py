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
        order_seed: Seed of the order; torch's seed when training starts.
        position: The epoch that a resumed run goes on in, and how many batches of it are done.
    """

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

    def _global_batch_size(self) -> int:
        return self.hparams.batch_size * self.trainer.world_size

    def train_loader(self, dataset: Dataset) -> DataLoader:
        """Shuffled batches of a dataset that has `__getitems__`."""
        if self.order_seed is None:
            seed = torch.initial_seed() % 2**32
            self.order_seed = seed if self.trainer is None else self.trainer.strategy.broadcast(seed)
        (epoch, batch), size = self.position, self.hparams.batch_size
        sampler = EpochSampler(dataset, self.order_seed, epoch, skip=batch * size)
        if self.trainer is not None:  # which may ask for a new loader in every epoch
            sampler.set_epoch(max(epoch, self.trainer.current_epoch))
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
        rest = order.tolist()[self.skip if self.epoch == self.first else 0 :]
        self.epoch += 1  # without a Trainer, nobody else says that the next one has begun
        return iter(rest)


class EvenBatches(DistributedSampler, SequentialSampler):
    """Batches of indices in order, those of this process alone: no index twice, and as many batches as the others have.

    Processes exchange what a model keeps beside its weights before every batch, so one of them must not have more.
    Lightning leaves samplers of these two kinds as they are.

    Args:
        dataset: What is gone through.
        batch_size: Indices in a batch; the batches of a process differ by one at most.

    Raises:
        ValueError: There are fewer items than processes, of which one would have nothing to do.
    """

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        world, rank = processes()
        DistributedSampler.__init__(self, dataset, num_replicas=world, rank=rank, shuffle=False)
        self.data_source = dataset  # SequentialSampler's
        least = len(dataset) // world
        if not least:
            raise ValueError(f"{len(dataset)} items cannot be shared by {world} processes: set trainer.devices to 1")
        self.batches = min(-(-self.num_samples // batch_size), least)

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
