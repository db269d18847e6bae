"""The commands that recognize people in pictures: identify, verify."""

import contextlib
import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from datamodules.face_data.detection import MARGIN, Face, FaceDetector
from datamodules.face_data.face_folder import COPY_COMMENT, FaceReader, is_copy
from lit_models.cli.pictures import list_sources, printable, read_picture, read_pictures
from lit_models.common.files import atomic_write
from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.faces.gallery import GalleryMetadata, fingerprint, read_gallery
from lit_models.training.checkpoint import build_model, read_model
from lit_models.training.trust import Modules

COLUMNS = ["file", "face", "left", "top", "width", "height", "name", "similarity", "time"]


def identify(
    ckpt_path: str, gallery: str, pictures: list[str], output: str, interval: float = 1.0, modules: Modules = None
) -> None:
    """Identifies the people in pictures and videos: prints them, writes them to a CSV file, and draws them on copies.

    Boxes are in pixels of the file, upright as a viewer shows it, and inside of the picture. The copies have at most
    2000 pixels along their longer side; of a video, they are of the frames with faces.

    Args:
        ckpt_path: The checkpoint of the FaceEmbedder that the gallery was made with.
        gallery: The gallery.
        pictures: Pictures, videos, or folders of them; - is a picture from standard input.
        output: A folder for `faces.csv` and the copies, with a box and a name at each face.
        interval: Seconds of a video from one frame that is looked at to the next, above 0.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].
    """
    from lit_models.training.figures import draw_boxes  # matplotlib takes half a second to import

    if not 0 < interval < math.inf:
        raise ValueError(f"--interval is {interval}: it must be above 0, in seconds")
    model, _ = load_embedder(ckpt_path, modules)
    known = read_gallery(Path(gallery), model)
    if not known.metadata.names:
        raise ValueError(f"nobody is in {gallery}: enrol people first")
    paths = list_sources(pictures, videos=True)
    recognizer, folder = FaceRecognizer(model, known.metadata), Path(output)
    table = folder / "faces.csv"
    with writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
        check_table(table)
    rows, faces_in = [COLUMNS], {"pictures": [], "frames": []}  # how many faces, of each
    taken = {path.resolve() for path in paths}
    for picture in read_pictures(paths, interval):
        faces, embeddings = recognizer.embed(picture.image)
        captions, time = [], "" if picture.time is None else f"{picture.time:.3f}"
        faces_in["frames" if time else "pictures"].append(len(faces))
        for number, (face, (name, similarity)) in enumerate(zip(faces, known.identify(embeddings), strict=True), 1):
            captions.append(f"{name} {similarity:.2f}")
            box = picture.box_in_file(face.box)
            print(f"{picture.title}: face {number} at {box}: {printable(name)} ({similarity:.3f})")
            rows.append([picture.source, number, *box, name, f"{similarity:.4f}", time])
        if not faces:
            rows.append([picture.source, 0, *[""] * 6, time])
            if time:
                continue
            print(f"{picture.title}: no face is found")
        copy = draw_boxes(picture.image, [picture.clip(face.box) for face in faces], captions)
        place = free_path(folder, picture.stem, taken)
        taken.add(place.resolve())
        with writing_into(folder):
            copy.save(place, quality=90, comment=COPY_COMMENT)
    if not any(faces_in.values()):
        raise ValueError("none of the pictures can be read")
    with (
        atomic_write(table, "give another --output") as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(rows)
    frames = faces_in["frames"]
    of_videos = f", {len(frames)} frames of videos, {sum(map(bool, frames))} of them with faces" if frames else ""
    print(f"{len(faces_in['pictures'])} pictures{of_videos}; names and boxes are in {printable(str(folder))}")


def verify(
    ckpt_path: str,
    pictures: list[str],
    threshold: float | None = None,
    detect: bool | None = None,
    detector: str | None = None,
    modules: Modules = None,
) -> None:
    """Prints whether two pictures show the same person.

    Args:
        ckpt_path: The checkpoint of a FaceEmbedder.
        pictures: Two files, with one face each; - is standard input.
        threshold: Lowest similarity, in -1..1, at which they do. That of the last validation in training, for a
            false-accept rate of 0.01, if not given.
        detect: Whether faces are detected in the pictures; otherwise a picture is a face. As in training, if not given.
        detector: File of the YuNet detector, instead of OpenCV's Haar cascades.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].
    """
    if len(pictures) != 2:
        raise ValueError(f"two pictures are compared, but {len(pictures)} are given")
    check_threshold(threshold)
    model, trained = load_embedder(ckpt_path, modules)
    recognizer = FaceRecognizer(model, empty_metadata(model, trained, detect, detector))
    limit = model.threshold.item() if threshold is None else threshold
    if math.isinf(limit):
        raise ValueError(f"{ckpt_path} has no threshold, since it was trained without validation: give --threshold")
    embeddings = []
    for path in map(Path, pictures):
        picture = read_picture(path)
        faces, embedding = recognizer.embed(picture.image)
        if len(faces) != 1:
            raise ValueError(f"{len(faces) or 'no'} face(s) in {picture.title}: give a picture of one, or cut it out")
        embeddings.append(embedding)
    similarity = (embeddings[0] @ embeddings[1].T).item()
    answer = "the same person" if similarity >= limit else "different people"
    print(f"{answer}: similarity {similarity:.3f}, threshold {limit:.3f}")


class FaceRecognizer:
    """A trained model with the preprocessing of its pictures: `detect`, `detector` and `margin` of the metadata."""

    def __init__(self, model: FaceEmbedder, metadata: GalleryMetadata) -> None:
        shape = (model.in_channels, model.image_size, model.image_size)
        detector = FaceDetector(metadata.detector) if metadata.detect else None
        self.model, self.reader = model, FaceReader(shape, detector, metadata.margin)

    def embed(self, image: Image.Image) -> tuple[list[Face], Tensor]:
        """The faces in an upright image in RGB, the largest first, and their embeddings `(faces, dim)`."""
        faces, images = self.reader.find(image)
        with torch.inference_mode():
            return faces, self.model(images)


def load_embedder(ckpt_path: str, modules: Modules = None) -> tuple[FaceEmbedder, dict[str, Any]]:
    """The model of a checkpoint, and the hyperparameters of its training data."""
    checkpoint = read_model(ckpt_path)
    model = build_model(checkpoint, ckpt_path, modules=modules)
    if not isinstance(model, FaceEmbedder):
        raise ValueError(f"{ckpt_path} holds {type(model).__name__}, not a FaceEmbedder, which recognizes people")
    return model, checkpoint.get("datamodule_hyper_parameters") or {}


def empty_metadata(
    model: FaceEmbedder, trained: dict[str, Any], detect: bool | None, detector: str | None
) -> GalleryMetadata:
    """Metadata of an empty gallery, with the preprocessing of the `trained` data unless another is given."""
    detect = trained.get("detect", True) if detect is None else detect
    if detector and not detect:
        raise ValueError("--detector looks for faces, but --detect is false: leave one of them out")
    detector = (detector or trained.get("detector")) if detect else None
    margin = trained.get("margin", MARGIN)
    return GalleryMetadata(fingerprint(model), [], detect, detector, margin, far=0.01, threshold=math.inf)


def check_threshold(threshold: float | None) -> None:
    """Raises a ValueError where a threshold is outside of -1..1."""
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"--threshold is {threshold}: it must be in -1..1")


@contextlib.contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Names the output folder in the errors of writing into it."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror or error}): give another --output") from error


def check_table(path: Path) -> None:
    """Raises a ValueError where something else than a table of `identify` would be overwritten."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            if not file.readline().startswith(",".join(COLUMNS[:3])):
                raise ValueError(f"{path} is not a table of identify: give another --output")


def free_path(folder: Path, stem: str, taken: set[Path]) -> Path:
    """A path for the copy of a picture that is neither of a source, nor an earlier copy, nor anything of the user's."""
    number = 1
    while True:
        path = folder / f"{stem}.faces{'' if number == 1 else f'_{number}'}.jpg"
        if path.resolve() not in taken and (is_copy(path) or not path.exists()):
            return path
        number += 1
