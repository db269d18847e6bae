"""The commands that recognize people in pictures: enrol, identify, verify."""

import contextlib
import csv
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from datamodules.common.image_io import UNREADABLE, find_images, image_extensions, subfolders
from datamodules.face_data.detection import MARGIN, Face, FaceDetector
from datamodules.face_data.face_folder import FaceReader
from lit_models.common.files import atomic_write
from lit_models.common.messages import suggest
from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.faces.gallery import UNKNOWN, Gallery, GalleryMetadata, fingerprint, read_gallery, require_safetensors
from lit_models.training.checkpoint import build_model, read_model
from lit_models.training.trust import Modules


def enrol(
    ckpt_path: str,
    gallery: str,
    pictures: str | None = None,
    name: str | None = None,
    remove: str | None = None,
    far: float | None = None,
    threshold: float | None = None,
    detect: bool | None = None,
    detector: str | None = None,
    modules: Modules = None,
) -> None:
    """Makes a gallery of people to recognize, adds people to it, or removes one.

    A person who is in the gallery already is replaced. The threshold, the lowest similarity at which a face is
    identified, is chosen anew each time, unless it was given.

    Args:
        ckpt_path: The checkpoint of a FaceEmbedder.
        gallery: The gallery's file, which is made if there is none.
        pictures: A folder with a subfolder of pictures per person, named after them. With `name`, the pictures of one
            person, a folder or a file.
        name: Name of the one person.
        remove: Name of a person to remove.
        far: False-accept rate that the threshold is chosen for, with every picture as a stranger's to all other people;
            at least the threshold for strangers from the model's validation is used. The gallery's, or 0.01, if not
            given.
        threshold: A threshold in -1..1, instead of one that is chosen.
        detect: Whether faces are detected in the pictures, cropped and aligned; otherwise a picture is a face. As in
            the gallery, or as in training, if not given.
        detector: File of the YuNet detector, instead of OpenCV's Haar cascades.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].
    """
    path = Path(gallery)
    if not (pictures or remove):
        raise ValueError("there is nothing to do: give --pictures to enrol people, or --remove with a name")
    if name is not None and not pictures:
        raise ValueError("--name is of the person in --pictures: give them too, or leave it out")
    if far is not None and threshold is not None:
        raise ValueError("--far has a threshold chosen, --threshold gives one: leave one of them out")
    if far is not None and not 0 <= far < 1:
        raise ValueError(f"--far is {far}: it must be at least 0 and less than 1")
    check_threshold(threshold)
    model, trained = load_embedder(ckpt_path, modules)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file as --gallery")
    if path.exists() or remove is not None:
        known = read_gallery(path, model)
        if detect not in (None, known.metadata.detect) or detector not in (None, known.metadata.detector):
            raise ValueError(f"{path} was made with another --detect or --detector: leave them out")
    else:
        require_safetensors()  # before all pictures are read
        metadata = empty_metadata(model, trained, detect, detector)
        known = Gallery(metadata, torch.empty(0, model.hparams.embedding_dim), torch.empty(0, dtype=torch.int64))
    if remove is not None:
        if remove not in known.metadata.names:
            raise ValueError(f"{path} has nobody called {remove!r}{suggest(remove, known.metadata.names)}")
        known.remove(remove)
        print(f"removed {printable(remove)}")
    if pictures:
        recognizer = FaceRecognizer(model, known.metadata)
        for person, embeddings in embed_people(recognizer, find_people(Path(pictures), name)).items():
            replaced = known.put(person, embeddings)
            print(f"{'replaced' if replaced else 'enrolled'} {printable(person)}: {len(embeddings)} picture(s)")
    update_threshold(known, model, far, threshold)
    known.save(path)
    counts = f"{len(known.metadata.names)} people, {len(known.labels)} pictures"
    print(f"{printable(str(path))}: {counts}; {describe_threshold(known)}")


def identify(ckpt_path: str, gallery: str, pictures: list[str], output: str, modules: Modules = None) -> None:
    """Identifies the people in pictures: prints them, writes them to a CSV file, and draws them on copies.

    Args:
        ckpt_path: The checkpoint of the FaceEmbedder that the gallery was made with.
        gallery: The gallery.
        pictures: Files, or folders of them.
        output: A folder for `faces.csv` and the copies, with a box and a name at each face.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].
    """
    from lit_models.training.figures import draw_boxes  # matplotlib takes half a second to import

    model, _ = load_embedder(ckpt_path, modules)
    known = read_gallery(Path(gallery), model)
    if not known.metadata.names:
        raise ValueError(f"nobody is in {gallery}: enrol people first")
    paths = [path for given in pictures for path in picture_files(Path(given))]
    recognizer, folder = FaceRecognizer(model, known.metadata), Path(output)
    with writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
    rows = [["file", "face", "left", "top", "width", "height", "name", "similarity"]]
    taken, count = {path.resolve() for path in paths}, 0
    for path, picture, faces, embeddings in recognizer.embed_all(paths):
        count, captions = count + 1, []
        for number, (face, (name, similarity)) in enumerate(zip(faces, known.identify(embeddings), strict=True), 1):
            captions.append(f"{name} {similarity:.2f}")
            box = [round(edge) for edge in face.box]
            print(f"{printable(str(path))}: face {number} at {box}: {printable(name)} ({similarity:.3f})")
            rows.append([path, number, *box, name, f"{similarity:.4f}"])
        if not faces:
            print(f"{printable(str(path))}: no face is found")
            rows.append([path, 0, *[""] * 6])
        copy = draw_boxes(picture, [face.box for face in faces], captions)
        place = free_path(folder, path, taken)
        taken.add(place.resolve())
        with writing_into(folder):
            copy.save(place, quality=90)
    if not count:
        raise ValueError("none of the pictures can be read")
    with (
        atomic_write(folder / "faces.csv", "give another --output") as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows(rows)
    print(f"{count} pictures; names and boxes are in {printable(str(folder))}")


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
        pictures: Two files, with one face each.
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
        _, faces, embedding = recognizer.embed_faces(path)
        if len(faces) != 1:
            raise ValueError(f"{len(faces) or 'no'} face(s) in {path}: give a picture of one, or cut it out")
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

    def embed_faces(self, path: Path) -> tuple[Image.Image, list[Face], Tensor]:
        """A picture, upright, in RGB, its faces, the largest first, and their embeddings `(faces, dim)`."""
        if not path.is_file():
            raise FileNotFoundError(f"no picture {path}")
        try:
            picture, faces, images = self.reader.find(path)
        except UNREADABLE as error:
            raise ValueError(f"cannot read {path}: {error}") from error
        with torch.inference_mode():
            return picture, faces, self.model(images)

    def embed_all(self, paths: list[Path]) -> Iterator[tuple[Path, Image.Image, list[Face], Tensor]]:
        """The same of several files, with a progress bar; a warning names those that can't be read."""
        console = Console(stderr=True)
        for path in track(paths, "Reading pictures", console=console, transient=True, disable=not console.is_terminal):
            try:
                yield path, *self.embed_faces(path)
            except (FileNotFoundError, ValueError) as error:
                warnings.warn(f"{error}: left out", stacklevel=2)


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


def picture_files(path: Path) -> list[Path]:
    """The pictures in a folder, or the one file."""
    if not path.exists():
        raise FileNotFoundError(f"no picture or folder {path}")
    return find_images(path, image_extensions()) if path.is_dir() else [path]


def find_people(pictures: Path, name: str | None) -> dict[str, list[Path]]:
    """Picture files by person; all are of the one with the name, if it is given."""
    if not (pictures.is_dir() or (name is not None and pictures.is_file())):
        raise FileNotFoundError(f"no folder {pictures}: give the one above the people's folders, or one with --name")
    people = {name: pictures} if name is not None else {person: pictures / person for person in subfolders(pictures)}
    if not people:
        raise ValueError(f"{pictures} has no subfolders: give each person one, or --name for a single person")
    for person in people:
        if not person.strip() or person == UNKNOWN:
            raise ValueError(f"{person!r} cannot be a name: give another one")
    return {person: picture_files(path) for person, path in people.items()}


def embed_people(recognizer: FaceRecognizer, people: dict[str, list[Path]]) -> dict[str, Tensor]:
    """Embeddings `(pictures, dim)` by person, of the largest face in each picture."""
    found: dict[str, list[Tensor]] = {person: [] for person in people}
    owners = {file: person for person, files in people.items() for file in files}
    for path, _, faces, embeddings in recognizer.embed_all(list(owners)):
        if not faces:
            warnings.warn(f"no face in {path}: left out", stacklevel=2)
        elif len(faces) > 1:
            warnings.warn(f"{len(faces)} faces in {path}: the largest is taken", stacklevel=2)
        found[owners[path]] += embeddings[:1]
    if lost := [printable(person) for person, embeddings in found.items() if not embeddings]:
        raise ValueError(f"no picture of {', '.join(lost)} can be used: add one that shows their face, or remove them")
    return {person: torch.stack(embeddings) for person, embeddings in found.items()}


def check_threshold(threshold: float | None) -> None:
    """Raises a ValueError where a threshold is outside of -1..1."""
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"--threshold is {threshold}: it must be in -1..1")


def update_threshold(known: Gallery, model: FaceEmbedder, far: float | None, threshold: float | None) -> None:
    """Chooses a gallery's threshold, unless one is given, or was given before."""
    metadata, lowest = known.metadata, model.stranger_threshold.item()
    metadata.far = metadata.far if far is None else far
    if threshold is not None:
        metadata.far, metadata.threshold = None, threshold
    elif metadata.far is None:
        return  # it was given before
    elif len(metadata.names) < 2:
        if metadata.names and not math.isfinite(lowest):
            raise ValueError("a threshold cannot be chosen with only one person: give --threshold, such as 0.5")
        metadata.threshold = lowest
    else:
        known.choose_threshold(metadata.far)
        if math.isfinite(lowest):  # those trained on are no sample of strangers
            metadata.threshold = max(metadata.threshold, lowest)
        else:
            warnings.warn(
                "the model was not validated on people that it had not been trained on: if it was trained on those "
                "enrolled, strangers will be taken for them; give --threshold",
                stacklevel=2,
            )


def describe_threshold(known: Gallery) -> str:
    """A gallery's threshold, and what it was chosen by."""
    far, count = known.metadata.far, len(known.labels)
    text = f"threshold {known.metadata.threshold:.3f}"
    if far is None:
        return text
    if len(known.metadata.names) < 2:
        return f"{text}, the one of the model's validation, until there are two people"
    text += f", for a false-accept rate of {far:g} over {count} pictures"
    return text if far * count >= 1 else f"{text}, which are too few to tell less than {1 / count:.2g}"


@contextlib.contextmanager
def writing_into(folder: Path) -> Iterator[None]:
    """Names the output folder in the errors of writing into it."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror or error}): give another --output") from error


def free_path(folder: Path, source: Path, taken: set[Path]) -> Path:
    """A path for the copy of a picture that is not taken, by a source or an earlier copy."""
    stem, number = f"{source.stem}.faces", 1
    while (path := folder / f"{stem}{'' if number == 1 else f'_{number}'}.jpg").resolve() in taken:
        number += 1
    return path


def printable(text: str) -> str:
    """A text as one line without control characters, for any terminal."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
