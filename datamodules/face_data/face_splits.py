"""Splits of images of people: by person, so that validation and test show strangers, or by image."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.common.splits import split_key

Parts = tuple[Tensor, Tensor, Tensor]  # sorted indices of the images of train, val and test


class Pairs(NamedTuple):
    """A published list of pairs for verification, as tensors `(pairs,)`."""

    first: Tensor  # index of an image in the test set
    second: Tensor  # index of the other one
    same: Tensor  # bool: whether both are of one person
    folds: Tensor  # int: fold of the pair


def split_by_person(
    labels: Tensor,
    identities: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    tested: set[str] | None = None,
) -> Parts:
    """Puts all images of a person into one part; `labels` are the indices of their names among the identities.

    A fraction above 0 takes at least two people; those `tested`, if given, are the test instead of a fraction.
    """
    count = len(identities)
    order = sorted(range(count), key=lambda label: split_key(seed, identities[label]))
    val_size, test_size = (max(2, round(part * count)) if part else 0 for part in (val_fraction, test_fraction))
    if tested is not None:
        order.sort(key=lambda label: identities[label] in tested)
        test_size = sum(name in tested for name in identities)
    ends = (count - test_size - val_size, count - test_size, count)
    if ends[0] < 2:
        raise ValueError(
            f"{count} people are too few to train on two or more, with {val_size} for validation and {test_size} for "
            "the test: lower data.val_fraction and data.test_fraction, or set data.split_by to image"
        )
    parts = [torch.tensor(order[start:end]) for start, end in zip((0, *ends), ends, strict=False)]
    images = labels.bincount(minlength=count)
    for name, part in zip(("val", "test"), parts[1:], strict=True):
        if len(part) and images[part].max() < 2:
            raise ValueError(
                f"nobody in the {name} part has two images to compare: add images, set another data.split_seed, or "
                f"data.{name}_fraction to 0"
            )
    return tuple(torch.isin(labels, part).nonzero().flatten() for part in parts)


def split_by_image(
    labels: Tensor, identities: Sequence[str], names: Sequence[str], train: int, val: int, seed: int
) -> Parts:
    """Puts `train` images of every person into the first part, `val` into the second and the rest into the third."""
    counts = labels.bincount(minlength=len(identities)).tolist()
    if few := [f"{name} ({count})" for name, count in zip(identities, counts, strict=True) if count <= train + val]:
        raise ValueError(
            f"too few images of {', '.join(few[:10])}: it takes {train + val + 1} to train on {train}, validate on "
            f"{val} and test on the rest; lower data.train_images, add images, or set data.split_by to person"
        )
    parts: tuple[list[int], ...] = ([], [], [])
    for label in range(len(identities)):
        own = sorted((labels == label).nonzero().flatten().tolist(), key=lambda index: split_key(seed, names[index]))
        for part, chosen in zip(parts, (own[:train], own[train : train + val], own[train + val :]), strict=True):
            part += chosen
    return tuple(torch.tensor(sorted(part), dtype=torch.int64) for part in parts)


def find_pairs(listed: Iterable[tuple[str, str, bool, int]], names: Sequence[str]) -> Pairs:
    """The pairs of a list, see `read_pairs`, whose images are both among those named."""
    indices = {Path(name).stem: index for index, name in enumerate(names)}
    found = [
        (indices[first], indices[second], same, fold)
        for first, second, same, fold in listed
        if first in indices and second in indices
    ]
    first, second, same, folds = torch.tensor(found, dtype=torch.int64).view(-1, 4).unbind(1)
    return Pairs(first, second, same.bool(), folds)
