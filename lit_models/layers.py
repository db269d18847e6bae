"""Layers that several architectures share."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lit_models.common.arguments import plain_value

Cell = Literal["gru", "lstm", "rnn"]
Hidden = Tensor | tuple[Tensor, Tensor]  # each (num_layers, batch, hidden_dim); two of them for the LSTM


class Normalize(nn.Module):
    """`(x - mean) / std`, computed and returned in float32 at least, whatever `dtype` the model is cast to.

    Mean and standard deviation, a number or one per channel each, are not part of the state: they are rebuilt from
    hyperparameters, which every checkpoint holds. Channels come last; those of `images`, whose integers are divided by
    255 first, come second.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: float | Sequence[float], std: float | Sequence[float], channels: int, images: bool = False
    ) -> None:
        super().__init__()
        self.images, self.dtype = images, torch.get_default_dtype()
        for name, values in (("mean", mean), ("std", std)):
            empty = torch.empty(channels, *([1, 1] if images else []), dtype=torch.float32)
            self.register_buffer(name, empty, persistent=False)
            self.fill(name, values)

    def fill(self, name: str, values: float | Sequence[float]) -> None:
        """Sets `mean` or `std`."""
        buffer, numbers = getattr(self, name), torch.tensor(plain_value(name, values), dtype=torch.float32).view(-1)
        if len(numbers) not in (1, len(buffer)):
            option = "in_channels" if self.images else "input_dim"  # of the models
            raise ValueError(f"{name} has {len(numbers)} numbers, but {option} is {len(buffer)}")
        if name == "std" and not (numbers > 0).all():
            raise ValueError(f"std is {values}: it must be above 0")
        buffer.copy_(numbers.view(-1, *[1] * (buffer.dim() - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Normalized `x`, which is left as it was."""
        scaled = x.to(self.mean.dtype, copy=True)  # a copy, so that the rest can be done in place
        if self.images and not x.is_floating_point():
            scaled /= 255
        return scaled.sub_(self.mean).div_(self.std)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalize":
        kept, like = (self.mean, self.std), self.mean.new_empty(0, dtype=self.dtype)
        super()._apply(fn, recurse)
        self.dtype = fn(like).dtype
        if self.mean.dtype.itemsize < 4:  # 16 bits are too few for a mean
            self.mean, self.std = (value.to(self.mean.device) for value in kept)
        return self


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """PyTorch's, to a square, with a backward pass that is deterministic on a GPU where that is asked for.

    `trainer.deterministic=true` asks for it; PyTorch's own raises a RuntimeError then.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Averages `(batch, channels, height, width)` to `(batch, channels, output_size, output_size)`."""
        if not torch.are_deterministic_algorithms_enabled():
            return super().forward(x)
        for dim in (2, 3):
            size, count = x.shape[dim], self.output_size
            windows = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
            x = torch.stack([x.narrow(dim, start, end - start).mean(dim) for start, end in windows], dim)
        return x


def channels_last(images: Tensor) -> Tensor:
    """Images with the channels last in memory: convolutions over few channels are a quarter faster so on a CPU."""
    batch, channels, height, width = images.shape
    if channels == 1:  # whose layout PyTorch cannot tell, and takes for channels first
        return images.reshape(batch, height, width, 1).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


def make_rnn(cell: Cell, input_size: int, hidden_size: int, num_layers: int, dropout: float) -> nn.RNNBase:
    """Recurrent layers over `(batch, time, input_size)`, with dropout between them.

    GRU: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation",
    2014. LSTM: Hochreiter and Schmidhuber, "Long short-term memory", 1997. Plain cell, with tanh: Elman, "Finding
    structure in time", 1990.
    """
    kind = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[cell]
    sizes = int(input_size), int(hidden_size), int(num_layers)  # NumPy's integers are refused there
    return kind(*sizes, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)


class Stateful(nn.Module):
    """A forecaster whose state is flat: what is exported.

    It is the hidden state, of the LSTM and the Transformer two tensors, and those that the model's `memory` names.
    Where the last of these is zero, a window begins, whose scale and errors are those of the rows given.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Predictions `(batch, time, output_dim)`, and the new state."""
        count = len(state) - len(self.model.memory)
        hidden, memory = state[0] if count == 1 else state[:count], state[count:]
        rows = int("rows" in self.model.memory)
        if memory[rows:]:
            own = self.model.empty_memory(x)[rows:]
            of_window = (torch.where(memory[-1] == 0, new, old) for new, old in zip(own, memory[rows:], strict=True))
            memory = (*memory[:rows], *of_window)
        prediction, new = self.model(x, (hidden, memory) if memory else hidden)
        hidden, memory = new if memory else (new, ())
        return (prediction, *((hidden,) if count == 1 else hidden), *memory)
