"""Photographs, scans and drawings of digits or letters, read into the form of MNIST's.

MNIST's digits are light on black, 20 pixels along the longer side, in 28x28 pixels, with the centre of mass in the
middle (LeCun et al., 1998). A picture is looked at 160 pixels along its longer side, then once more at what is on it:

1. Ink is what differs from the paper, or the board, in the colour of the pen (`ink`).
2. Connected ink is put together to digits (`shapes`).
3. Very thin strokes are made wider, and a digit that is tilted more than people write is turned back.
"""

import math
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor
from typing_extensions import override

from datamodules.common.image_io import (
    MNIST_SIDE,
    ImageFileDataset,
    border_pixels,
    load_upright,
    open_file,
    read_images,
    to_uint8,
)
from datamodules.common.ink import SIDE, Area, find_ink, size_of
from datamodules.common.shapes import Slices, bounds, find_shapes, is_solid

BOX = 20  # pixels along the longer side of MNIST's digits
EMNIST_BOX = 24  # of EMNIST's, with the middle of their box, not their mass, in the middle (Cohen et al., 2017)
SLANTS = (-0.5, 0.1)  # of the middle 80% of MNIST's digits, as x over y, downwards: most lean to the right
THIN, MEDIUM = 1.7, 2.2  # strokes that are too thin, of 20 pixels, and what they become


class DigitFileDataset(ImageFileDataset):
    """Pictures of digits, with `file` and `note` of each; several from a picture of several."""

    @override
    def __getitems__(self, indices: list[int]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Images `(count, 1, 28, 28)`, uint8, and the first columns of their rows; perhaps an empty batch."""
        images, rows = [torch.empty(0, *self.shape, dtype=torch.uint8)], []
        paths = [self.paths[index] for index in indices]
        for path, found in zip(paths, read_images(paths, self.read, self.threads), strict=True):
            if isinstance(found, Exception):
                warnings.warn(f"cannot read {path}: {found}", stacklevel=2)
                continue
            images.append(found[0])
            rows += [{"file": str(path), "note": note} for note in found[1]]
        return torch.cat(images), rows


def read_digits(path: Path, box: int = BOX) -> tuple[Tensor, list[str]]:
    """The digits or letters of a picture, from left to right, and what is to be noted of each, perhaps nothing.

    Args:
        path: The file.
        box: Pixels along the longer side of what is read: those of MNIST's form, or of EMNIST's.

    Returns:
        Images `(count, 1, 28, 28)`, uint8, light on dark, one that is black if there are no strokes; and their notes.
    """
    image = open_picture(path)
    if image.size == (MNIST_SIDE, MNIST_SIDE) and (own := as_it_is(image, box)) is not None:
        return own[None], [""]
    frame = area = (0, 0, *image.size)
    ink = find_ink(image, area)
    shapes = find_shapes(ink)
    if len(shapes) == 1 and (sheet := sheet_of_paper(shapes[0], ink, image)) is not None:
        frame = area = around(sheet, area, ink.shape, margin=0)
        ink = find_ink(image, area)
        shapes = find_shapes(ink)
    while shapes:
        whole = torch.stack(shapes).any(0)
        closer = around(bounds(whole), area, ink.shape)
        if max(closer[2] - closer[0], closer[3] - closer[1]) > 0.9 * max(area[2] - area[0], area[3] - area[1]):
            break
        ink = find_ink(image, closer) * seen_from(whole, area, closer)
        area = closer
        shapes = find_shapes(ink)
    shapes = [shape for shape in shapes if not is_solid(filled(shape & (ink > 0.5), image, area))]
    if not shapes:
        return torch.zeros(1, 1, MNIST_SIDE, MNIST_SIDE, dtype=torch.uint8), ["no strokes found"]
    digits, notes = [], []
    for number, shape in enumerate(shapes, start=1):
        said = [f"{number} of {len(shapes)} in this picture"] if len(shapes) > 1 else []
        rows, columns = bounds(shape)
        if on_border((rows, columns), area, ink.shape, frame):
            said.append("touches the border")
        if columns.stop - columns.start > 1.7 * (rows.stop - rows.start):
            said.append("very wide")
        strokes = ink * shape
        if len(shapes) > 1:
            closer = around((rows, columns), area, ink.shape)
            again = find_ink(image, closer) * seen_from(shape, area, closer)
            strokes = again if again.max() > 0.5 else strokes
        digits.append(place(upright(strokes), box))
        notes.append("; ".join(said))
    return torch.stack(digits), notes


def open_picture(path: Path) -> Image.Image:
    """A picture in the mode "L" or "RGB", upright, with see-through parts in a tone that the strokes differ from."""
    with open_file(path) as file:
        file.draft(None, (2000, 2000))  # a JPEG file may be decoded at a fraction of its size
        image = load_upright(file)
    if image.mode == "F":
        deep = pil_to_tensor(image)[0].nan_to_num()
        return Image.fromarray(to_uint8((deep - deep.min()) / (deep.max() - deep.min()).clamp(min=1e-6))[0].numpy())
    if image.mode == "RGBA":
        tone, alpha = pil_to_tensor(image.convert("LA")).float()
        back = "black" if (tone * alpha).sum() >= 127.5 * alpha.sum() > 0 else "white"
        image = Image.alpha_composite(Image.new("RGBA", image.size, back), image)
    return image if image.mode == "L" else image.convert("RGB")


def as_it_is(image: Image.Image, box: int) -> Tensor | None:
    """A picture of 28x28 pixels as `(1, 28, 28)`, light on dark, if it lies as MNIST's, or EMNIST's, do, else None."""
    tone = pil_to_tensor(image.convert("L"))[0].float() / 255
    paper = torch.cat([tone[0], tone[-1], tone[:, 0], tone[:, -1]]).median()
    strokes = tone - paper if paper < 0.5 else paper - tone
    if paper not in (0, 1):  # grey paper, and perhaps noise
        strokes = (strokes / strokes.max().clamp(min=1e-6) - 0.1) / 0.9
    strokes = strokes.clamp(0, 1)
    sides = bounds(strokes > 0.1)
    if sides is None or abs(max(side.stop - side.start for side in sides) - box) > 2:
        return None
    off = [abs(middle(strokes.sum(axis), box) - (MNIST_SIDE - 1) / 2) for axis in (0, 1)]
    return to_uint8(strokes) if max(off) < 1.2 else None


def middle(profile: Tensor, box: int) -> float:
    """Where the middle of a digit is along an axis, in pixels: its centre of mass, of EMNIST's that of its box."""
    steps = torch.arange(len(profile)).float()
    if box == EMNIST_BOX:
        profile = profile > 0.1
        return float(steps[profile].min() + steps[profile].max()) / 2
    return float(profile @ steps / profile.sum())


def filled(shape: Tensor, image: Image.Image, area: Area) -> Tensor:
    """A shape seen of an area, with what lies within if it has the same tone: a sheet or a light, not only its rim."""
    sides = torch.zeros(shape.shape, dtype=torch.int)  # on how many there is some of the shape
    for axis in (0, 1):
        sides += shape.int().cummax(axis).values + shape.int().flip(axis).cummax(axis).values.flip(axis)
    inside = ~shape & (sides >= 3)
    whole = shape | inside
    if not (inside.any() and is_solid(whole)):
        return shape
    tone = pil_to_tensor(image.resize(shape.shape[::-1], box=area, reducing_gap=2).convert("L"))[0].float()
    near = F.max_pool2d(whole[None].float(), 17, 1, 8)[0] > 0
    rim, middle, outside = (tone[mask].mean() for mask in (shape, inside, near & ~whole))
    return whole if abs(middle - rim) < abs(middle - outside) else shape


def sheet_of_paper(shape: Tensor, ink: Tensor, image: Image.Image) -> Slices | None:
    """The rows and columns within a shape of a whole image that is large, full and lighter than what is around it.

    A sheet on a table is, also one that is tilted a little; a digit of a thick pen is darker, or of chalk has gaps.
    """
    tone = pil_to_tensor(image.resize(shape.shape[::-1], reducing_gap=2).convert("L"))[0]
    if tone[shape].median() <= tone[~shape].median():
        return None
    area = (0, 0, *image.size)
    rows, columns = bounds(filled(shape, image, area))
    full = filled(shape & (ink > 0.5), image, area)  # shapes are a little wider than strokes, and so close gaps
    short, long = sorted((rows.stop - rows.start, columns.stop - columns.start))
    for margin in (round(share * long) for share in (0.08, 0.14, 0.2)):
        inner = tuple(slice(side.start + margin, side.stop - margin) for side in (rows, columns))
        if short > max(0.3 * SIDE, 0.5 * long) and border_pixels(full[inner].float()).mean() > 0.95:
            return inner if full[inner].float().mean() > 0.8 else None
    return None


def around(box: Slices, area: Area, shape: torch.Size, margin: float = 0.4) -> Area:
    """What lies around a box of the picture that was seen of an area, with a margin, relative to its longer side."""
    (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
    margin *= max(bottom - top, right - left)
    scale = (area[2] - area[0]) / shape[1]
    return (
        max(area[0], area[0] + (left - margin) * scale),
        max(area[1], area[1] + (top - margin) * scale),
        min(area[2], area[0] + (right + margin) * scale),
        min(area[3], area[1] + (bottom + margin) * scale),
    )


def on_border(box: Slices, area: Area, shape: torch.Size, frame: Area) -> bool:
    """Whether a box of what was seen of an area touches the border of the picture, or of the sheet in it."""
    (top, bottom), (left, right) = ((side.start, side.stop) for side in box)
    touches = (left <= 1, top <= 1, right >= shape[1] - 1, bottom >= shape[0] - 1)
    return any(touch and side == end for touch, side, end in zip(touches, area, frame, strict=True))


def seen_from(mask: Tensor, area: Area, closer: Area) -> Tensor:
    """A mask of what was seen of an area as it is in a part of that."""
    scale = mask.shape[1] / (area[2] - area[0])
    box = [(side - start) * scale for side, start in zip(closer, area[:2] * 2, strict=True)]
    box = [min(max(side, 0), end) for side, end in zip(box, mask.shape[::-1] * 2, strict=True)]
    grown = Image.fromarray(F.max_pool2d(mask[None].float(), 3, 1, 1)[0].numpy())
    return pil_to_tensor(grown.resize(size_of(closer), Image.Resampling.BILINEAR, box))[0] > 0.25


def upright(strokes: Tensor) -> Tensor:
    """A digit `(height, width)` in the middle of a square, turned back if it is tilted too far, not too thin."""
    rows, columns = bounds(strokes > 0.3)
    digit = strokes[rows, columns]
    height, width = digit.shape
    side = 2 * max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = F.pad(digit, (left, side - width - left, top, side - height - top))
    steps = torch.linspace(-1, 1, side)
    mass = square / square.sum()
    x, y = steps - mass.sum(0) @ steps, steps - mass.sum(1) @ steps
    slant = float((y @ mass @ x) / (mass.sum(1) @ y.square()).clamp(min=1e-6))
    excess = slant - min(max(slant, SLANTS[0]), SLANTS[1])
    if excess:
        angle = -math.atan(excess) / 2  # the rest is sheared, which leaves horizontal strokes as they are
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0]])
        turn[:, 1] += excess / 2 * turn[:, 0]
        grid = F.affine_grid(turn[None], [1, 1, side, side], align_corners=False)
        square = F.grid_sample(square[None, None], grid, align_corners=False)[0, 0]
    edges = (square[1:, 1:] - square[1:, :-1]).square() + (square[1:, 1:] - square[:-1, 1:]).square()
    scale = max(height, width) / BOX
    thickness = 2 * square.sum() / edges.sqrt().sum().clamp(min=1e-6)
    if thickness < THIN * scale:
        wider = round(float(MEDIUM * scale - thickness) / 2)
        square = F.max_pool2d(square[None], 2 * wider + 1, 1, wider)[0]
    return square


def place(strokes: Tensor, box: int) -> Tensor:
    """A digit `(height, width)`, 0..1, in MNIST's or EMNIST's form: `(1, 28, 28)`, uint8."""
    rows, columns = bounds(strokes > 0.3)
    digit = strokes[rows, columns]
    size = [max(1, round(length * box / max(digit.shape))) for length in digit.shape]
    digit = F.interpolate(digit[None, None], size, mode="bilinear", antialias=True)[0, 0]
    corner = []
    for length, profile in zip(size, (digit.sum(1), digit.sum(0)), strict=True):
        corner.append(min(max(round(MNIST_SIDE / 2 - middle(profile, box)), 0), MNIST_SIDE - length))
    top, left = corner
    canvas = torch.zeros(MNIST_SIDE, MNIST_SIDE)
    canvas[top : top + size[0], left : left + size[1]] = digit
    return to_uint8(canvas)
