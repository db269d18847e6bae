"""Faces from a folder with one subfolder per person: whole images, or the faces detected in them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from datamodules.common.image_io import (
    UNREADABLE,
    find_images,
    image_extensions,
    open_file,
    open_image,
    read_readable,
    subfolders,
)
from datamodules.face_data.detection import Face, FaceDetector, align
from lit_models.common.messages import format_list, inform

COPY_COMMENT = b"a copy by lit_models identify"  # of a JPEG file, so that it is not taken for a picture


@dataclass
class FaceReader:
    """Finds faces in images, uint8."""

    shape: tuple[int, int, int]  # of a face, (channels, side, side)
    detector: FaceDetector | None  # None: an image is one face, and is resized as a whole
    margin: float  # around a face, as a fraction of its side
    every: bool = False  # whether to take all faces of an image, or the largest

    def find(self, image: Image.Image) -> tuple[list[Face], Tensor]:
        """The positions of the faces in an image in RGB, the largest first, and the faces `(faces, *shape)`."""
        channels, side, _ = self.shape
        tones = image.convert("L") if channels == 1 else image
        if self.detector is None:
            square = tones.resize((side, side), Image.Resampling.BICUBIC)
            return [Face((0.0, 0.0, *map(float, image.size)), None)], pil_to_tensor(square)[None]
        faces = self.detector(tones)
        crops = [align(tones, face, side, self.margin)[None] for face in faces]
        return faces, torch.cat([torch.empty(0, *self.shape, dtype=torch.uint8), *crops])

    def __call__(self, path: Path) -> Tensor:
        """The faces of a file, `(faces, *shape)`: all or the largest, if there are any."""
        return self.find(open_image(path, channels=3))[1][: None if self.every else 1]

    def largest(self, path: Path) -> Tensor:
        """The largest face of a file; raises a ValueError where there is none."""
        faces = self(path)
        if not len(faces):
            raise ValueError("no face is found in it")
        return faces[0]


def find_pictures(folder: Path, extensions: set[str]) -> tuple[list[Path], list[Path], list[Path]]:
    """The pictures in a folder and its subfolders, sorted; what is left out: copies by `identify`, and other files."""
    files = find_images(folder)
    pictures = [path for path in files if path.suffix.lower() in extensions]
    copies = [path for path in pictures if is_copy(path)]
    others = sorted({*files} - {*pictures})
    return [path for path in pictures if path not in copies] if copies else pictures, copies, others


def is_copy(path: Path) -> bool:
    """Whether a file is a copy of a picture that `identify` has drawn boxes on."""
    if ".faces" not in path.stem:
        return False
    try:
        with open_file(path) as file:
            return file.info.get("comment") == COPY_COMMENT
    except UNREADABLE:
        return False


def describe_left_out(copies: list[Path], others: list[Path]) -> list[str]:
    """What of a folder is left out, in words."""
    kinds = sorted({path.suffix.lower() or path.name for path in others})
    said = [f"{len(others)} file(s) of other kinds ({format_list(kinds)})"] if others else []
    return said + ([f"{len(copies)} copies drawn by identify"] if copies else [])


def list_people(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The images by person in a folder with one subfolder for each, and what is left out, in words."""
    people, copies, extensions = {}, [], image_extensions()
    others = [path for path in root.iterdir() if path.is_file() and not path.name.startswith(".")]
    for person in subfolders(root):
        try:
            paths, own_copies, own_others = find_pictures(root / person, extensions)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}: fill the folder, or remove it") from error
        if not (paths or own_copies):
            only = f", only {', '.join(describe_left_out([], own_others))}" if own_others else ""
            raise FileNotFoundError(f"no images in {root / person}{only}: fill the folder, or remove it")
        if paths:  # otherwise an output folder of `identify`
            people[person] = paths
        copies += own_copies
        others += own_others
    return people, describe_left_out(copies, others)


def read_identities(root: Path, read: FaceReader, threads: int, max_unreadable: int) -> tuple[Tensor, list[str]]:
    """The faces in a folder with one subfolder per person, `(faces, ...)`, and the path of each below `root`."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: set data.root to the folder that has one subfolder per person")
    people, left_out = list_people(root)
    if len(people) < 2:
        raise ValueError(f"{root} has {len(people)} subfolder(s): it takes one per person, at least two")
    paths = [path for own in people.values() for path in own]
    images, names, faceless = [], [], []
    for index, found in read_readable(paths, read, threads, max_unreadable):
        images.append(found)
        names += [paths[index].relative_to(root).as_posix()] * len(found)
        if not len(found):
            faceless.append(str(paths[index]))
    if faceless:
        some = f"{len(faceless)} of {len(paths)} images"
        warnings.warn(f"no face is found in {some}, which are left out: {format_list(faceless)}", stacklevel=2)
    if lost := sorted(set(people) - {name.partition("/")[0] for name in names}):
        raise ValueError(f"no image of {', '.join(lost)} can be used: mend or add some, or remove the folder")
    left_out += [f"{damaged} that cannot be read"] if (damaged := len(paths) - len(images)) else []
    left_out += [f"{len(faceless)} without a face"] if faceless else []
    said = f"{root}: {len(names)} {'faces' if read.detector else 'images'} of {len(people)} people"
    inform(f"{said}; left out: {', '.join(left_out)}" if left_out else said)
    return torch.cat(images), names
