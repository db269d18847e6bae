"""Published sets of faces, through scikit-learn, and LFW's lists of pairs.

Olivetti: Samaria and Harter, "Parameterisation of a stochastic model for human face identification", 1994. LFW: Huang,
Ramesh, Berg and Learned-Miller, "Labeled Faces in the Wild", 2007.
"""

import tarfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_models.common.messages import require_extra

FOLDS = 10  # what a list of pairs without folds is cut into


class PairList(NamedTuple):
    """LFW's pairs, in the order of their file.

    Attributes:
        pictures: Of each pair the names of two pictures, `Ann_Lee_0001` for one.
        people: Who is in them.
        same: Whether they are of one person.
        folds: The fold of the pair, from 0.
    """

    pictures: list[tuple[str, str]]
    people: set[str]
    same: list[bool]
    folds: list[int]


def read_pairs(path: str | Path) -> PairList:
    """Reads a list of pairs: a line of numbers, then tab-separated `name, i, j` or `name, i, other name, j`.

    The first line holds the number of folds and of the pairs of either kind in each, or the latter alone.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is of no such form.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no list of pairs {path}") from error
    header, rows = (lines or [""])[0].split(), [line.split("\t") for line in lines[1:] if line.strip()]
    if len(header) not in (1, 2) or not all(number.isdigit() for number in header) or not rows:
        raise ValueError(f"{path} is no list of pairs as LFW's: its first line is {' '.join(header)[:40]!r}")
    found = PairList([], set(), [], [])
    for number, row in enumerate(rows):
        if len(row) not in (3, 4) or not (row[1].isdigit() and row[-1].isdigit()):
            raise ValueError(f"{path}, line {number + 2}: neither name, i, j nor name, i, other name, j")
        names = (row[0], row[0]) if len(row) == 3 else (row[0], row[2])
        found.pictures.append((f"{names[0]}_{int(row[1]):04}", f"{names[1]}_{int(row[-1]):04}"))
        found.people.update(names)
        found.same.append(len(row) == 3)
        if len(header) == 2:
            found.folds.append(number // (2 * int(header[1])))
    if len(header) == 1:  # pairs of one person come first, then those of two: each kind has its share of a fold
        size = int(header[0])
        found.folds.extend(number % size * FOLDS // size for number in range(len(rows)))
    return found


def olivetti(root: str, download: bool) -> tuple[Tensor, list[str]]:
    """The Olivetti faces: images `(400, 1, 64, 64)`, uint8, and their names, `person_07/3` for one.

    Raises:
        ValueError: scikit-learn is missing.
        FileNotFoundError: They aren't in `root`, and are not to be downloaded.
        ConnectionError: The download failed.
    """
    data = fetched("fetch_olivetti_faces", "Olivetti's faces", root, download)
    images = torch.from_numpy(data.images).mul(255).round().byte()[:, None]
    return images, [f"person_{person:02}/{number % 10}" for number, person in enumerate(data.target)]


def lfw(root: str, download: bool) -> Path:
    """The folder that holds LFW: `lfw_funneled`, with a folder a person, and the lists of pairs.

    Raises what `olivetti` does.
    """
    folder = Path(root) / "lfw_home"  # scikit-learn's
    if download and not (folder / "lfw_funneled").is_dir():
        fetched("fetch_lfw_pairs", "LFW", root, download)
    if not (folder / "lfw_funneled").is_dir():
        raise FileNotFoundError(absent("LFW", folder))
    return folder


def fetched(function: str, name: str, root: str, download: bool) -> Any:
    """What a function of scikit-learn gives that keeps a set in `root`, and downloads it if it may."""
    require_extra("face-data", f"reading {name}", "sklearn")
    from sklearn import datasets

    try:
        return getattr(datasets, function)(data_home=root, download_if_missing=download)
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        if not download:
            raise FileNotFoundError(absent(name, root)) from error
        raise ConnectionError(
            f"could not download {name} into {root}: {error}; with no network here, fetch it elsewhere with "
            f"sklearn.datasets.{function}(data_home=FOLDER), and give the folder as data.root"
        ) from error


def absent(name: str, folder: str | Path) -> str:
    """That a set is not where it is looked for."""
    return f"no {name} in {folder}: set data.download to true, or data.root to the folder that scikit-learn keeps it in"
