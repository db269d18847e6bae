"""Detection of faces in photographs, and their alignment: upright crops, all with the eyes in the same places.

Legend: a point is `(x, y)` in pixels from the upper left corner of the image; the center of the first pixel is
`(0.5, 0.5)`. Pixels are `(height, width)` or `(height, width, 3)`, uint8.
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
Box = tuple[float, float, float, float]  # left, top, width and height, in pixels

# The square of a face: its side in distances between the eyes, and the height of the eyes below its upper edge, as a
# fraction of the side. Measured on ORL's 400 portraits, where Haar's boxes have the same side.
FACE_SIDE = 2.5
EYE_HEIGHT = 0.45
EYES_IN_BOX = ((0.29, 0.385), (0.69, 0.385))  # mean positions, as fractions of the sides of Haar's box
MARGIN = 0.035  # makes the faces as large, and the eyes as high, as in the central squares of ORL's portraits

MAX_SIDE, MIN_SIDE = 640, 240  # limits of an image's longer side during detection; beyond them it is scaled
EYE_SEARCH_SIDE = 200  # pixels, side of a face while its eyes are detected


class Face(NamedTuple):
    """The position of a face in an image."""

    box: Box  # may extend beyond the image
    eyes: tuple[Point, Point] | None  # the left one in the image first; None, if they were not found


class FaceDetector(threading.local):
    """Detects faces, with OpenCV's Haar cascades or with the `face_detection_yunet_*.onnx` at the path `yunet`.

    The cascades find frontal faces, tilted by up to about 10 degrees, and the eyes of most of them. A face must take
    about a 20th of the image's longer side; `docs/faces.md` has the figures. Every thread gets its own copy of a
    detector, since OpenCV's are not thread-safe. OpenCV is set to as many threads as torch, and prints nothing.
    """

    def __init__(self, yunet: str | None = None) -> None:
        self.yunet = yunet
        opencv = import_opencv()
        opencv.setNumThreads(torch.get_num_threads())
        opencv.utils.logging.setLogLevel(opencv.utils.logging.LOG_LEVEL_SILENT)
        self.engine = YuNet(opencv, yunet) if yunet else Cascades(opencv)

    def __reduce__(self) -> tuple[type, tuple[str | None]]:
        return FaceDetector, (self.yunet,)

    def __call__(self, image: Image.Image) -> list[Face]:
        """The faces in an image of the mode "L" or "RGB", the largest first."""
        pixels = np.asarray(image)
        opencv = import_opencv()
        longer = max(image.size)
        scale = min(max(longer, MIN_SIDE), MAX_SIDE) / longer
        size = [max(1, round(length * scale)) for length in image.size]
        border = round(max(size) * 0.15)  # all around, since a face that fills the image is not found
        searched = opencv.resize(pixels, size, interpolation=opencv.INTER_AREA if scale < 1 else opencv.INTER_LINEAR)
        searched = opencv.copyMakeBorder(searched, *[border] * 4, opencv.BORDER_REPLICATE)
        found = []
        for (left, top, width, height), eyes in self.engine.find(searched):
            box = ((left - border) / scale, (top - border) / scale, width / scale, height / scale)
            eyes = tuple(((x - border) / scale, (y - border) / scale) for x, y in eyes or ())
            eyes = eyes or self.engine.find_eyes(pixels, box)  # YuNet finds them with the face
            found.append(Face(box, eyes if eyes and plausible_eyes(eyes, box) else None))
        faces: list[Face] = []
        for face in sorted(found, key=lambda face: -face.box[2] * face.box[3]):
            inside = centered_in(face.box, (0, 0, *image.size))  # and not in the border
            if inside and not any(centered_in(face.box, larger.box) for larger in faces):  # a mouth, or the face again
                faces.append(face)
        return faces


class Cascades:
    """OpenCV's Haar cascades for frontal faces and for eyes."""

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
        """The boxes of faces."""
        boxes = self.faces.detectMultiScale(self._to_gray(pixels), 1.1, 4, minSize=(24, 24))
        return [(tuple(map(float, box)), None) for box in boxes]

    def find_eyes(self, pixels: np.ndarray, box: Box) -> tuple[Point, Point] | None:
        """The pair of eyes of a face with the most detections; None, if no two of them fit the face."""
        left, top, side, _ = box
        face = crop_square(self._to_gray(pixels), (left + side / 2, top + side / 2), side, 0.0, EYE_SEARCH_SIDE)
        upper = np.ascontiguousarray(face[: round(0.6 * EYE_SEARCH_SIDE)])  # which holds the eyes
        smallest, largest = (EYE_SEARCH_SIDE // 8,) * 2, (EYE_SEARCH_SIDE // 2,) * 2
        boxes, counts = self.eyes.detectMultiScale2(upper, 1.1, 3, minSize=smallest, maxSize=largest)
        scale = side / EYE_SEARCH_SIDE
        eyes = [(left + (x + w / 2) * scale, top + (y + h / 2) * scale) for x, y, w, h in map(np.ndarray.tolist, boxes)]
        found = list(zip(counts, eyes, strict=True))
        pairs = [(int(n + m), (a, b)) for n, a in found for m, b in found if plausible_eyes((a, b), box)]
        return max(pairs)[1] if pairs else None

    def _to_gray(self, pixels: np.ndarray) -> np.ndarray:
        return pixels if pixels.ndim == 2 else self.opencv.cvtColor(pixels, self.opencv.COLOR_RGB2GRAY)


class YuNet:
    """YuNet, a small network in OpenCV that detects faces with their eyes."""

    def __init__(self, opencv: ModuleType, path: str) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}: yunet is the path of a face_detection_yunet_*.onnx")
        self.opencv = opencv
        try:
            self.network = opencv.FaceDetectorYN.create(path, "", (MAX_SIDE, MAX_SIDE), score_threshold=0.7)
            self.find(np.zeros((MIN_SIDE, MIN_SIDE), np.uint8))  # other networks fail only when they are run
        except opencv.error as error:
            raise ValueError(f"{path} is no YuNet model that OpenCV {opencv.__version__} can run") from error

    def find(self, pixels: np.ndarray) -> list[tuple[Box, tuple[Point, Point]]]:
        """The boxes and eyes of faces."""
        change = self.opencv.COLOR_GRAY2BGR if pixels.ndim == 2 else self.opencv.COLOR_RGB2BGR
        self.network.setInputSize((pixels.shape[1], pixels.shape[0]))
        _, rows = self.network.detect(self.opencv.cvtColor(pixels, change))
        numbers = [] if rows is None else rows.tolist()
        return [((x, y, w, h), tuple(sorted([(ax, ay), (bx, by)]))) for x, y, w, h, ax, ay, bx, by, *_ in numbers]


def import_opencv() -> Any:
    """The module `cv2`, or a ValueError that names the extra to install."""
    require_extra("faces", "finding faces (with detect false, an image is one face)", "cv2")
    import cv2

    return cv2


def plausible_eyes(eyes: tuple[Point, Point], box: Box) -> bool:
    """Whether two points, the left one first, can be the eyes of the face in a box."""
    (x, y), (other_x, other_y) = eyes
    across, down = (other_x - x) / box[2], (other_y - y) / box[2]
    center = ((x + other_x) / 2 - box[0]) / box[2]
    return abs(down) < across and 0.25 < math.hypot(across, down) < 0.6 and 0.25 < center < 0.75


def centered_in(box: Box, larger: Box) -> bool:
    """Whether the center of a box lies in another one."""
    x, y = box[0] + box[2] / 2 - larger[0], box[1] + box[3] / 2 - larger[1]
    return 0 <= x <= larger[2] and 0 <= y <= larger[3]


def align(image: Image.Image, face: Face, side: int, margin: float = MARGIN) -> Tensor:
    """Crops a face of an "L" or "RGB" image to `(1 or 3, side, side)`, uint8, with its eyes always in the same places.

    The crop is a square with the side `FACE_SIDE` times the distance between the eyes, which are level in it, centered
    horizontally, and `EYE_HEIGHT` of the side below the upper edge; and around it the margin, a fraction of that side.
    Eyes that were not found are assumed at their mean positions in a face's box. Beyond the image its outermost pixels
    are repeated.
    """
    left, top, width, height = face.box
    (x, y), (other_x, other_y) = face.eyes or [(left + width * a, top + height * b) for a, b in EYES_IN_BOX]
    across, down = other_x - x, other_y - y
    length = FACE_SIDE * math.hypot(across, down)
    below = (0.5 - EYE_HEIGHT) * FACE_SIDE  # from the eyes' center to the square's, in distances between the eyes
    center = ((x + other_x) / 2 - below * down, (y + other_y) / 2 + below * across)
    square = crop_square(np.asarray(image), center, length * (1 + 2 * margin), math.atan2(down, across), side)
    return torch.from_numpy(square.reshape(side, side, -1)).permute(2, 0, 1).contiguous()


def crop_square(pixels: np.ndarray, center: Point, length: float, angle: float, side: int) -> np.ndarray:
    """Crops a square of `length` pixels, rotated clockwise by `angle` radians, and scales it to `side`."""
    opencv = import_opencv()
    reach = length / math.sqrt(2) + 2  # to its corners, and the neighbors that are averaged there
    size = (pixels.shape[1], pixels.shape[0])
    low = [min(max(0, math.floor(at - reach)), end - 1) for at, end in zip(center, size, strict=True)]
    high = [max(min(end, math.ceil(at + reach)), first + 1) for at, end, first in zip(center, size, low, strict=True)]
    part = pixels[low[1] : high[1], low[0] : high[0]]
    if side < length:  # averages pixels: the warp below takes the nearest ones alone
        reduced = [max(1, round((end - start) * side / length)) for start, end in zip(low, high, strict=True)]
        part = opencv.resize(part, reduced, interpolation=opencv.INTER_AREA)
    scale = np.array([part.shape[1] / (high[0] - low[0]), part.shape[0] / (high[1] - low[1])])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale[:, None] * turn * length / side  # from the result's pixels to the part's
    # OpenCV's origin is the center of the first pixel, not its corner.
    offset = scale * (np.array(center) - low) + linear @ [0.5 - side / 2, 0.5 - side / 2] - 0.5
    flags = opencv.INTER_LINEAR | opencv.WARP_INVERSE_MAP
    matrix = np.column_stack([linear, offset])
    return opencv.warpAffine(part, matrix, (side, side), flags=flags, borderMode=opencv.BORDER_REPLICATE)
