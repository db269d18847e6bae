"""Faces from a folder with one subfolder per person: whole images, or the faces detected in them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from datamodules.common.image_io import find_images, image_extensions, open_image, read_readable, subfolders
from datamodules.face_data.detection import Face, FaceDetector, align


@dataclass
class FaceReader:
    """Reads faces, uint8, from image files."""

    shape: tuple[int, int, int]  # of a face, (channels, side, side)
    detector: FaceDetector | None  # None: an image is one face, and is resized as a whole
    margin: float  # around a face, as a fraction of its side
    every: bool = False  # whether to take all faces of an image, or the largest

    def find(self, path: Path) -> tuple[Image.Image, list[Face], Tensor]:
        """An image in RGB, the positions of its faces, the largest first, and the faces `(faces, *shape)`."""
        channels, side, _ = self.shape
        image = open_image(path, channels=3)
        tones = image.convert("L") if channels == 1 else image
        if self.detector is None:
            square = tones.resize((side, side), Image.Resampling.BICUBIC)
            return image, [Face((0.0, 0.0, *map(float, image.size)), None)], pil_to_tensor(square)[None]
        faces = self.detector(tones)
        crops = [align(tones, face, side, self.margin)[None] for face in faces]
        return image, faces, torch.cat([torch.empty(0, *self.shape, dtype=torch.uint8), *crops])

    def __call__(self, path: Path) -> Tensor:
        """The faces of a file, `(faces, *shape)`: all or the largest, if there are any."""
        return self.find(path)[2][: None if self.every else 1]

    def largest(self, path: Path) -> Tensor:
        """The largest face of a file; raises a ValueError where there is none."""
        faces = self(path)
        if not len(faces):
            raise ValueError("no face is found in it")
        return faces[0]


def read_identities(root: Path, read: FaceReader, threads: int, max_unreadable: int) -> tuple[Tensor, list[str]]:
    """The faces in a folder with one subfolder per person, `(faces, ...)`, and the path of each below `root`."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: set data.root to the folder that has one subfolder per person")
    people, extensions = subfolders(root), image_extensions()
    if len(people) < 2:
        raise ValueError(f"{root} has {len(people)} subfolder(s): it takes one per person, at least two")
    paths: list[Path] = []
    for person in people:
        try:
            paths += find_images(root / person, extensions)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}: fill the folder, or remove it") from error
    images, names, faceless = [], [], []
    for index, found in read_readable(paths, read, threads, max_unreadable):
        images.append(found)
        names += [paths[index].relative_to(root).as_posix()] * len(found)
        if not len(found):
            faceless.append(str(paths[index]))
    if faceless:
        some = f"{len(faceless)} of {len(paths)} images"
        warnings.warn(f"no face is found in {some}, which are left out: {', '.join(faceless)}", stacklevel=2)
    if lost := sorted(set(people) - {name.partition("/")[0] for name in names}):
        raise ValueError(f"no image of {', '.join(lost)} can be used: mend or add some, or remove the folder")
    return torch.cat(images), names
