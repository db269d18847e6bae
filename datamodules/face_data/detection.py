"""Faces in photographs: found, and cut out upright, all in the same framing.

Legend: a point is `(x, y)` in pixels of the picture, from its left upper corner, so that the middle of the first pixel
is `(0.5, 0.5)`. A face's own square has the side 1.
"""

import math
import threading
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_models.common.messages import require_extra

Point = tuple[float, float]
Box = tuple[float, float, float, float]

# A face's square: its side in distances between the eyes, and how far below its upper edge they lie. Measured on ORL's
# 400 portraits, where Haar's boxes have the same side, and the eyes in their upper part.
SIDE = 2.5
EYE_HEIGHT = 0.45
EYES_IN_BOX = ((0.29, 0.385), (0.69, 0.385))  # as shares of the sides of Haar's box, on the average
MARGIN = 0.035  # with it a cut-out face is as large, and its eyes as high, as in the middle squares of ORL's portraits

LONGEST, SHORTEST = 640, 240  # a picture's longer side while it is searched: larger or smaller ones are scaled
BORDER = 0.15  # of the longer side, added all around, since a face that fills the picture is not found
LEAST = 24  # pixels, a face's side while it is searched for
EYE_SIDE = 200  # pixels, a face's side while its eyes are searched for
UPPER = 0.6  # the share of a face that holds its eyes


class Face(NamedTuple):
    """A face in a picture.

    Attributes:
        box: Left, top, width and height, in pixels; it may stand out of the picture.
        eyes: The eye further left in the picture, and the other; None, where they were not found.
    """

    box: Box
    eyes: tuple[Point, Point] | None


class FaceDetector(threading.local):
    """Finds faces: `detector(picture)`. With OpenCV's Haar cascades, or with YuNet, if its file is given.

    The cascades find faces from the front, tilted by up to about 15 degrees, and the eyes in most of them. A face must
    take about a 25th of the picture's longer side. Every thread that uses a detector has its own copy of it, since
    OpenCV's are not safe in threads. OpenCV works in as many threads as torch does, and prints nothing.

    Args:
        yunet: The path of a `face_detection_yunet_*.onnx`; it is not part of this package.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: OpenCV is missing, or has no cascades any more; the file is no YuNet model.
    """

    def __init__(self, yunet: str | None = None) -> None:
        self.yunet = yunet
        opencv = import_opencv()
        opencv.setNumThreads(torch.get_num_threads())
        opencv.utils.logging.setLogLevel(opencv.utils.logging.LOG_LEVEL_SILENT)
        self.engine = YuNet(opencv, yunet) if yunet else Cascades(opencv)

    def __reduce__(self) -> tuple[type, tuple[str | None]]:
        return FaceDetector, (self.yunet,)

    def __call__(self, picture: Image.Image) -> list[Face]:
        """The faces in a picture of the mode "L" or "RGB", the largest first."""
        pixels = np.asarray(picture)
        opencv = import_opencv()
        longer = max(picture.size)
        scale = min(max(longer, SHORTEST), LONGEST) / longer
        size = [max(1, round(length * scale)) for length in picture.size]
        border = round(max(size) * BORDER)
        searched = opencv.resize(pixels, size, interpolation=opencv.INTER_AREA if scale < 1 else opencv.INTER_LINEAR)
        searched = opencv.copyMakeBorder(searched, *[border] * 4, opencv.BORDER_REPLICATE)
        found = []
        for (left, top, width, height), eyes in self.engine.find(searched):
            box = ((left - border) / scale, (top - border) / scale, width / scale, height / scale)
            if eyes:
                eyes = tuple(((x - border) / scale, (y - border) / scale) for x, y in eyes)
            else:
                eyes = self.engine.find_eyes(pixels, box)
            found.append(Face(box, eyes if eyes and plausible(eyes, box) else None))
        faces: list[Face] = []
        for face in sorted(found, key=lambda face: -face.box[2] * face.box[3]):
            if not any(inside(face.box, larger.box) for larger in faces):  # a mouth, or the same face once more
                faces.append(face)
        return faces


class Cascades:
    """OpenCV's Haar cascades for faces from the front and for eyes.

    Args:
        opencv: The module.

    Raises:
        ValueError: It has no cascades.
    """

    def __init__(self, opencv: ModuleType) -> None:
        if not (hasattr(opencv, "CascadeClassifier") and hasattr(opencv, "data")):
            raise ValueError(
                f"OpenCV {opencv.__version__} has no Haar cascades: pip install 'opencv-python-headless>=4.8,<5', or "
                "name a YuNet model with yunet"
            )
        self.opencv = opencv
        folder = Path(opencv.data.haarcascades)
        self.faces = opencv.CascadeClassifier(str(folder / "haarcascade_frontalface_alt2.xml"))
        self.eyes = opencv.CascadeClassifier(str(folder / "haarcascade_eye.xml"))

    def find(self, pixels: np.ndarray) -> list[tuple[Box, None]]:
        """The boxes of faces in `(height, width)` or `(height, width, 3)` pixels."""
        boxes = self.faces.detectMultiScale(self._grey(pixels), 1.1, 4, minSize=(LEAST, LEAST))
        return [(tuple(map(float, box)), None) for box in boxes]

    def find_eyes(self, pixels: np.ndarray, box: Box) -> tuple[Point, Point] | None:
        """Of the pairs of eyes that a face may have, the one that was found most often, at neighbouring places."""
        left, top, side, _ = box
        face = cut(self._grey(pixels), (left + side / 2, top + side / 2), side, 0.0, EYE_SIDE)
        upper = np.ascontiguousarray(face[: round(UPPER * EYE_SIDE)])
        least, most = (EYE_SIDE // 8,) * 2, (EYE_SIDE // 2,) * 2
        boxes, counts = self.eyes.detectMultiScale2(upper, 1.1, 3, minSize=least, maxSize=most)
        scale = side / EYE_SIDE
        eyes = [(left + (x + w / 2) * scale, top + (y + h / 2) * scale) for x, y, w, h in map(np.ndarray.tolist, boxes)]
        pairs = [
            (int(counts[i] + counts[j]), (eyes[i], eyes[j]))
            for i in range(len(eyes))
            for j in range(len(eyes))
            if plausible((eyes[i], eyes[j]), box)
        ]
        return max(pairs)[1] if pairs else None

    def _grey(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if pixels.ndim == 2 else self.opencv.cvtColor(pixels, self.opencv.COLOR_RGB2GRAY)


class YuNet:
    """YuNet, a small network that finds faces with their eyes, as OpenCV runs it.

    Args:
        opencv: The module.
        path: The ONNX file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no YuNet model.
    """

    def __init__(self, opencv: ModuleType, path: str) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}: yunet is the path of a face_detection_yunet_*.onnx")
        self.opencv = opencv
        try:
            self.network = opencv.FaceDetectorYN.create(path, "", (LONGEST, LONGEST), score_threshold=0.7)
            self.find(np.zeros((SHORTEST, SHORTEST), np.uint8))  # other networks fail only when they are run
        except opencv.error as error:
            raise ValueError(f"{path} is no YuNet model that OpenCV {opencv.__version__} can run") from error

    def find(self, pixels: np.ndarray) -> list[tuple[Box, tuple[Point, Point]]]:
        """The boxes and eyes of faces in `(height, width)` or `(height, width, 3)` pixels."""
        change = self.opencv.COLOR_GRAY2BGR if pixels.ndim == 2 else self.opencv.COLOR_RGB2BGR
        self.network.setInputSize((pixels.shape[1], pixels.shape[0]))
        _, rows = self.network.detect(self.opencv.cvtColor(pixels, change))
        numbers = [] if rows is None else rows.tolist()
        return [((x, y, w, h), tuple(sorted([(ax, ay), (bx, by)]))) for x, y, w, h, ax, ay, bx, by, *_ in numbers]

    def find_eyes(self, pixels: np.ndarray, box: Box) -> None:
        """None: it has found them with the face."""


def import_opencv() -> Any:
    """The module `cv2`.

    Raises:
        ValueError: It is not installed.
    """
    require_extra("faces", "finding faces (with detect false, a picture is taken as it is)", "cv2")
    import cv2

    return cv2


def plausible(eyes: tuple[Point, Point], box: Box) -> bool:
    """Whether two points, the left one first, can be the eyes of the face in a box."""
    (x, y), (other_x, other_y) = eyes
    across, down = (other_x - x) / box[2], (other_y - y) / box[2]
    middle = ((x + other_x) / 2 - box[0]) / box[2]
    return abs(down) < across and 0.25 < math.hypot(across, down) < 0.6 and 0.25 < middle < 0.75


def inside(box: Box, larger: Box) -> bool:
    """Whether the middle of a box lies in another one."""
    x, y = box[0] + box[2] / 2 - larger[0], box[1] + box[3] / 2 - larger[1]
    return 0 <= x <= larger[2] and 0 <= y <= larger[3]


def align(picture: Image.Image, face: Face, side: int, margin: float = MARGIN) -> Tensor:
    """Cuts a face out of a picture, its eyes on a level, always at the same places.

    What is cut out is the face's square: turned so that the eyes are on a level, its side `SIDE` times the distance
    between them, their middle halfway across and `EYE_HEIGHT` of the side below the upper edge; and the margin around.
    Eyes that were not found are taken to be where a face's box has them on the average. Outside of the picture its
    outermost pixels are repeated. A face that becomes smaller is averaged, not sampled.

    Args:
        picture: Of the mode "L" or "RGB".
        face: A face in it.
        side: Height and width of the result.
        margin: What is added on every side, as a share of the square's side: 0.1 for a tenth.

    Returns:
        The face `(1 or 3, side, side)`, uint8, in the colours of the picture.
    """
    left, top, width, height = face.box
    (x, y), (other_x, other_y) = face.eyes or [(left + width * a, top + height * b) for a, b in EYES_IN_BOX]
    across, down = other_x - x, other_y - y
    length = SIDE * math.hypot(across, down)
    below = (0.5 - EYE_HEIGHT) * SIDE  # from the eyes' middle to that of the square, in distances between the eyes
    middle = ((x + other_x) / 2 - below * down, (y + other_y) / 2 + below * across)
    square = cut(np.asarray(picture), middle, length * (1 + 2 * margin), math.atan2(down, across), side)
    return torch.from_numpy(square.reshape(side, side, -1)).permute(2, 0, 1).contiguous()


def cut(pixels: np.ndarray, middle: Point, length: float, angle: float, side: int) -> np.ndarray:
    """A square out of a picture, scaled.

    Args:
        pixels: `(height, width)` or `(height, width, 3)`, uint8.
        middle: The middle of the square.
        length: Its side in the picture.
        angle: By how much it is turned, clockwise, in radians.
        side: Its side in the result.

    Returns:
        `(side, side)` or `(side, side, 3)`, uint8.
    """
    opencv = import_opencv()
    reach = length / math.sqrt(2) + 2  # to its corners, and the neighbours that are averaged there
    size = (pixels.shape[1], pixels.shape[0])
    low = [min(max(0, math.floor(at - reach)), most - 1) for at, most in zip(middle, size, strict=True)]
    high = [max(min(most, math.ceil(at + reach)), first + 1) for at, most, first in zip(middle, size, low, strict=True)]
    part = pixels[low[1] : high[1], low[0] : high[0]]
    if side < length:  # the warp below takes the nearest pixels alone
        reduced = [max(1, round((end - start) * side / length)) for start, end in zip(low, high, strict=True)]
        part = opencv.resize(part, reduced, interpolation=opencv.INTER_AREA)
    scale = np.array([part.shape[1] / (high[0] - low[0]), part.shape[0] / (high[1] - low[1])])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale[:, None] * turn * length / side  # from the result's pixels to the part's
    # OpenCV counts from the middle of the first pixel, and not from its corner.
    offset = scale * (np.array(middle) - low) + linear @ [0.5 - side / 2, 0.5 - side / 2] - 0.5
    flags = opencv.INTER_LINEAR | opencv.WARP_INVERSE_MAP
    matrix = np.column_stack([linear, offset])
    return opencv.warpAffine(part, matrix, (side, side), flags=flags, borderMode=opencv.BORDER_REPLICATE)
