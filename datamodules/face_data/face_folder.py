"""Faces from the pictures in a folder with a subfolder a person: each picture as it is, or the faces found in it."""

import warnings
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from datamodules.common.pictures import find_pictures, open_picture, picture_endings
from datamodules.face_data.detection import Face, FaceDetector, align
from datamodules.folder import read_with_progress, report_unreadable, subfolders


class FaceReader:
    """Reads faces `(channels, side, side)`, uint8, from picture files.

    Args:
        shape: The faces' `(channels, side, side)`.
        detector: Finds the faces. If not given, a picture is a face, and is brought to the square as a whole.
        margin: Share of a face's side that is added on every side.
        every: Whether all faces of a picture are taken, or the largest.
    """

    def __init__(
        self, shape: tuple[int, int, int], detector: FaceDetector | None, margin: float, every: bool = False
    ) -> None:
        self.shape, self.detector, self.margin, self.every = shape, detector, margin, every

    def find(self, path: Path) -> tuple[Image.Image, list[Face], Tensor]:
        """A picture in RGB, where its faces are in it, the largest first, and they as `(faces, *shape)`.

        Raises:
            OSError: Not a picture, or a damaged one.
            ValueError: It has more pixels than Pillow opens.
        """
        channels, side, _ = self.shape
        picture = open_picture(path, channels=3)
        tones = picture.convert("L") if channels == 1 else picture
        if self.detector is None:
            square = tones.resize((side, side), Image.Resampling.BICUBIC)
            return picture, [Face((0.0, 0.0, *map(float, picture.size)), None)], pil_to_tensor(square)[None]
        faces = self.detector(tones)
        images = [align(tones, face, side, self.margin)[None] for face in faces]
        return picture, faces, torch.cat([torch.empty(0, *self.shape, dtype=torch.uint8), *images])

    def __call__(self, path: Path) -> Tensor:
        """The faces of a file, `(faces, *shape)`: none, one, or, if all are taken, several."""
        return self.find(path)[2][: None if self.every else 1]

    def largest(self, path: Path) -> Tensor:
        """The largest face of a file; raises a ValueError where there is none."""
        faces = self(path)
        if not len(faces):
            raise ValueError("no face is found in it")
        return faces[0]


def read_people(root: Path, read: FaceReader, threads: int, max_unreadable: int) -> tuple[Tensor, list[str]]:
    """The faces in the folders of people: images `(faces, ...)`, and for each the path of its file below `root`.

    Files that can't be read and pictures without a face are named in a warning, and left out.

    Args:
        root: The folder above them.
        read: Reads a file.
        threads: How many files are read at a time.
        max_unreadable: How many files at most may be damaged.

    Raises:
        FileNotFoundError: There is no such folder, or no picture of a person.
        ValueError: There are fewer than two people; more files are damaged; nothing of a person's can be used.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: set data.root to the folder that has a subfolder for each person")
    people, endings = subfolders(root), picture_endings()
    if len(people) < 2:
        raise ValueError(f"{root} has {len(people)} subfolder(s): give each person one of their own, two at least")
    paths: list[Path] = []
    for person in people:
        try:
            paths += find_pictures(root / person, endings)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}: fill the folder, or remove it") from error
    images, names, errors, faceless = [], [], [], []
    for path, found in zip(paths, read_with_progress(paths, read, threads), strict=True):
        if not isinstance(found, Tensor):
            errors.append(f"{path} ({found})")
        elif not len(found):
            faceless.append(str(path))
        else:
            images.append(found)
            names += [path.relative_to(root).as_posix()] * len(found)
    report_unreadable(errors, len(paths), max_unreadable)
    if faceless:
        warnings.warn(
            f"no face is found in {len(faceless)} of {len(paths)} pictures, which are left out: {', '.join(faceless)}",
            stacklevel=2,
        )
    if lost := sorted(set(people) - {name.partition("/")[0] for name in names}):
        raise ValueError(f"no picture of {', '.join(lost)} can be used: mend or add some, or remove the folder")
    return torch.cat(images), names
