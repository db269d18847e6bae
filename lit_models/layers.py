"""Layers that several architectures share."""

import torch
from torch import Tensor, nn


class AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """PyTorch's, whose backward pass on a GPU is deterministic where deterministic algorithms are asked for.

    `trainer.deterministic=true` asks for them; PyTorch's own raises a RuntimeError then.

    Args:
        output_size: Height and width that come out.
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
