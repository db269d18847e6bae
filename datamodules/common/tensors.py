"""In-memory datasets and augmentation that work on whole batches.

A torchvision dataset decodes, transforms and collates one image at a time, which for small images costs more than
the training step does. Here a batch is one gather, and works with the standard DataLoader and its samplers.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset


class BatchDataset(Dataset[tuple[Tensor, ...]]):
    """Tensors of equal length in memory; fetches a batch with one index operation.

    Args:
        images: `(count, channels, height, width)`, any dtype.
        labels: `(count,)`, int64.
        extras: Further tensors `(count, ...)` that are part of a batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, *extras: Tensor) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images, but {len(labels)} labels: there must be one label per image")
        self.images, self.labels = images, labels
        self.tensors = (images, labels, *extras)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """A batch: what a DataLoader calls, where a dataset has it, instead of fetching one item at a time."""
        chosen = indices_on(self.labels.device, indices)
        return tuple(tensor[chosen] for tensor in self.tensors)

    def to(self, device: torch.device) -> "BatchDataset":
        """The same dataset in a device's memory."""
        return BatchDataset(*(tensor.to(device) for tensor in self.tensors))


def indices_on(device: torch.device, indices: list[int]) -> Tensor:
    """Indices as a tensor on a device, copied without waiting for it."""
    chosen = torch.tensor(indices, dtype=torch.int64)
    return chosen if device.type == "cpu" else chosen.pin_memory().to(device, non_blocking=True)


def random_flip(images: Tensor) -> Tensor:
    """Flips each image of `(batch, channels, height, width)` horizontally with probability 0.5."""
    flipped = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(3), images)


def random_shift(images: Tensor, pixels: int) -> Tensor:
    """Crops each image of `(batch, channels, height, width)`, padded by so many pixels by reflection, at random."""
    batch, channels, height, width = images.shape
    along_y, along_x = torch.randint(-pixels, pixels + 1, (2, batch, 1), device=images.device)
    rows = _reflect(torch.arange(height, device=images.device) + along_y, height)[:, None, :, None]
    columns = _reflect(torch.arange(width, device=images.device) + along_x, width)[:, None, None, :]
    each = torch.arange(batch, device=images.device)[:, None, None, None]
    return images[each, torch.arange(channels, device=images.device)[None, :, None, None], rows, columns]


def _reflect(index: Tensor, length: int) -> Tensor:
    last = length - 1
    return last - (last - index.abs()).abs()


def random_erasing(images: Tensor, max_side: float) -> Tensor:
    """Fills a random square of each image of `(batch, channels, height, width)` with the image's mean (Cutout).

    The side is drawn from 0 to `max_side` times the image's shorter one, the center from the whole image.
    DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017.
    """
    batch, _, height, width = images.shape
    half, y, x = torch.rand(3, batch, 1, device=images.device)
    half = half * max_side * min(height, width) / 2
    rows = (torch.arange(height, device=images.device) - y * height).abs() <= half  # (batch, height)
    columns = (torch.arange(width, device=images.device) - x * width).abs() <= half
    mean = images.float().mean(dim=(1, 2, 3), keepdim=True).to(images.dtype)
    return torch.where((rows[:, None, :, None] & columns[:, None, None, :]), mean, images)


def random_affine(
    images: Tensor, degrees: float, shift: float, scale: float, padding_mode: Literal["zeros", "border"] = "zeros"
) -> Tensor:
    """Rotates, shifts and scales each image of a batch by its own random amounts, with bilinear interpolation.

    The amounts are drawn from -degrees..degrees, -shift..shift pixels along each axis, and 1 - scale..1 + scale. Images
    `(batch, channels, height, width)`, uint8 in 0..255 or float, become float32, uint8 ones scaled to 0..1; if all
    amounts are 0, they are returned as they are.
    """
    if not (degrees or shift or scale):
        return images
    # torchvision's transforms draw one set of parameters for a whole batch; Kornia's draw one per image, but take 5
    # times as long. The grid is one matrix product, since F.affine_grid takes 30 times as long.
    batch, _, height, width = images.shape
    draws = torch.rand(4, batch, device=images.device) * 2 - 1  # (4, batch) in -1..1
    angle = draws[0] * math.radians(degrees)
    zoom = 1 / (1 + draws[1] * scale)  # the grid maps output to input, so it shrinks where the image grows
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    along_x = torch.stack([cos, -sin, draws[2] * shift], dim=1) / (width / 2)  # grid_sample's unit is half an image
    along_y = torch.stack([sin, cos, draws[3] * shift], dim=1) / (height / 2)
    matrix = torch.stack([along_x, along_y], dim=1).view(batch * 2, 3)  # applied to pixels from the center

    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device) - (height - 1) / 2
    ones = torch.ones(height * width, device=images.device)
    pixels = torch.stack([x.repeat(height), y.repeat_interleave(width), ones])  # (3, height * width)
    grid = (matrix @ pixels).view(batch, 2, height, width).permute(0, 2, 3, 1)

    source = images.float() if images.is_floating_point() else images.float() / 255
    return F.grid_sample(source, grid, padding_mode=padding_mode, align_corners=False)
