"""What the folders of a data set of pictures stand for: its parts, and in each the folder of every class."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.common.image_io import HEIC, find_files, image_extensions, is_hidden, is_image, subfolders
from lit_models.common.messages import format_list

PART_WORDS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "holdout"),
    "predict": ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled"),  # pictures without classes
}
PARTS = {word: part for part, words in PART_WORDS.items() for word in words}
# Words that may stand beside those of a part, and folder names that are no class's.
PLAIN = {"set", "data", "dataset", "split", "image", "images", "img", "imgs", "pic", "pics", "picture", "pictures"}
PLAIN |= {"photo", "photos", "folder", "files", "sample", "samples", "all", "unknown", "unclassified"}
DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d?){0,2}")
RENAME = "rename those that are parts to train/, val/ and test/, and move others away"


class ClassFolders(NamedTuple):
    """What a folder holds."""

    root: Path  # the folder itself, or the one in it that an archive was unpacked to
    parts: dict[str, dict[str, Path]]  # by "train", "val" and "test", the folder of each class
    unlabelled: list[Path]  # parts whose pictures are in no class


def find_class_folders(root: Path) -> ClassFolders:
    """The parts of a data set, only "train" where it has none, with the folders of their classes.

    Raises:
        ValueError: The folders seem to be parts, but cannot be told apart.
    """
    root = unwrap(root)
    names = subfolders(root)
    parts = name_parts(names)
    if any(parts.values()):  # a folder of classes beside a part is one, too, as seg_train beside test
        unsure = [name for name in names if parts[name] is None and holds_classes(root / name)]
        parts |= {name: found.pop() for name in unsure if len(found := parts_in(name)) == 1}
    if is_in_parts(root, parts):
        return split_parts(root, parts)
    below = {name: subfolders(root / name) for name in names}
    counts = Counter(name for found in below.values() for name in found)
    shared = sorted(name for name, count in counts.items() if count > max(1, len(names) / 2))
    if shared and not any(has_images(root / name) for name in names):
        inner = name_parts(shared)
        if set(inner.values()) >= {"train"} and all(inner.values()) and len(set(inner.values())) == len(shared):
            if any(set(found) - set(shared) for found in below.values()):
                raise ValueError(f"{root} has {', '.join(shared)} in its classes, but other folders too: {RENAME}")
            found = {part: classes_of(root, name) for name, part in inner.items() if part != "predict"}
            return ClassFolders(root, found, [])
        if len(shared) > 1 and not all(map(DATE.fullmatch, shared)):
            raise ValueError(
                f"{root} has the same folders, {format_list(shared)}, in {format_list(names)}: if the latter are its "
                "parts, call them train/, val/ and test/; if they are its classes, move their pictures up into them"
            )
    for name, found in below.items():
        if inside := sorted({*names} & {*found} - {name}):
            raise ValueError(
                f"{root / name} holds {format_list(inside)}, as {root} itself does: if these are parts, call them "
                "train/, val/ and test/; else move the pictures to one place"
            )
    if shared:
        rank_zero_warn(
            f"the classes of {root}, {format_list(names)}, have the same subfolders, {format_list(shared)}, whose "
            "pictures are read as theirs: if those are the classes, give the folder that holds them as data.root"
        )
    return ClassFolders(root, {"train": classes_of(root)}, [])


def unwrap(root: Path) -> Path:
    """The folder of the data, where it is the only one in `root`, as in an unpacked archive."""
    folder, names = root, subfolders(root)
    while len(names) == 1 and not name_parts(names)[names[0]] and not has_images(folder):
        folder = folder / names[0]
        names = subfolders(folder)
    whole = len(names) > 1 and not has_images(folder)
    return folder if whole or any(name_parts(names).values()) else root


def name_parts(names: Sequence[str]) -> dict[str, str | None]:
    """The part that each folder stands for by its name: `train`, `Test Images`, `seg_val` beside `seg_train`."""
    words = {name: [word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)] for name in names}
    counts = Counter(word for found in words.values() for word in set(found))
    common = {word for word, count in counts.items() if count > max(1, len(names) / 2)}
    parts: dict[str, str | None] = {}
    for name in names:
        stems = [re.sub("(?<=..)(set|data|images)$", "", word) for word in words[name]]  # of "trainset"
        found = {PARTS[stem] for stem in stems if stem in PARTS}
        others = {stem for stem in stems if stem not in PARTS} - PLAIN - common
        parts[name] = found.pop() if len(found) == 1 and not others else None
    return parts


def parts_in(name: str) -> set[str]:
    """The parts that words of a folder's name stand for."""
    return {PARTS[word.lower()] for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name) if word.lower() in PARTS}


def is_in_parts(root: Path, parts: dict[str, str | None]) -> bool:
    """Whether folders are parts: a class may be called "train", but hardly two of them like parts."""
    named = [name for name, part in parts.items() if part not in (None, "predict")]
    holder = any(parts[name] == "train" and holds_classes(root / name) for name in named)
    return len(named) > 1 or holder or (len(parts) == 1 and bool(named))


def split_parts(root: Path, named: dict[str, str | None]) -> ClassFolders:
    """The class folders of parts whose folders are named."""
    known = [name for name, part in named.items() if part is not None]
    folders: dict[str, Path] = {}
    for name, part in named.items():
        if part is None and any_images(root / name):
            raise ValueError(f"{root} has {name}/ beside {' and '.join(known)}, which is no known part: {RENAME}")
        if part in folders:
            raise ValueError(f"{root} has {folders[part].name}/ and {name}/, both named like {part}/: {RENAME}")
        if part is not None:
            folders[part] = root / name
    if "train" not in folders:
        raise ValueError(f"{root} has no train/ beside {' and '.join(known)}: {RENAME}")
    train = descend(folders.pop("train"))
    parts, unlabelled = {"train": classes_of(train)}, []
    if not parts["train"]:
        raise ValueError(f"{train} has no folders of classes: sort its pictures into one per class")
    for part, folder in folders.items():
        folder = descend(folder)
        names = subfolders(folder)
        plain = [name for name in names if name.lower() in PLAIN or name_parts([name])[name]]
        if part == "predict" or (any_images(folder) and not parts["train"].keys() & names and names == plain):
            unlabelled.append(folder)
        else:
            parts[part] = classes_of(folder)
    return ClassFolders(root, parts, unlabelled)


def descend(folder: Path) -> Path:
    """A part's folder, or the only one in it that holds classes, as in seg_train/seg_train/."""
    names = subfolders(folder)
    return folder / names[0] if len(names) == 1 and holds_classes(folder / names[0]) else folder


def holds_classes(folder: Path) -> bool:
    """Whether a folder, or the only one in it, has no pictures of its own, but several subfolders."""
    names = subfolders(folder)
    if has_images(folder) or not names:
        return False
    return len(names) > 1 or holds_classes(folder / names[0])


def classes_of(folder: Path, below: str = "") -> dict[str, Path]:
    """The class folders in a folder by name; of each the one `below`, if it is given and there."""
    paths = {name: folder / name / below for name in subfolders(folder)}
    return {name: path for name, path in paths.items() if path.is_dir()}


def has_images(folder: Path) -> bool:
    """Whether there are images in a folder itself."""
    extensions = image_extensions() | HEIC
    return any(not is_hidden(path.name) and path.is_file() and is_image(path, extensions) for path in folder.iterdir())


def any_images(folder: Path) -> bool:
    """Whether there are images in a folder or below."""
    extensions = image_extensions() | HEIC
    return any(is_image(path, extensions) for path in find_files(folder)[0])
