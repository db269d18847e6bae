"""Connected ink, put together to digits or letters: pieces belong to the nearest, specks and long lines to none."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SPECK = 5  # pixels along the longer side of what is at most dirt

Slices = tuple[slice, slice]  # rows and columns


def find_shapes(ink: Tensor) -> list[Tensor]:
    """The digits or letters among ink, row by row and from left to right: a mask `(height, width)` of each."""
    labels = components(F.max_pool2d((ink > 0.5)[None].float(), 2, ceil_mode=True)[0] > 0)
    numbers, counts = labels[labels > 0].unique(return_counts=True)
    parts = [labels == number for number in numbers[counts >= 0.03 * counts.max()]] if len(numbers) else []
    boxes = [bounds(part) for part in parts]
    height, width = labels.shape
    of_paper = [is_line(box, height, width) for box in boxes]
    parts, boxes = ([one for one, drop in zip(of, of_paper, strict=True) if not drop] for of in (parts, boxes))
    tall = max((rows.stop - rows.start for rows, _ in boxes), default=0)
    wide = max((columns.stop - columns.start for _, columns in boxes), default=0)
    if max(tall, wide) <= SPECK / 2:
        return []
    shapes: list[list[int]] = []  # of each the parts, the tallest first
    for index in sorted(range(len(parts)), key=lambda index: boxes[index][0].start - boxes[index][0].stop):
        gaps = [gap(boxes[shape[0]], boxes[index], tall) for shape in shapes]
        if not gaps or (boxes[index][0].stop - boxes[index][0].start >= 0.5 * tall and min(gaps) > 0.04 * tall):
            shapes.append([index])
        elif min(gaps) < 0.5 * tall:
            shapes[gaps.index(min(gaps))].append(index)
    masks = in_reading_order([torch.stack([parts[index] for index in shape]).any(0) for shape in shapes])
    grown = [F.max_pool2d(mask[None].float(), 3, 1, 1)[0] > 0 for mask in masks]
    return [mask.repeat_interleave(2, 0).repeat_interleave(2, 1)[: ink.shape[0], : ink.shape[1]] for mask in grown]


def is_line(box: Slices, height: int, width: int) -> bool:
    """Whether a box reaches from one side of the picture to the other, narrow as a line or the edge of a sheet."""
    high, wide = (side.stop - side.start for side in box)
    return (high == height and wide < 0.25 * width) or (wide == width and high < 0.25 * height)


def gap(first: Slices, second: Slices, tall: int) -> float:
    """How far two boxes are from one another; above one another, strokes of a digit may be further apart."""
    down, across = (max(a.start, b.start) - min(a.stop, b.stop) for a, b in zip(first, second, strict=True))
    return max(across, down - 0.25 * tall)


def in_reading_order(masks: list[Tensor]) -> list[Tensor]:
    """Masks row by row, a row being what begins above the end of its highest, and from left to right."""
    lines: list[list[Tensor]] = []
    for mask in sorted(masks, key=lambda mask: bounds(mask)[0].start):
        if not lines or bounds(mask)[0].start >= bounds(lines[-1][0])[0].stop:
            lines.append([])
        lines[-1].append(mask)
    return [mask for line in lines for mask in sorted(line, key=lambda mask: bounds(mask)[1].start)]


def components(mask: Tensor) -> Tensor:
    """Connected pixels of `(height, width)`: a number for each part, and 0 elsewhere."""
    labels = torch.arange(1, mask.numel() + 1.0).view(mask.shape) * mask
    while True:
        grown = F.max_pool2d(labels[None], 3, 1, 1)[0] * mask
        roots = torch.cat([grown.new_zeros(1), grown.flatten()])  # every number is the place of a pixel, too
        grown = roots[roots[grown.long()].long()]
        if torch.equal(grown, labels):
            return labels
        labels = grown


def bounds(mask: Tensor) -> Slices | None:
    """The rows and columns of a mask `(height, width)`, None of an empty one."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return None
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def is_solid(shape: Tensor) -> bool:
    """Whether a shape holds a square of more than half its longer side, which strokes hardly do."""
    rows, columns = bounds(shape)
    side = math.ceil(0.55 * max(rows.stop - rows.start, columns.stop - columns.start))
    if side > min(shape.shape):
        return False
    rest = -F.max_pool2d(F.max_pool2d(-shape[None].float(), (side, 1), 1), (1, side), 1)
    return bool(rest.any())
