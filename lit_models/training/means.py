"""Means over an epoch."""

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class EpochMeans:
    """Exact means over an epoch: float32 sums on the device, updated without waiting for it.

    A metric object in `self.log` costs 0.95 ms per step (`python -m benchmarks.trainer`). `ExactResume` stores the sums
    in checkpoints; they are not part of a model's state. Each stage has its names, `train=("loss", "accuracy")`, of
    scalars, or of vectors whose length is in `sizes`.
    """

    def __init__(self, sizes: Mapping[str, int] | None = None, **names: Sequence[str]) -> None:
        self.sizes, self.names = sizes or {}, names
        self.counts: dict[str, int] = {}
        self.totals: dict[str, dict[str, Tensor]] = {}
        for stage in names:
            self.reset(stage)

    def reset(self, stage: str) -> None:
        """Starts a new epoch of a stage."""
        self.counts[stage] = 0
        shapes = {name: [self.sizes[name]] if name in self.sizes else [] for name in self.names.get(stage, ())}
        self.totals[stage] = {name: torch.zeros(shape, dtype=torch.float32) for name, shape in shapes.items()}

    def update(self, stage: str, count: int, **totals: Tensor) -> None:
        """Adds `count` items, and of each name their sum."""
        self.counts[stage] += count
        sums = self.totals[stage]
        for name, total in totals.items():
            sums[name] = (sums[name].to(total.device) + total).float()

    def compute(self, stage: str, strategy: Strategy) -> dict[str, Tensor]:
        """The means over all processes by name."""
        totals = self.totals.get(stage)
        if not totals:
            return {}
        count = torch.tensor(self.counts[stage], dtype=torch.float32)
        own = [total.to(strategy.root_device).view(-1) for total in (*totals.values(), count)]
        *sums, count = strategy.reduce(torch.cat(own), reduce_op="sum").split([len(total) for total in own])
        return {name: (sums / count).view_as(total) for (name, total), sums in zip(totals.items(), sums, strict=True)}
