"""Samplers whose order depends on a seed and the epoch alone, for one process or several."""

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
    """Shuffled indices of this process, in an order that depends on the seed and the epoch.

    N processes with batches of B train on the same items as one with batches of N times B. As in a DistributedSampler,
    a few indices come twice where the processes don't divide the dataset. Lightning replaces samplers, but not
    subclasses of a DistributedSampler. The seed is the same in all processes; the first epoch, `epoch`, is without the
    `skip` indices that are done already. With a `size`, an epoch draws so many indices over all processes.
    """

    def __init__(self, dataset: Dataset, seed: int, epoch: int = 0, skip: int = 0, size: int | None = None) -> None:
        super().__init__(dataset, *world_and_rank(), seed=seed)
        if size is not None:
            self.num_samples = -(-size // self.num_replicas)
            self.total_size = self.num_samples * self.num_replicas
        self.epoch, self.first, self.skip = epoch, epoch, skip

    def __iter__(self) -> Iterator[int]:
        order = self.order(torch.Generator().manual_seed(self.seed * 2**20 + self.epoch))
        rest = order[self.rank :: self.num_replicas].tolist()[self.skip if self.epoch == self.first else 0 :]
        self.epoch += 1  # without a Trainer, nothing else counts the epochs
        return iter(rest)

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices `(total_size,)` of an epoch over all processes, which take turns."""
        count = len(self.dataset)
        passes = range(-(-self.total_size // max(count, 1)))
        orders = [torch.randperm(count, generator=generator) for _ in passes]
        return torch.cat([torch.empty(0, dtype=torch.int64), *orders])[: self.total_size]


class IdentitySampler(EpochSampler):
    """An EpochSampler whose batches hold some identities (P), with several images of each (K), in a process.

    The identities of a batch are distinct, unless there are fewer than P, and so are the images of one. An epoch draws
    about as many images as there are. Labels `(count,)` are the identity of each image, from 0 without gaps.
    """

    def __init__(self, labels: Tensor, identities: int, images: int, seed: int, epoch: int = 0, skip: int = 0) -> None:
        super().__init__(labels, seed, epoch, skip)
        self.identities, self.images = identities, images
        self.own = labels.argsort(stable=True).split(labels.bincount().tolist())  # the indices of each identity
        batches = -(-len(labels) // (identities * images * self.num_replicas))
        self.num_samples = batches * identities * images
        self.total_size = self.num_samples * self.num_replicas

    def order(self, generator: torch.Generator) -> Tensor:
        """The indices `(total_size,)` of an epoch over all processes, which take turns."""
        together, count = self.identities * self.num_replicas, len(self.own)
        drawn: list[int] = []
        while len(drawn) < self.total_size // self.images:
            everybody = torch.randperm(count, generator=generator).repeat(-(-together // count))
            drawn += everybody[: len(everybody) // together * together].tolist()  # none twice in a batch
        groups = []
        for own in (self.own[identity] for identity in drawn[: self.total_size // self.images]):
            order = torch.randperm(len(own), generator=generator).repeat(-(-self.images // len(own)))
            groups.append(own[order[: self.images]])
        # A process takes every so many-th index, and must get whole groups.
        return torch.stack(groups).view(-1, self.num_replicas, self.images).transpose(1, 2).flatten()


class EvenBatches(DistributedSampler, SequentialSampler):
    """Batches of the indices of this process in order: no index twice, and as many batches as in the other processes.

    Processes synchronize a model's buffers before every batch, so one with more batches would wait forever. The sizes
    of a process's batches, at most `batch_size`, differ by one at most. Lightning replaces samplers, but not subclasses
    of these two.
    """

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        DistributedSampler.__init__(self, dataset, *world_and_rank(), shuffle=False)
        self.data_source = dataset  # SequentialSampler's
        world, fewest = self.num_replicas, len(dataset) // self.num_replicas
        if not fewest:
            raise ValueError(f"{len(dataset)} items cannot be shared by {world} processes: set trainer.devices to 1")
        self.batches = min(-(-self.num_samples // batch_size), fewest)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        own = torch.arange(self.rank, len(self.dataset), self.num_replicas)
        return iter([batch.tolist() for batch in own.tensor_split(self.batches)])


class WholeBatches(Dataset):
    """A dataset with `__getitems__` as one whose items are batches, for a sampler of batches such as EvenBatches."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, indices: list[int]) -> Any:
        return self.dataset.__getitems__(indices)
