"""Pictures from a folder, of any size and colour, made to look like MNIST's: 28x28, grey, light on dark."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

SIDE = 28
BOX = 20  # MNIST's digits were scaled to fit 20x20 and centred by their mass in 28x28
NOISE = 0.2  # weaker than this share of the strongest stroke is paper, shadow or JPEG


class PictureDataset(Dataset[tuple[Tensor, list[str]]]):
    """The files of a folder and of those below it, as images for a classifier, with their names.

    A file that can't be read as a picture is left out of its batch, and warned of by name.

    Args:
        folder: Where the pictures are. Hidden files are passed over.
        prepare: Makes an image `(1, height, width)`, uint8, of a grey picture with float values in 0..1.

    Raises:
        FileNotFoundError: There is no such folder, or no file in it.
    """

    def __init__(self, folder: str, prepare: Callable[[Tensor], Tensor]) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
        files = (path for path in root.rglob("*") if path.is_file())
        self.paths = sorted(
            path for path in files if not any(part.startswith(".") for part in path.parts[len(root.parts) :])
        )
        if not self.paths:
            raise FileNotFoundError(f"no pictures in {folder}")
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, list[str]]:
        """Images `(batch, 1, 28, 28)`, uint8, and their files; a batch of none where none can be read."""
        images, names = [torch.empty(0, 1, SIDE, SIDE, dtype=torch.uint8)], []
        for index in indices:
            path = self.paths[index]
            try:
                images.append(self.prepare(grey(path))[None])
                names.append(str(path))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                warnings.warn(f"cannot read {path}: {error}", stacklevel=2)
        return torch.cat(images), names


def grey(path: Path) -> Tensor:
    """A picture file as `(height, width)`, float in 0..1: upright, the first frame, on an opposite background.

    Raises:
        OSError: Not a picture, or a damaged one.
    """
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits and more: convert("L") would cut them off
            deep = pil_to_tensor(picture.convert("F"))[0]
            return (deep - deep.min()) / (deep.max() - deep.min()).clamp(min=1e-6)
        tone, alpha = pil_to_tensor(picture.convert("RGBA").convert("LA")).float() / 255
    # A see-through picture shows only what differs from the paper it is laid on.
    ink = (tone * alpha).sum() / alpha.sum().clamp(min=1e-6)
    return tone * alpha + (1 - alpha) * (ink < 0.5)


def border(picture: Tensor) -> Tensor:
    """The outermost pixels."""
    return torch.cat([picture[0], picture[-1], picture[:, 0], picture[:, -1]])


def light_on_dark(picture: Tensor) -> Tensor:
    """Strokes as 0..1 over a background of 0, whichever of the two was the lighter one; the border is background."""
    strokes = (picture - border(picture).median()).abs()
    strokes = strokes / strokes.max().clamp(min=1e-6)
    return ((strokes - NOISE) / (1 - NOISE)).clamp(min=0)


def fit(picture: Tensor, side: int) -> Tensor:
    """Scales a picture so that its longer side is `side` pixels."""
    height, width = picture.shape
    size = [max(1, round(length * side / max(height, width))) for length in (height, width)]
    return F.interpolate(picture[None, None], size=size, mode="bilinear", antialias=True)[0, 0]


def digit_from_picture(picture: Tensor) -> Tensor:
    """A handwritten digit or letter as MNIST has it: `(1, 28, 28)` uint8, scaled to 20x20, centred by its mass."""
    if picture.shape == (SIDE, SIDE):  # cut out already, and perhaps one of MNIST's own: at most to be inverted
        return as_bytes(1 - picture if border(picture).median() > 0.5 else picture)
    strokes = light_on_dark(picture)
    rows, columns = strokes.amax(1).nonzero(), strokes.amax(0).nonzero()
    if not len(rows):
        return torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    digit = fit(strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], BOX)
    canvas = torch.zeros(SIDE, SIDE)
    weights = digit / digit.sum()
    corner = []
    for length, mass in zip(digit.shape, (weights.sum(1), weights.sum(0)), strict=True):
        centre = float(mass @ torch.arange(length).float())
        corner.append(min(max(round(SIDE / 2 - centre), 0), SIDE - length))
    top, left = corner
    canvas[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return as_bytes(canvas)


def garment_from_picture(picture: Tensor) -> Tensor:
    """A picture that fills the image, as Fashion-MNIST's and KMNIST's do: `(1, 28, 28)` uint8, centred."""
    small = fit(light_on_dark(picture), SIDE)
    height, width = small.shape
    top, left = (SIDE - height) // 2, (SIDE - width) // 2
    return as_bytes(F.pad(small, (left, SIDE - width - left, top, SIDE - height - top)))


def as_bytes(picture: Tensor) -> Tensor:
    """`(1, height, width)` uint8 in 0..255 of `(height, width)` float in 0..1."""
    return (picture.clamp(0, 1) * 255).round().byte()[None]
