"""Published data sets of faces, through scikit-learn, and LFW's lists of pairs.

Olivetti: Samaria and Harter, "Parameterisation of a stochastic model for human face identification", 1994. LFW: Huang,
Ramesh, Berg and Learned-Miller, "Labeled Faces in the Wild", 2007.
"""

import tarfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_models.common.messages import require_extra


def read_pairs(path: str | Path) -> list[tuple[str, str, bool, int]]:
    """LFW's pairs: the names of two images, such as `Ann_Lee_0001`, whether they are of one person, the fold from 0.

    The file has a header, then tab-separated lines `name, i, j` or `name, i, other name, j`. The header is the number
    of folds and that of the pairs of either kind per fold, or the latter alone.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no list of pairs {path}") from error
    header, rows = (lines or [""])[0].split(), [line.split("\t") for line in lines[1:] if line.strip()]
    if len(header) not in (1, 2) or not all(number.isdigit() and int(number) for number in header) or not rows:
        raise ValueError(f"{path} is no list of pairs as LFW's: its first line is {' '.join(header)[:40]!r}")
    size, pairs = int(header[-1]), []
    for number, row in enumerate(rows):
        if len(row) not in (3, 4) or not (row[1].isdigit() and row[-1].isdigit()):
            raise ValueError(f"{path}, line {number + 2}: neither name, i, j nor name, i, other name, j")
        # Without folds, first the pairs of one person, then those of two; each of ten folds gets as many of either.
        fold = number // (2 * size) if len(header) == 2 else number % size * 10 // size
        first, second = row[0], row[0] if len(row) == 3 else row[2]
        pairs.append((f"{first}_{int(row[1]):04}", f"{second}_{int(row[-1]):04}", len(row) == 3, fold))
    return pairs


def olivetti(root: str, download: bool) -> tuple[Tensor, list[str]]:
    """The Olivetti faces: images `(400, 1, 64, 64)`, uint8, and their names, such as `person_07/3`."""
    data = fetch("fetch_olivetti_faces", "Olivetti's faces", root, download)
    images = torch.from_numpy(data.images).mul(255).round().byte()[:, None]
    return images, [f"person_{person:02}/{number % 10}" for number, person in enumerate(data.target)]


def lfw(root: str, download: bool) -> Path:
    """The folder of LFW, with its lists of pairs and `lfw_funneled`, which has one subfolder per person."""
    folder = Path(root) / "lfw_home"  # scikit-learn's
    if download and not (folder / "lfw_funneled").is_dir():
        fetch("fetch_lfw_pairs", "LFW", root, download)
    if not (folder / "lfw_funneled").is_dir():
        raise FileNotFoundError(not_found("LFW", folder))
    return folder


def fetch(function: str, name: str, root: str, download: bool) -> Any:
    """Calls a function of `sklearn.datasets` that reads a data set from `root`, or downloads it there."""
    require_extra("face-data", f"reading {name}", "sklearn")
    from sklearn import datasets

    try:
        return getattr(datasets, function)(data_home=root, download_if_missing=download)
    except (OSError, ValueError, EOFError, tarfile.TarError, zlib.error) as error:
        if not download:
            raise FileNotFoundError(not_found(name, root)) from error
        raise ConnectionError(
            f"could not download {name} into {root}: {error}; with no network here, fetch it elsewhere with "
            f"sklearn.datasets.{function}(data_home=FOLDER), and give the folder as data.root"
        ) from error


def not_found(name: str, folder: str | Path) -> str:
    """The message that a data set is missing."""
    return f"no {name} in {folder}: set data.download to true, or data.root to the folder that scikit-learn keeps it in"
