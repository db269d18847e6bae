"""Which items come in which batch, of one process or of several, as a seed and the epoch decide."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, SequentialSampler


def world_and_rank() -> tuple[int, int]:
    """The number of processes that train together, and the rank of this one."""
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
        world, rank = world_and_rank()
        super().__init__(dataset, num_replicas=world, rank=rank, seed=seed)
        self.epoch, self.first, self.skip = epoch, epoch, skip

    def __iter__(self) -> Iterator[int]:
        order = self.order(torch.Generator().manual_seed(self.seed * 2**20 + self.epoch))
        rest = order[self.rank :: self.num_replicas].tolist()[self.skip if self.epoch == self.first else 0 :]
        self.epoch += 1  # without a Trainer, nobody else says that the next one has begun
        return iter(rest)

    def order(self, draw: torch.Generator) -> Tensor:
        """The indices `(total_size,)` of an epoch for all processes, which take turns."""
        order = torch.randperm(len(self.dataset), generator=draw)
        return order.repeat(-(-self.total_size // max(len(order), 1)))[: self.total_size]


class PeopleSampler(EpochSampler):
    """An EpochSampler whose batches are of some people, with as many pictures of each.

    The people of a batch are different ones, unless there are fewer than it is to have, and so are the pictures of a
    person. An epoch draws about as many pictures as there are.

    Args:
        labels: `(count,)`, int64: who is in a picture, from 0, and nobody without one.
        people: How many people are in a batch of a process.
        pictures: How many pictures of each.
        seed: Of the order, the same for all processes.
        epoch: The one that comes first.
        skip: How many indices of it are done already.
    """

    def __init__(self, labels: Tensor, people: int, pictures: int, seed: int, epoch: int = 0, skip: int = 0) -> None:
        super().__init__(labels, seed, epoch, skip)
        self.people, self.pictures = people, pictures
        order, counts = labels.argsort(stable=True), labels.bincount().tolist()
        self.own = order.split(counts)  # the indices of each person
        batches = -(-len(labels) // (people * pictures * self.num_replicas))
        self.num_samples = batches * people * pictures
        self.total_size = self.num_samples * self.num_replicas

    def order(self, draw: torch.Generator) -> Tensor:
        """The indices `(total_size,)` of an epoch for all processes, which take turns."""
        together, count = self.people * self.num_replicas, len(self.own)
        drawn: list[int] = []
        while len(drawn) < self.total_size // self.pictures:
            everybody = torch.randperm(count, generator=draw).repeat(-(-together // count))
            drawn += everybody[: len(everybody) // together * together].tolist()  # nobody twice in a batch
        groups = torch.stack(
            [self._some(self.own[person], draw) for person in drawn[: self.total_size // self.pictures]]
        )
        # A process takes every so many-th index, and shall get whole groups.
        return groups.view(-1, self.num_replicas, self.pictures).transpose(1, 2).flatten()

    def _some(self, own: Tensor, draw: torch.Generator) -> Tensor:
        order = torch.randperm(len(own), generator=draw).repeat(-(-self.pictures // len(own)))
        return own[order[: self.pictures]]


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
        world, rank = world_and_rank()
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
