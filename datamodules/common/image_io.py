"""Image files of any size and mode, read as uint8 tensors."""

import contextlib
import importlib.util
import os
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from lit_models.common.messages import missing_extra

MNIST_SIDE = 28
MIN_STROKE = 0.2  # what is weaker, relative to the strongest stroke, is paper, shadow or JPEG noise
MAX_SIDE = 2000  # pixels along the longer side of a photograph
# What Pillow's readers raise where a file is damaged, or isn't an image.
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, RuntimeError, struct.error, zlib.error)
UNREADABLE += (Image.DecompressionBombError,)
HEIC = {".heic", ".heif", ".hif"}
CLUTTER = {"__MACOSX", "@eaDir"}  # folders that macOS and NAS systems leave beside the files
DEEP_RANGES = (255, 1023, 4095, 16383, 65535)  # what is white in 8, 10, 12, 14 and 16 bits


@dataclass(eq=False)
class ImageFileDataset(Dataset[tuple[Tensor, list[str] | Tensor]]):
    """Image files, read when they are fetched, with their names or their labels.

    A file that can't be read is left out of its batch with a warning; with labels, it raises an OSError.
    """

    paths: Sequence[Path]
    read: Callable[[Path], Tensor]  # a file as a uint8 tensor
    shape: tuple[int, int, int]  # of that tensor, (channels, height, width)
    threads: int | None = None  # number of files that are read at a time; one per processor, if not given
    labels: Tensor | None = None  # (count,), int64, of files that have been read before

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, list[str] | Tensor]:
        """Images `(batch, *shape)`, uint8, and their files or labels; without labels, perhaps an empty batch."""
        images, names = [torch.empty(0, *self.shape, dtype=torch.uint8)], []
        paths = [self.paths[index] for index in indices]
        for path, image in zip(paths, read_images(paths, self.read, self.threads), strict=True):
            if isinstance(image, Tensor):
                images.append(image[None])
                names.append(str(path))
            elif self.labels is None:
                warnings.warn(f"cannot read {path}: {image}", stacklevel=2)
            else:
                raise OSError(f"{path} could be read at the start, but cannot any more ({image}): mend or remove it")
        return torch.cat(images), names if self.labels is None else self.labels[indices]


def read_images(
    paths: Sequence[Path], read: Callable[[Path], Tensor], threads: int | None = None
) -> Iterator[Tensor | Exception]:
    """Reads files in several threads, one per processor if not given; yields the error of a damaged one."""

    def read_one(path: Path) -> Tensor | Exception:
        try:
            return read(path)
        except UNREADABLE as error:
            return error

    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        yield from pool.map(read_one, paths)
    finally:  # when interrupted, without reading the rest first
        pool.shutdown(cancel_futures=True)


def read_readable(
    paths: Sequence[Path], read: Callable[[Path], Tensor], threads: int, max_unreadable: int
) -> Iterator[tuple[int, Tensor]]:
    """The index and content of each readable file; warns of up to `max_unreadable` others, and raises for more."""
    console, errors, limit = Console(stderr=True), [], max_unreadable
    options = {"console": console, "transient": True, "disable": rank_zero_only.rank != 0 or not console.is_terminal}
    images = track(read_images(paths, read, threads), "Reading images", total=len(paths), **options)
    for index, image in enumerate(images):
        if isinstance(image, Tensor):
            yield index, image
        else:
            errors.append(f"{paths[index]} ({image})")
    if errors:
        named = ", ".join(errors[: max(limit, 10)]) + (", ..." if len(errors) > max(limit, 10) else "")
        some = f"{len(errors)} of {len(paths)} images cannot be read"
        if len(errors) > limit or len(errors) == len(paths):
            raise ValueError(f"{some}, and data.max_unreadable is {limit}: {named}")
        warnings.warn(f"{some} and are left out: {named}", stacklevel=2)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not meant to be seen."""
    return name.startswith(".") or name in CLUTTER


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted, without hidden ones, and links to where it lies itself."""
    above = {folder.resolve(), *folder.resolve().parents, *map(Path.resolve, folder.absolute().parents)}
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not is_hidden(entry.name) and entry.is_dir()]
    return sorted(entry.name for entry in found if not (entry.is_symlink() and Path(entry.path).resolve() in above))


def find_files(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The files in a folder and its subfolders, sorted, and how many others were left out, by the reason.

    Links are followed, into each folder once, and never to one that holds the link itself.
    """
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    seen = {str(path.resolve()) for path in (folder, *folder.absolute().parents, *folder.resolve().parents)}

    def fail(error: OSError) -> None:
        raise error

    for here, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        entered = []
        for name in sorted(folders):
            target = os.path.realpath(os.path.join(here, name))
            if is_hidden(name):
                left_out["hidden"] += 1
            elif target in seen:
                left_out["links to folders that are read already"] += 1
            else:
                entered.append(name)
                seen.add(target)
        folders[:] = entered  # what os.walk goes on with
        for name in names:
            path = os.path.join(here, name)
            if is_hidden(name):
                left_out["hidden"] += 1
            elif os.path.isfile(path):
                files.append(Path(path))
            else:
                left_out["broken links" if os.path.islink(path) else "no files"] += 1
    return sorted(files), left_out


def find_images(folder: str | Path, extensions: Collection[str] | None = None) -> list[Path]:
    """The files in a folder and its subfolders, sorted, without hidden ones; of any extension, if none are given.

    Links are followed, see `find_files`. A file is taken by itself.
    """
    root = Path(folder)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"no file or folder {folder}")
    paths = [path for path in find_files(root)[0] if extensions is None or is_image(path, extensions)]
    if not paths:
        raise FileNotFoundError(f"no images in {folder}")
    return paths


def is_image(path: Path, extensions: Collection[str]) -> bool:
    """Whether a file has one of the extensions, or none, but an image as its content."""
    if suffix := path.suffix.lower():
        return suffix in extensions
    try:
        open_file(path).close()
    except UNREADABLE:
        return False
    return True


@cache
def image_extensions() -> frozenset[str]:
    """The file extensions that Pillow can read, in lower case, those of the extra `heic` too where it is installed."""
    if importlib.util.find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return frozenset(extension for extension, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def open_image(
    path: Path,
    channels: int,
    side: int | None = None,
    max_value: float | None = None,
    ranges: dict[Path, float] | None = None,
) -> Image.Image:
    """An image file in the mode "L" (1 channel) or "RGB" (3), upright.

    `side` is the least height and width that are needed: a JPEG file may be decoded at a fraction of its size. Without
    it, the image is a photograph, scaled down to at most `MAX_SIDE` pixels along its longer side.

    Of an animation, the first frame. Transparent parts become white. Numbers of more than 8 bits, whole or
    floating-point, are scaled so that `max_value` is white. Without it, that is recognized in each image, see
    `white_value`, and stored by its path in `ranges`, if they are given.
    """
    with open_file(path) as file:
        size = (2 * side, 2 * side) if side else [max(1, length * MAX_SIDE // max(file.size)) for length in file.size]
        file.draft(None, tuple(size))  # a JPEG file takes little memory, decoded at a fraction of its size
        image = load_upright(file)
        if side is None:  # bilinear has no negative weights, so numbers stay in their range
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR, reducing_gap=None)
        if image.mode == "F":
            numbers = pil_to_tensor(image)[0].nan_to_num()
            white = max_value or white_value(float(numbers.max()), floating=file.mode == "F")
            if ranges is not None:
                ranges[path] = white
            image = Image.fromarray(to_uint8(numbers / white)[0].numpy())
        elif image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if channels == 1 else "RGB")


def white_value(largest: float, floating: bool) -> float:
    """What is white where `largest` is the largest value: that of the fewest bits which hold it, or 1 of floats."""
    ranges = (1, *DEEP_RANGES) if floating else DEEP_RANGES
    return next((top for top in ranges if largest <= top), largest)


def open_file(path: Path) -> Image.Image:
    """Opens an image file of as many pixels as Pillow opens at all, without its warning of many."""
    extensions = image_extensions()
    # Once and for all, unless there is a filter for it: warnings.catch_warnings isn't safe in threads.
    if not any(kind is Image.DecompressionBombWarning for _, _, kind, _, _ in warnings.filters):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has more than {2 * Image.MAX_IMAGE_PIXELS} pixels: scale it down first") from error
    except UnidentifiedImageError as error:
        if path.suffix.lower() in HEIC - extensions:
            raise ValueError(missing_extra("heic", f"reading {path.suffix}")) from error
        raise


def load_upright(file: Image.Image) -> Image.Image:
    """The pixels of an opened file, rotated as its EXIF data say: "F" if deeper than 8 bits, "RGBA" if see-through."""
    file.load()
    with contextlib.suppress(*UNREADABLE):  # damaged EXIF data
        ImageOps.exif_transpose(file, in_place=True)
    if file.mode.startswith("I") or file.mode == "F":  # convert("L") would clip them at 255
        return file.convert("F")
    if file.has_transparency_data:
        return file.convert("RGBA")
    return file.convert("RGB") if file.mode in ("1", "P") else file


def read_image(
    path: Path, side: int, channels: int, max_value: float | None = None, ranges: dict[Path, float] | None = None
) -> Tensor:
    """An image file as `(channels, side, side)`, uint8: the largest square in its middle, scaled; see `open_image`."""
    image = open_image(path, channels, side, max_value, ranges)
    return pil_to_tensor(ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC))


def read_grayscale(path: Path) -> Tensor:
    """An image file as `(height, width)`, float in 0..1: upright, the first frame, on a background of contrast."""
    with open_file(path) as file:
        image = load_upright(file)
        if image.mode == "F":
            deep = pil_to_tensor(image)[0]
            return (deep - deep.min()) / (deep.max() - deep.min()).clamp(min=1e-6)
        tone, alpha = pil_to_tensor(image.convert("RGBA").convert("LA")).float() / 255
    # Transparent strokes are visible only on a background that differs from them.
    ink = (tone * alpha).sum() / alpha.sum().clamp(min=1e-6)
    return tone * alpha + (1 - alpha) * (ink < 0.5)


def border_pixels(image: Tensor) -> Tensor:
    """The outermost pixels of `(height, width)`, in one row."""
    return torch.cat([image[0], image[-1], image[:, 0], image[:, -1]])


def light_on_dark(image: Tensor) -> Tensor:
    """Strokes in 0..1 on a background of 0, from light on dark or dark on light; the border is background."""
    strokes = (image - border_pixels(image).median()).abs()
    strokes = strokes / strokes.max().clamp(min=1e-6)
    return ((strokes - MIN_STROKE) / (1 - MIN_STROKE)).clamp(min=0)


def scale_to(image: Tensor, side: int) -> Tensor:
    """Scales `(height, width)` so that its longer side is `side` pixels."""
    height, width = image.shape
    size = [max(1, round(length * side / max(height, width))) for length in (height, width)]
    return F.interpolate(image[None, None], size=size, mode="bilinear", antialias=True)[0, 0]


def read_garment(path: Path) -> Tensor:
    """An image that fills the frame, as Fashion-MNIST's and KMNIST's do: `(1, 28, 28)` uint8, centered."""
    small = scale_to(light_on_dark(read_grayscale(path)), MNIST_SIDE)
    height, width = small.shape
    top, left = (MNIST_SIDE - height) // 2, (MNIST_SIDE - width) // 2
    return to_uint8(F.pad(small, (left, MNIST_SIDE - width - left, top, MNIST_SIDE - height - top)))


def to_uint8(image: Tensor) -> Tensor:
    """`(1, height, width)` uint8 in 0..255 from `(height, width)` float in 0..1."""
    return (image.clamp(0, 1) * 255).round().byte()[None]
