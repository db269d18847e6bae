"""The command that makes and changes galleries of people to recognize: enrol."""

import math
import unicodedata
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datamodules.face_data.face_folder import list_people
from lit_models.cli.pictures import list_sources, printable, read_pictures
from lit_models.cli.recognition import FaceRecognizer, check_threshold, empty_metadata, load_embedder
from lit_models.common.messages import format_list, inform, suggest
from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.faces.gallery import UNKNOWN, Gallery, read_gallery, require_safetensors
from lit_models.training.trust import Modules


def enrol(
    ckpt_path: str,
    gallery: str,
    pictures: list[str] | None = None,
    name: str | None = None,
    replace: bool = False,
    remove: str | None = None,
    far: float | None = None,
    threshold: float | None = None,
    detect: bool | None = None,
    detector: str | None = None,
    modules: Modules = None,
) -> None:
    """Makes a gallery of people to recognize, adds people to it, or removes one.

    Pictures of a person who is in the gallery already are added to theirs. The threshold, the lowest similarity at
    which a face is identified, is chosen anew each time, unless it was given.

    Args:
        ckpt_path: The checkpoint of a FaceEmbedder.
        gallery: The gallery's file, which is made if there is none.
        pictures: A folder with a subfolder of pictures per person, named after them. With `name`, the pictures of one
            person, files or folders.
        name: Name of the one person.
        replace: Whether the pictures replace those that the gallery has of these people, instead of being added.
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
    if replace and not pictures:
        raise ValueError("--replace is about the people in --pictures: give them too, or leave it out")
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
    said = []
    if remove is not None:
        remove = remove if remove in known.metadata.names else clean_name(remove)
        if remove not in known.metadata.names:
            raise ValueError(f"{path} has nobody called {remove!r}{suggest(remove, known.metadata.names)}")
        said.append(f"removed {printable(remove)}")
        known.remove(remove)
    if pictures:
        recognizer = FaceRecognizer(model, known.metadata)
        for person, embeddings in embed_people(recognizer, find_people(pictures, name)).items():
            said.append(add_person(known, person, embeddings, replace))
    update_threshold(known, model, far, threshold)
    known.save(path)
    counts = f"{len(known.metadata.names)} people, {len(known.labels)} pictures"
    print(*said, f"{printable(str(path))}: {counts}; {describe_threshold(known)}", sep="\n")


def find_people(pictures: Sequence[str], name: str | None) -> dict[str, list[Path]]:
    """Picture files by person; all are of the one with the name, if it is given."""
    if name is not None:
        found = {name: list_sources(pictures, videos=False)}
    else:
        folder = Path(pictures[0])
        if len(pictures) > 1 or not folder.is_dir():
            given = "several --pictures" if len(pictures) > 1 else f"no folder {folder}"
            raise FileNotFoundError(f"{given}: give the folder above the people's, or the pictures of one with --name")
        found, left_out = list_people(folder)
        if not found:
            raise ValueError(f"{folder} has no subfolders: give each person one, or --name for a single person")
        if left_out:
            inform(f"{printable(str(folder))}: left out: {', '.join(left_out)}")
    people: dict[str, list[Path]] = {}
    for person, paths in found.items():
        if (cleaned := clean_name(person)) in ("", UNKNOWN):
            raise ValueError(f"{person!r} cannot be a name: give another one")
        people.setdefault(cleaned, []).extend(paths)
    return people


def clean_name(name: str) -> str:
    """A name without spaces around it, its letters composed: systems decompose those in the names of folders."""
    return unicodedata.normalize("NFC", name.strip())


def embed_people(recognizer: FaceRecognizer, people: dict[str, list[Path]]) -> dict[str, Tensor]:
    """Embeddings `(pictures, dim)` by person, of the largest face in each picture."""
    found: dict[str, list[Tensor]] = {person: [] for person in people}
    owners = {file: person for person, files in people.items() for file in files}
    for picture in read_pictures(list(owners)):
        faces, embeddings = recognizer.embed(picture.image)
        if not faces:
            warnings.warn(f"no face in {picture.title}: left out", stacklevel=2)
        elif len(faces) > 1:
            warnings.warn(f"{len(faces)} faces in {picture.title}: the largest is taken", stacklevel=2)
        found[owners[picture.source]] += embeddings[:1]
    if lost := [printable(person) for person, embeddings in found.items() if not embeddings]:
        raise ValueError(f"no picture of {', '.join(lost)} can be used: add one that shows their face, or remove them")
    return {person: torch.stack(embeddings) for person, embeddings in found.items()}


def add_person(known: Gallery, person: str, embeddings: Tensor, replace: bool) -> str:
    """Puts a person's pictures into a gallery, and says what it has of them now; warns of what looks like a mistake."""
    before, shown = known.count(person), printable(person)
    if replace and before:
        known.remove(person)
    if alike := [name for name in known.metadata.names if name != person and name.casefold() == person.casefold()]:
        warnings.warn(f"{shown} is another person than {printable(alike[0])}: remove one, if not", stacklevel=2)
    added = known.add(person, embeddings)
    if others := known.sharing(person):
        names = printable(format_list(others))
        warnings.warn(f"a picture of {shown} is one of {names}, too: remove who is wrong", stacklevel=2)
    if replace and before:
        said = f"replaced {shown}: {added} picture(s) instead of {before}"
    elif before:
        said = f"added {added} picture(s) to {shown}, who has {before + added} now"
    else:
        said = f"enrolled {shown}: {added} picture(s)"
    repeated = len(embeddings) - added
    return f"{said}; {repeated} more were there already" if repeated else said


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
