"""The ink on a picture of paper, or the chalk on a board: what differs from the paper in the colour of the pen.

The paper is what is left when strokes are filled from around them, so it may lie in shadow.
"""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

SIDE = 160  # pixels along the longer side at which a picture is looked at
TILE = 4  # of those along a side of the tiles in which the paper is estimated
MIN_CONTRAST = 0.08  # of ink, relative to the paper; what is weaker is paper

Area = tuple[float, float, float, float]  # left, top, right and bottom, in the pixels of the file


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


def size_of(area: Area) -> tuple[int, int]:
    """Width and height at which an area is looked at."""
    sides = (area[2] - area[0], area[3] - area[1])
    return tuple(max(TILE, round(side * SIDE / max(sides))) for side in sides)
