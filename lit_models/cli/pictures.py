"""The pictures that people are recognized in: files, those in folders, frames of videos, and standard input."""

import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.progress import track

from datamodules.common.image_io import MAX_SIDE, UNREADABLE, image_extensions, open_file, open_image
from datamodules.face_data.detection import Box, import_opencv
from datamodules.face_data.face_folder import describe_left_out, find_pictures
from lit_models.common.messages import inform

STDIN = Path("-")
# The endings of what FFmpeg decodes, in lower case.
VIDEOS = {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts"}
VIDEOS |= {".webm", ".wmv"}


class Picture(NamedTuple):
    """A picture of a file, or a frame of a video."""

    source: Path  # "-" is standard input
    image: Image.Image  # upright, in RGB, of at most MAX_SIDE pixels along its longer side
    size: tuple[int, int]  # of the picture in the file, upright
    time: float | None = None  # of a frame, in seconds from the start

    @property
    def title(self) -> str:
        """What it is called on the console."""
        name = "standard input" if self.source == STDIN else printable(str(self.source))
        return name if self.time is None else f"{name} at {self.time:.3f} s"

    @property
    def stem(self) -> str:
        """What a file that is made of it is called."""
        name = "stdin" if self.source == STDIN else self.source.stem
        return name if self.time is None else f"{name}.{self.time:08.3f}s"

    def clip(self, box: Box) -> Box:
        """The part of a box that is inside of the image."""
        left, top = max(box[0], 0.0), max(box[1], 0.0)
        right, bottom = min(box[0] + box[2], self.image.width), min(box[1] + box[3], self.image.height)
        return left, top, right - left, bottom - top

    def box_in_file(self, box: Box) -> list[int]:
        """A box in the image as left, top, width and height in pixels of the file, inside of its picture."""
        left, top, width, height = self.clip(box)
        across, down = (whole / own for whole, own in zip(self.size, self.image.size, strict=True))
        left, right = round(left * across), round((left + width) * across)
        top, bottom = round(top * down), round((top + height) * down)
        return [left, top, right - left, bottom - top]


def list_sources(given: Sequence[str], videos: bool) -> list[Path]:
    """The files that are given, with those in folders; says what of a folder is left out."""
    paths, extensions = [], image_extensions() | (VIDEOS if videos else set())
    for path in map(Path, given):
        if not path.is_dir():
            if path != STDIN and not path.exists():
                raise FileNotFoundError(f"no picture or folder {path}")
            paths.append(path)
            continue
        found, copies, others = find_pictures(path, extensions)
        left_out = ", ".join(describe_left_out(copies, others))
        if not found:
            raise FileNotFoundError(f"no images in {path}, only {left_out}")
        if left_out:
            inform(f"{printable(str(path))}: left out: {left_out}")
        paths += found
    if paths.count(STDIN) > 1:
        raise ValueError("standard input is one picture: give - once")
    return paths


def read_pictures(paths: Sequence[Path], interval: float | None = None) -> Iterator[Picture]:
    """Reads files, with a progress bar; a warning names those that can't be read, an error if it is the only one.

    Args:
        paths: Pictures and videos.
        interval: Seconds from one frame of a video to the next; if not given, videos aren't read.
    """
    console = Console(stderr=True)
    options = {"console": console, "transient": True, "disable": not console.is_terminal}
    total = sum(count_frames(path, interval) for path in paths)
    yield from track(read_each(paths, interval), "Reading pictures", total=total, **options)


def read_each(paths: Sequence[Path], interval: float | None) -> Iterator[Picture]:
    """See `read_pictures`."""
    for path in paths:
        try:
            if interval and path.suffix.lower() in VIDEOS:
                yield from read_video(path, interval)
            else:
                yield read_picture(path)
        except (OSError, ValueError) as error:
            if len(paths) == 1:
                raise
            warnings.warn(f"{printable(str(error))}: left out", stacklevel=2)


def read_picture(path: Path) -> Picture:
    """The picture of a file, or of standard input."""
    if path == STDIN:
        return read_stdin()
    if not path.is_file():
        raise FileNotFoundError(f"no picture {path}")
    try:
        image = open_image(path, channels=3)
        with open_file(path) as file:
            shorter, longer = sorted(file.size)
    except UnidentifiedImageError as error:
        video = path.suffix.lower() in VIDEOS
        what = "it is a video, of which only identify takes frames" if video else "it is no picture that Pillow knows"
        raise ValueError(f"cannot read {path}: {what}") from error
    except UNREADABLE as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    # As upright as the image is, whatever the file's EXIF data say.
    width, height = image.size
    return Picture(path, image, (longer if width > height else shorter, longer if height > width else shorter))


def read_stdin() -> Picture:
    """The picture that is piped in."""
    if sys.stdin.isatty():
        raise ValueError("- is a picture from standard input, but nothing is piped in: add < photo.jpg")
    content = sys.stdin.buffer.read()
    if not content:
        raise ValueError("cannot read a picture from standard input: it is empty")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")
        path.write_bytes(content)
        try:
            return read_picture(path)._replace(source=STDIN)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "a picture from standard input")) from error


def open_video(path: Path) -> Any:
    """OpenCV's capture of a video."""
    opencv = import_opencv()
    opencv.utils.logging.setLogLevel(opencv.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's is silent, too
    capture = opencv.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(f"cannot read {path}: it is no video that OpenCV can decode")
    return capture


def count_frames(path: Path, interval: float | None) -> int:
    """About how many pictures a file has, as far as it tells; 1 where it doesn't."""
    if not interval or path.suffix.lower() not in VIDEOS:
        return 1
    try:
        capture = open_video(path)
    except ValueError:
        return 1
    opencv = import_opencv()
    frames, rate = capture.get(opencv.CAP_PROP_FRAME_COUNT), capture.get(opencv.CAP_PROP_FPS)
    return max(1, min(round(frames), math.ceil(frames / rate / interval))) if rate > 0 else 1


def read_video(path: Path, interval: float) -> Iterator[Picture]:
    """Frames of a video, the first one of each interval of so many seconds; a warning, if it is cut short."""
    capture, opencv = open_video(path), import_opencv()
    expected, rate = capture.get(opencv.CAP_PROP_FRAME_COUNT), capture.get(opencv.CAP_PROP_FPS)
    count, due, time = 0, 0.0, 0.0
    while capture.grab():
        # Not every format has times.
        time = capture.get(opencv.CAP_PROP_POS_MSEC) / 1000 or (count / rate if rate > 0 else 0.0)
        count += 1
        if time < due - 0.001:
            continue
        due = (math.floor((time + 0.001) / interval) + 1) * interval
        found, frame = capture.retrieve()
        if found:
            image = Image.fromarray(opencv.cvtColor(frame, opencv.COLOR_BGR2RGB))
            size = image.size
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR)
            yield Picture(path, image, size, time)
    if not count:
        raise ValueError(f"cannot read {path}: it has no frames")
    # Frames that aren't evenly spaced are fewer than the file says, but go on to its end.
    if count < 0.9 * expected and time < 0.9 * expected / rate:
        warnings.warn(
            f"{printable(str(path))} seems damaged, or cut short: its frames end at {time:.1f} of "
            f"{expected / rate:.1f} s",
            stacklevel=2,
        )


def printable(text: str) -> str:
    """A text as one line without control characters, for any terminal."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
