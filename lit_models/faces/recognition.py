"""The verbs that recognise people in pictures: enrol, identify, verify."""

import contextlib
import csv
import difflib
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lit_models.faces.face_embedder import FaceEmbedder
from lit_models.faces.gallery import Gallery, import_safetensors, read_gallery
from lit_models.faces.recogniser import Recogniser, Seen, load_embedder, preparation
from lit_models.training.trust import Modules

if TYPE_CHECKING:
    from datamodules.face_data.detection import Face

COLUMNS = ("file", "face", "left", "top", "width", "height", "name", "similarity")
UNKNOWN = "unknown"


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
    """Makes a gallery of people whose faces are to be recognised, adds people to it, or takes one out.

    A person who is in the gallery already is replaced. The threshold, from which on a face is taken to be somebody, is
    chosen anew each time, unless it was given.

    Args:
        ckpt_path: The checkpoint of a FaceEmbedder.
        gallery: The file, which is made if there is none.
        pictures: A folder with a subfolder of pictures for each person, which has their name. With `name`, the pictures
            of one person, a folder or a file.
        name: The name of the one person.
        remove: The name of a person to take out.
        far: The share of strangers' faces that may be taken for somebody: every picture is tried as a stranger's, with
            all other people. The threshold is at least the one for strangers of the model's validation, for 0.01. What
            the gallery has, if not given, or 0.01.
        threshold: A threshold, in -1..1, in place of one that is chosen.
        detect: Whether faces are looked for in the pictures, cut out and levelled; otherwise a picture is a face. As
            in the gallery, or as the model was trained, if not given.
        detector: The file of the detector YuNet, in place of OpenCV's Haar cascades.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].

    Raises:
        FileNotFoundError: There is no such checkpoint, folder or picture.
        ValueError: No picture of a person can be used; the gallery is damaged, or another checkpoint's; an option is
            out of range, or does not go with another.
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
    refuse_threshold(threshold)
    model, trained = load_embedder(ckpt_path, modules)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file as --gallery")
    if path.exists() or remove is not None:
        known = read_gallery(path, model)
        if detect not in (None, known.facts.detect) or detector not in (None, known.facts.detector):
            raise ValueError(f"{path} was made with another --detect or --detector: leave them out")
    else:
        import_safetensors()  # not found missing after all pictures have been read
        facts = preparation(model, trained, detect, detector)
        known = Gallery(facts, torch.empty(0, model.hparams.embedding_dim), torch.empty(0, dtype=torch.int64))
    if remove is not None:
        if remove not in known.facts.names:
            close = difflib.get_close_matches(remove, known.facts.names, n=1)
            raise ValueError(f"{path} has nobody called {remove!r}{f'; did you mean {close[0]!r}?' if close else ''}")
        known.remove(remove)
        print(f"removed {printable(remove)}")
    if pictures:
        recogniser = Recogniser(model, known.facts)
        for person, embeddings in shown(recogniser, people_in(Path(pictures), name)).items():
            replaced = known.put(person, embeddings)
            print(f"{'replaced' if replaced else 'enrolled'} {printable(person)}: {len(embeddings)} picture(s)")
    set_threshold(known, model, far, threshold)
    known.save(path)
    counts = f"{len(known.facts.names)} people, {len(known.people)} pictures"
    print(f"{printable(str(path))}: {counts}; {about_threshold(known)}")


def identify(ckpt_path: str, gallery: str, pictures: list[str], output: str, modules: Modules = None) -> None:
    """Says who is in pictures, in words, as a CSV file, and on copies of them.

    Args:
        ckpt_path: The checkpoint of the FaceEmbedder that the gallery was made with.
        gallery: The gallery.
        pictures: Files, or folders of them.
        output: A folder for `faces.csv` and the copies, with a box and a name at each face.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].

    Raises:
        FileNotFoundError: There is no such checkpoint, gallery or picture.
        ValueError: None of the pictures can be read; the gallery is empty, damaged, or another checkpoint's.
        OSError: The folder can't be written.
    """
    from datamodules.common.pictures import find_pictures, picture_endings
    from lit_models.training.figures import draw_boxes

    model, _ = load_embedder(ckpt_path, modules)
    known = read_gallery(Path(gallery), model)
    if not known.facts.names:
        raise ValueError(f"nobody is in {gallery}: enrol people first")
    paths: list[Path] = []
    for given in map(Path, pictures):
        if not given.exists():
            raise FileNotFoundError(f"no picture or folder {given}")
        paths += find_pictures(given, picture_endings()) if given.is_dir() else [given]
    recogniser, folder = Recogniser(model, known.facts), Path(output)
    partial = folder / "faces.csv.partial"
    sources, count = {path.resolve() for path in paths}, 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for seen in recogniser.see_all(paths):
                count += 1
                words = []
                for number, (face, name, similarity) in enumerate(recognised(seen, known), start=1):
                    words.append(f"{name} {similarity:.2f}")
                    box = [round(edge) for edge in face.box]
                    print(f"{printable(str(seen.path))}: face {number} at {box}: {printable(name)} ({similarity:.3f})")
                    writer.writerow([seen.path, number, *box, name, f"{similarity:.4f}"])
                if not words:
                    print(f"{printable(str(seen.path))}: no face is found")
                    writer.writerow([seen.path, 0, *[""] * 6])
                copy = free_place(folder, seen.path, sources)
                sources.add(copy.resolve())
                draw_boxes(seen.picture, [face.box for face in seen.faces], words).save(copy, quality=90)
        if not count:
            raise ValueError("none of the pictures can be read")
        partial.replace(folder / "faces.csv")
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror}): give another --output") from error
    finally:
        with contextlib.suppress(OSError):  # the folder is a file, for one
            partial.unlink()
    print(f"{count} pictures; names and boxes are in {printable(str(folder))}")


def verify(
    ckpt_path: str,
    pictures: list[str],
    threshold: float | None = None,
    detect: bool | None = None,
    detector: str | None = None,
    modules: Modules = None,
) -> None:
    """Says whether two pictures show the same person.

    Args:
        ckpt_path: The checkpoint of a FaceEmbedder.
        pictures: Two files, with one face each.
        threshold: The similarity from which on they do, in -1..1. The one that the last validation of the training
            chose, for a false-accept rate of 0.01, if not given.
        detect: Whether faces are looked for in the pictures; otherwise a picture is a face. As the model was trained,
            if not given.
        detector: The file of the detector YuNet, in place of OpenCV's Haar cascades.
        modules: Modules of your own that the checkpoint may name classes of, my_module or [my_module, another].

    Raises:
        FileNotFoundError: There is no such checkpoint or picture.
        ValueError: A picture has no face, or several; no threshold is given or known, or it is out of range.
    """
    if len(pictures) != 2:
        raise ValueError(f"two pictures are compared, but {len(pictures)} are given")
    refuse_threshold(threshold)
    model, trained = load_embedder(ckpt_path, modules)
    recogniser = Recogniser(model, preparation(model, trained, detect, detector))
    limit = model.threshold.item() if threshold is None else threshold
    if math.isinf(limit):
        raise ValueError(f"{ckpt_path} has no threshold, since it was trained without validation: give --threshold")
    seen = [recogniser.see(Path(path)) for path in pictures]
    for one in seen:
        if len(one.faces) != 1:
            raise ValueError(f"{len(one.faces) or 'no'} face(s) in {one.path}: give a picture of one, or cut it out")
    similarity = (seen[0].embeddings @ seen[1].embeddings.T).item()
    answer = "the same person" if similarity >= limit else "different people"
    print(f"{answer}: similarity {similarity:.3f}, threshold {limit:.3f}")


def people_in(pictures: Path, name: str | None) -> dict[str, list[Path]]:
    """The picture files of each person."""
    from datamodules.common.pictures import find_pictures, picture_endings
    from datamodules.folder import subfolders

    if name is not None and pictures.is_file():
        refuse_names([name])
        return {name: [pictures]}
    if not pictures.is_dir():
        raise FileNotFoundError(f"no folder {pictures}: give the one above the people's folders, or one with --name")
    people = {name: pictures} if name is not None else {person: pictures / person for person in subfolders(pictures)}
    if not people:
        raise ValueError(f"{pictures} has no subfolders: give each person one, or --name for a single person")
    refuse_names(people)
    return {person: find_pictures(folder, picture_endings()) for person, folder in people.items()}


def refuse_names(names: Iterable[str]) -> None:
    """Raises a ValueError where a name is empty, or says that somebody is not known."""
    for name in names:
        if not name.strip() or name == UNKNOWN:
            raise ValueError(f"{name!r} is no name to know somebody by: give another one")


def shown(recogniser: Recogniser, people: dict[str, list[Path]]) -> dict[str, Tensor]:
    """The embeddings of each person's pictures `(pictures, dim)`; of several faces in one, the largest is taken."""
    found: dict[str, list[Tensor]] = {person: [] for person in people}
    owners = {file: person for person, files in people.items() for file in files}
    for seen in recogniser.see_all(list(owners)):
        if not seen.faces:
            warnings.warn(f"no face in {seen.path}: left out", stacklevel=2)
        elif len(seen.faces) > 1:
            warnings.warn(f"{len(seen.faces)} faces in {seen.path}: the largest is taken", stacklevel=2)
        found[owners[seen.path]] += seen.embeddings[:1]
    if lost := [printable(person) for person, embeddings in found.items() if not embeddings]:
        raise ValueError(f"no picture of {', '.join(lost)} can be used: add one that shows their face, or remove them")
    return {person: torch.stack(embeddings) for person, embeddings in found.items()}


def refuse_threshold(threshold: float | None) -> None:
    """Raises a ValueError where a threshold is no similarity."""
    if threshold is not None and not -1 <= threshold <= 1:
        raise ValueError(f"--threshold is {threshold}: it must be in -1..1")


def set_threshold(known: Gallery, model: FaceEmbedder, far: float | None, threshold: float | None) -> None:
    """Chooses a gallery's threshold, unless one is given now, or was given before."""
    facts = known.facts
    if threshold is not None:
        facts.far, facts.threshold = None, threshold
    elif far is not None or facts.far is not None:
        facts.far = facts.far if far is None else far
        if len(facts.names) > 1:
            known.choose_threshold(facts.far)
            if model.stranger_threshold.isfinite():  # people trained on are no sample of strangers
                facts.threshold = max(facts.threshold, model.stranger_threshold.item())
            else:
                warnings.warn(
                    "the model was not validated on people that it had not been trained on: if it was trained on those "
                    "enrolled, strangers will be taken for them; give --threshold",
                    stacklevel=2,
                )
        elif model.stranger_threshold.isfinite() or not facts.names:
            facts.threshold = model.stranger_threshold.item()
        else:
            raise ValueError("with one person there is nobody to choose a threshold by: give --threshold, 0.5 for one")


def about_threshold(known: Gallery) -> str:
    """A gallery's threshold, and where it is from."""
    far, count = known.facts.far, len(known.people)
    said = f"threshold {known.facts.threshold:.3f}"
    if far is None:
        return said
    if len(known.facts.names) < 2:
        return f"{said}, the one of the model's validation, until there are two people"
    said += f", for a false-accept rate of {far:g} over {count} pictures"
    return said if far * count >= 1 else f"{said}, which are too few to tell less than {1 / count:.2g}"


def recognised(seen: Seen, known: Gallery) -> "Iterator[tuple[Face, str, float]]":
    """Each face of a picture with its name and its similarity to the most similar person."""
    numbers, similarities = known.nearest(seen.embeddings)
    for face, number, similarity in zip(seen.faces, numbers.tolist(), similarities.tolist(), strict=True):
        yield face, known.facts.names[number] if similarity >= known.facts.threshold else UNKNOWN, similarity


def free_place(folder: Path, source: Path, taken: set[Path]) -> Path:
    """Where the copy of a picture goes: not where a picture is that was given, or an earlier copy."""
    stem, number = f"{source.stem}.faces", 1
    while (place := folder / f"{stem}{'' if number == 1 else f'_{number}'}.jpg").resolve() in taken:
        number += 1
    return place


def printable(text: str) -> str:
    """A name as one line that any terminal takes."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())
