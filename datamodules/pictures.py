"""Picture files of any size, mode and colour: as they are, or made to look like MNIST's.

MNIST's digits are 28x28, grey, light on dark, scaled to a box of 20x20 and centred by their mass.
"""

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

SIDE = 28
BOX = 20
NOISE = 0.2  # weaker than this share of the strongest stroke is paper, shadow or JPEG
# What Pillow's readers raise where a file is damaged, or isn't a picture.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, RuntimeError, struct.error, zlib.error)
UNREADABLE += (Image.DecompressionBombError,)


class PictureDataset(Dataset[tuple[Tensor, list[str]]]):
    """Picture files as images for a classifier, with their names.

    A file that can't be read as a picture is left out of its batch, and warned of by name.

    Args:
        paths: The files.
        prepare: Makes a uint8 image of a file.
        shape: The shape of every image, `(channels, height, width)`.
        threads: How many files are read at a time; one a processor, if not given.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        prepare: Callable[[Path], Tensor],
        shape: tuple[int, int, int],
        threads: int | None = None,
    ) -> None:
        self.paths = paths
        self.prepare = prepare
        self.shape = shape
        self.threads = threads

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, list[str]]:
        """Images `(batch, *shape)`, uint8, and their files; a batch of none where none can be read."""
        images, names = [torch.empty(0, *self.shape, dtype=torch.uint8)], []
        paths = [self.paths[index] for index in indices]
        for path, image in zip(paths, read_pictures(paths, self.prepare, self.threads), strict=True):
            if isinstance(image, Tensor):
                images.append(image[None])
                names.append(str(path))
            else:
                warnings.warn(f"cannot read {path}: {image}", stacklevel=2)
        return torch.cat(images), names


def read_pictures(
    paths: Sequence[Path], prepare: Callable[[Path], Tensor], threads: int | None = None
) -> Iterator[Tensor | Exception]:
    """Reads files in several threads, one a processor if not given; a file that can't be read gives its error."""

    def read(path: Path) -> Tensor | Exception:
        try:
            return prepare(path)
        except UNREADABLE as error:
            return error

    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        yield from pool.map(read, paths)
    finally:  # interrupted, it does not read the rest first
        pool.shutdown(cancel_futures=True)


def find_pictures(folder: str | Path, endings: set[str] | None = None) -> list[Path]:
    """The files in a folder and below it, in order; hidden ones are passed over.

    Args:
        folder: Where to look.
        endings: Take only files that end so, in upper or lower case: `{".png", ".jpg"}`. Any, if not given.

    Raises:
        FileNotFoundError: There is no such folder, or no such file in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    paths = sorted(
        path
        for path in root.rglob("*")
        if (endings is None or path.suffix.lower() in endings)
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not paths:
        raise FileNotFoundError(f"no pictures in {folder}")
    return paths


def picture_endings() -> set[str]:
    """The endings of the files that Pillow can read, in lower case."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def read_square(path: Path, side: int, channels: int) -> Tensor:
    """A picture file as an image `(channels, side, side)`, uint8: upright, scaled so that it fills the square.

    What stands out of the square on two sides is cut off. Of an animation it is the first frame. See-through parts
    become white. 16 bits are brought down to 8 by their whole range. Numbers of 32 bits are taken to be in the smaller
    of 0..255 and 0..65535 that holds them, floating-point ones also in 0..1.

    Args:
        path: The file.
        side: Height and width of the image.
        channels: 1 for grey, 3 for red, green and blue.

    Raises:
        OSError: Not a picture, or a damaged one.
    """
    with Image.open(path) as file:
        file.draft(None, (2 * side, 2 * side))  # a JPEG file is decoded at a fraction of its size, if that is enough
        picture = ImageOps.exif_transpose(file)
        if picture.mode.startswith("I") or picture.mode == "F":  # convert("L") would cut them off at 255
            deep = pil_to_tensor(picture.convert("F"))[0].nan_to_num()
            ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(picture.mode, (65535,))
            top = next((top for top in ranges if deep.max() <= top), 65535)
            picture = Image.fromarray(as_bytes(deep / top)[0].numpy())
        elif picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("L" if channels == 1 else "RGB")
        return pil_to_tensor(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC))


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


def read_digit(path: Path) -> Tensor:
    """A file with a handwritten digit or letter as `digit_from_picture` makes it."""
    return digit_from_picture(grey(path))


def read_garment(path: Path) -> Tensor:
    """A file with a garment or a Kuzushiji character as `garment_from_picture` makes it."""
    return garment_from_picture(grey(path))


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
