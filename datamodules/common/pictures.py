"""Picture files of any size, mode and colour: as they are, or made to look like MNIST's.

MNIST's digits are 28x28, grey, light on dark, scaled to a box of 20x20 and centred by their mass.
"""

import contextlib
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
LONGEST = 2000  # pixels along the longer side of a photograph


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


def open_picture(path: Path, channels: int, side: int | None = None) -> Image.Image:
    """A picture file, upright and plain, at a size that fits what it is for.

    Of an animation it is the first frame. See-through parts become white. 16 bits are brought down to 8 by their whole
    range. Numbers of 32 bits are taken to be in the smaller of 0..255 and 0..65535 that holds them, floating-point ones
    also in 0..1.

    Args:
        path: The file.
        channels: 1 for grey, 3 for red, green and blue.
        side: The least that is needed of height and width: a JPEG file may come smaller than it is, the others as they
            are. If not given, the picture is a photograph, scaled down to at most `LONGEST` pixels along its longer
            side: a large one takes memory only while it is decoded, and as a JPEG file little even then.

    Returns:
        The picture, in the mode "L" or "RGB".

    Raises:
        OSError: Not a picture, or a damaged one.
        ValueError: It has more pixels than Pillow opens.
    """
    with open_file(path) as file:
        if side is None:
            size = [max(1, length * LONGEST // max(file.size)) for length in file.size]
        else:
            size = [2 * side, 2 * side]
        file.draft(None, tuple(size))  # a JPEG file is decoded at a fraction of its size, if that is enough
        load_upright(file)
        deep = file.mode.startswith("I") or file.mode == "F"
        if deep:
            picture = file.convert("F")
        elif file.has_transparency_data:
            picture = file.convert("RGBA")
        else:
            picture = file.convert("RGB") if file.mode in ("1", "P") else file
        if side is None:  # bilinear has no negative weights: nothing gets out of the range of its numbers
            picture.thumbnail((LONGEST, LONGEST), Image.Resampling.BILINEAR, reducing_gap=None)
        if deep:  # convert("L") would cut them off at 255
            numbers = pil_to_tensor(picture)[0].nan_to_num()
            ranges = {"F": (1, 255, 65535), "I": (255, 65535)}.get(file.mode, (65535,))
            top = next((top for top in ranges if numbers.max() <= top), 65535)
            picture = Image.fromarray(as_bytes(numbers / top)[0].numpy())
        elif picture.mode == "RGBA":
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("L" if channels == 1 else "RGB")


def open_file(path: Path) -> Image.Image:
    """Opens a picture file as Pillow does, with as many pixels as it opens at all, and without its warning of many.

    Raises:
        OSError: Not a picture.
        ValueError: It has more pixels than Pillow opens.
    """
    # Once and for all, unless somebody has decided on it: warnings.catch_warnings isn't safe in threads.
    if not any(kind is Image.DecompressionBombWarning for _, _, kind, _, _ in warnings.filters):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {2 * Image.MAX_IMAGE_PIXELS} pixels: scale it down first") from error


def load_upright(file: Image.Image) -> None:
    """Loads the pixels of an opened file, rotated according to its EXIF data unless these are damaged."""
    file.load()
    with contextlib.suppress(*UNREADABLE):
        ImageOps.exif_transpose(file, in_place=True)


def read_square(path: Path, side: int, channels: int) -> Tensor:
    """A picture file as an image `(channels, side, side)`, uint8: as `open_picture` opens it, filling the square.

    What stands out of the square on two sides is cut off.

    Args:
        path: The file.
        side: Height and width of the image.
        channels: 1 for grey, 3 for red, green and blue.

    Raises:
        OSError: Not a picture, or a damaged one.
        ValueError: It has more pixels than Pillow opens.
    """
    picture = open_picture(path, channels, side)
    return pil_to_tensor(ImageOps.fit(picture, (side, side), Image.Resampling.BICUBIC))


def grey(path: Path) -> Tensor:
    """A picture file as `(height, width)`, float in 0..1: upright, the first frame, on an opposite background.

    Raises:
        OSError: Not a picture, or a damaged one.
        ValueError: It has more pixels than Pillow opens.
    """
    with open_file(path) as file:
        load_upright(file)
        if file.mode.startswith("I") or file.mode == "F":  # 16 bits and more: convert("L") would cut them off
            deep = pil_to_tensor(file.convert("F"))[0]
            return (deep - deep.min()) / (deep.max() - deep.min()).clamp(min=1e-6)
        tone, alpha = pil_to_tensor(file.convert("RGBA").convert("LA")).float() / 255
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
