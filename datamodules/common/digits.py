"""Photographs, scans and drawings of digits or letters, read into the form of MNIST's.

MNIST's digits are light on black, 20 pixels along the longer side, in 28x28 pixels, with the centre of mass in the
middle (LeCun et al., 1998). A picture is looked at 160 pixels along its longer side, then once more at what is on it:

1. The paper, or the board, is what is left when strokes are filled from around them, so it may lie in shadow.
2. Ink is what differs from the paper in the colour of the pen, in 0..1.
3. Connected ink is put together to digits: pieces belong to the nearest, specks and long lines to none.
4. Very thin strokes are made wider, and a digit that is tilted more than people write is turned back.
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

BOX = 20  # pixels along the longer side of MNIST's digits
EMNIST_BOX = 24  # of EMNIST's, with the middle of their box, not their mass, in the middle (Cohen et al., 2017)
SIDE = 160  # pixels along the longer side at which a picture is looked at
TILE = 4  # of those along a side of the tiles in which the paper is estimated
MIN_CONTRAST = 0.08  # of ink, relative to the paper; what is weaker is paper
SPECK = 5  # pixels along the longer side of what is at most dirt
SLANTS = (-0.5, 0.1)  # of the middle 80% of MNIST's digits, as x over y, downwards: most lean to the right
THIN, MEDIUM = 1.7, 2.2  # strokes that are too thin, of 20 pixels, and what they become

Slices = tuple[slice, slice]  # rows and columns
Area = tuple[float, float, float, float]  # left, top, right and bottom, in the pixels of the file


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


def find_ink(image: Image.Image, area: Area) -> Tensor:
    """How much ink there is in an area, `(height, width)`, 0..1, with the longer side of `SIDE` pixels."""
    small = image.resize(size_of(area), Image.Resampling.BICUBIC, area, reducing_gap=2)
    tone = pil_to_tensor(small).float() / 255
    tiles = F.avg_pool2d(tone[None], TILE, ceil_mode=True, count_include_pad=False)[0]
    plane = plane_of_border(tiles.mean(0))
    if (tiles.mean(0) - plane).pow(3).sum() > 0:  # strokes are lighter than the paper
        tone, tiles, plane = 1 - tone, 1 - tiles, 1 - plane
    tone, tiles, plane = tone.clamp(min=0.02), tiles.clamp(min=0.02), plane.clamp(min=0.02)
    paper = closing(tiles / plane, radius=max(tiles.shape) // 4) * plane
    for _ in range(3):
        depth = (1 - tiles / paper).amax(0)
        marked = depth > 0.35 * depth.max().clamp(min=MIN_CONTRAST)
        near = F.max_pool2d(marked[None].float(), 3, 1, 1)[0] > 0
        paper = fill(tiles, ~(marked if near.all() else near))
        paper = F.avg_pool2d(paper[None], 3, 1, 1, count_include_pad=False)[0]
    depth = 1 - tone / F.interpolate(paper[None], tone.shape[1:], mode="bilinear")[0]  # (channels, height, width)
    strength = depth.square().sum(0)
    color = depth[:, strength >= strength.max() / 4].mean(1)
    ink = torch.einsum("chw,c->hw", depth, color) / color.square().sum().clamp(min=1e-6)
    noise = ink[ink < 0.3].abs().median()
    if color.max() < MIN_CONTRAST or noise > 0.08:
        return torch.zeros_like(ink)
    return ((ink / ink[ink > 0.5].median() - 0.3) / 0.4).clamp(0, 1)


def plane_of_border(tone: Tensor) -> Tensor:
    """The plane, `(height, width)`, through most of the border of a picture of that size: paper in sloping light."""
    height, width = tone.shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    terms = torch.stack([torch.ones_like(x), x, y], dim=-1)
    border = torch.ones_like(tone, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    weights = torch.ones(int(border.sum()), 1)
    for _ in range(5):  # the least absolute deviation, by reweighting: strokes may touch the border
        plane = torch.linalg.lstsq(terms[border] * weights, tone[border][:, None] * weights).solution
        weights = (tone[border][:, None] - terms[border] @ plane).abs().add(0.02).rsqrt()
    return (terms @ plane)[..., 0]


def closing(image: Tensor, radius: int) -> Tensor:
    """`(channels, height, width)` without what is dark and narrower than twice the radius (a morphological closing)."""
    for sign in (1, -1):
        image = F.max_pool2d(sign * image[None], (2 * radius + 1, 1), 1, (radius, 0))
        image = sign * F.max_pool2d(image, (1, 2 * radius + 1), 1, (0, radius))[0]
    return image


def fill(image: Tensor, known: Tensor) -> Tensor:
    """`(channels, height, width)` where it is known, continued elsewhere from ever coarser means around it."""
    if known.all() or max(known.shape) == 1:
        return image
    share = F.avg_pool2d(known[None].float(), 2, ceil_mode=True)[0]
    mean = F.avg_pool2d((image * known)[None], 2, ceil_mode=True)[0] / share.clamp(min=1e-6)
    coarse = F.interpolate(fill(mean, share > 0)[None], known.shape, mode="bilinear")[0]
    return torch.where(known, image, coarse)


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


def is_solid(shape: Tensor) -> bool:
    """Whether a shape holds a square of more than half its longer side, which strokes hardly do."""
    rows, columns = bounds(shape)
    side = math.ceil(0.55 * max(rows.stop - rows.start, columns.stop - columns.start))
    if side > min(shape.shape):
        return False
    rest = -F.max_pool2d(F.max_pool2d(-shape[None].float(), (side, 1), 1), (1, side), 1)
    return bool(rest.any())


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


def size_of(area: Area) -> tuple[int, int]:
    """Width and height at which an area is looked at."""
    sides = (area[2] - area[0], area[3] - area[1])
    return tuple(max(TILE, round(side * SIDE / max(sides))) for side in sides)


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
