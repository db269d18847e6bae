"""Layers that several architectures share."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

Cell = Literal["gru", "lstm", "rnn"]


class Normalize(nn.Module):
    """`(x - mean) / std`, computed and returned in float32 at least, whatever the model is cast to.

    Mean and standard deviation are not part of the state: they are rebuilt from hyperparameters, which every checkpoint
    holds.

    Args:
        mean: Mean, a number or one per channel.
        std: Standard deviation, likewise.
        channels: Number of channels.
        images: Whether `x` is `(batch, channels, height, width)`, whose integers are divided by 255 first; otherwise
            channels come last.

    Attributes:
        dtype: What the model is cast to.

    Raises:
        ValueError: `mean` or `std` has neither one number nor `channels`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: float | Sequence[float], std: float | Sequence[float], channels: int, images: bool = False
    ) -> None:
        super().__init__()
        self.images, self.dtype = images, torch.get_default_dtype()
        for name, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(values, dtype=torch.float32).view(-1)
            if len(numbers) not in (1, channels):
                raise ValueError(f"{name} has {len(numbers)} numbers, but the number of channels is {channels}")
            column = numbers.expand(channels).clone().view(-1, *([1, 1] if images else []))
            self.register_buffer(name, column, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized `x`, which is left as it was."""
        scaled = x.to(self.mean.dtype, copy=True)  # a copy, so that the rest can be done in place
        if self.images and not x.is_floating_point():
            scaled /= 255
        return scaled.sub_(self.mean).div_(self.std)

    def inverse(self, x: Tensor) -> Tensor:
        """`x * std + mean`."""
        return x * self.std + self.mean

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalize":
        kept, like = (self.mean, self.std), self.mean.new_empty(0, dtype=self.dtype)
        super()._apply(fn, recurse)
        self.dtype = fn(like).dtype
        if self.mean.dtype.itemsize < 4:  # 16 bits are too few for a mean
            self.mean, self.std = (value.to(self.mean.device) for value in kept)
        return self


class EpochMeans(nn.Module):
    """Exact means over an epoch: float32 sums that are never cast, updated without waiting for the device.

    A metric object in `self.log` costs 0.95 ms a step (`python -m benchmarks.trainer`), this next to nothing. It is
    no part of a model's state; `lit_models.training.resume.ExactResume` stores it.

    Args:
        names: What is averaged in each stage, `train=("loss", "accuracy")`.
    """

    def __init__(self, **names: Sequence[str]) -> None:
        super().__init__()
        # Not buffers: DDP would overwrite each process's with the first one's.
        self.totals = {
            stage: {name: torch.zeros((), dtype=torch.float32) for name in some} for stage, some in names.items()
        }
        self.counts = dict.fromkeys(names, 0)

    def reset(self, stage: str) -> None:
        """Begins a new epoch of a stage, if anything is averaged in it."""
        self.counts[stage] = 0
        self.totals[stage] = {name: torch.zeros_like(total) for name, total in self.totals.get(stage, {}).items()}

    def update(self, stage: str, count: int, **totals: Tensor) -> None:
        """Adds `count` items, and of each name their sum, a scalar."""
        self.counts[stage] += count
        for name, total in totals.items():
            self.totals[stage][name].add_(total)

    def compute(self, stage: str, strategy: Strategy) -> dict[str, Tensor]:
        """The means over all processes by name, and begins a new epoch."""
        names = list(self.totals.get(stage, {}))
        if not names:
            return {}
        own = torch.stack(list(self.totals[stage].values()))
        sums = torch.cat([own, own.new_tensor([self.counts[stage]])])
        *totals, count = strategy.reduce(sums, reduce_op="sum").unbind()
        self.reset(stage)
        return {name: total / count for name, total in zip(names, totals, strict=True)}

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch needs."""
        return {"counts": dict(self.counts), "totals": self.totals}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        for stage, totals in self.totals.items():
            self.counts[stage] = state["counts"].get(stage, 0)
            self.totals[stage] = {name: state["totals"][stage][name].to(old.device) for name, old in totals.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EpochMeans":
        for stage, totals in self.totals.items():
            self.totals[stage] = {name: total.to(fn(total).device) for name, total in totals.items()}
        return self


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """PyTorch's, whose backward pass on a GPU is deterministic where deterministic algorithms are asked for.

    `trainer.deterministic=true` asks for them; PyTorch's own raises a RuntimeError then.

    Args:
        output_size: Height and width of the output.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__(output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Averages `(batch, channels, height, width)` to `(batch, channels, output_size, output_size)`."""
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        for dim in (2, 3):
            size, count = x.shape[dim], self.output_size
            windows = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
            x = torch.stack([x.narrow(dim, start, end - start).mean(dim) for start, end in windows], dim)
        return x


def make_rnn(cell: Cell, input_size: int, hidden_size: int, num_layers: int, dropout: float) -> nn.RNNBase:
    """Recurrent layers over `(batch, time, input_size)`, with dropout between them.

    GRU: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
    2014. LSTM: Hochreiter and Schmidhuber, "Long short-term memory", 1997. Plain cell, with tanh: Elman, "Finding
    structure in time", 1990.
    """
    kind = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[cell]
    return kind(input_size, hidden_size, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)
