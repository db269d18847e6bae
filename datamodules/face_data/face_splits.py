"""Splits of pictures of people: by picture, or by person, so that validation and test show strangers."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from datamodules.face_data.face_sources import PairList
from datamodules.folder import split_key

Parts = tuple[Tensor, Tensor, Tensor]  # the places of the pictures of train, val and test, in order


class Pairs(NamedTuple):
    """A published list of pairs to verify.

    Attributes:
        first: `(pairs,)`, the place of a picture in the test set, from 0.
        second: `(pairs,)`, that of the other one.
        same: `(pairs,)`, bool: whether they are of one person.
        folds: `(pairs,)`, int: the fold that a pair is of.
    """

    first: Tensor
    second: Tensor
    same: Tensor
    folds: Tensor


def split_by_person(
    labels: Tensor,
    people: Sequence[str],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    tested: set[str] | None = None,
) -> Parts:
    """Puts all pictures of a person into one part.

    Args:
        labels: `(pictures,)`, who is in a picture.
        people: Their names.
        val_fraction: The share of people in validation: two at least, or none if it is 0.
        test_fraction: The same for the test.
        seed: Seed of the split.
        tested: The names of those who are the test, in place of a share, if given.

    Raises:
        ValueError: Fewer than two people are left to train on, or no two pictures of a person are in a part.
    """
    count = len(people)
    order = sorted(range(count), key=lambda person: split_key(seed, people[person]))
    val_size, test_size = (max(2, round(share * count)) if share else 0 for share in (val_fraction, test_fraction))
    if tested is not None:
        order.sort(key=lambda person: people[person] in tested)
        test_size = sum(name in tested for name in people)
    ends = (count - test_size - val_size, count - test_size, count)
    if ends[0] < 2:
        raise ValueError(
            f"{count} people are too few to train on two or more, with {val_size} for validation and {test_size} for "
            "the test: lower data.val_fraction and data.test_fraction, or set data.by to picture"
        )
    parts = [torch.tensor(order[start:end]) for start, end in zip((0, *ends), ends, strict=False)]
    pictures = labels.bincount(minlength=count)
    for name, part in zip(("val", "test"), parts[1:], strict=True):
        if len(part) and pictures[part].max() < 2:
            raise ValueError(
                f"of nobody in the {name} part there are two pictures to compare: add pictures, set another "
                f"data.split_seed, or data.{name}_fraction to 0"
            )
    train, val, test = (torch.isin(labels, part).nonzero().flatten() for part in parts)
    return train, val, test


def split_by_picture(
    labels: Tensor, people: Sequence[str], names: Sequence[str], train: int, val: int, seed: int
) -> Parts:
    """Puts `train` pictures of every person into the first part, `val` into the second and the rest into the third.

    Args:
        labels: `(pictures,)`, who is in a picture.
        people: Their names.
        names: Those of the pictures.
        train: Pictures of each person to train on.
        val: Pictures of each to validate on.
        seed: Seed of the split.

    Raises:
        ValueError: A person has so few that none is left for the test.
    """
    counts = labels.bincount(minlength=len(people)).tolist()
    if few := [f"{name} ({count})" for name, count in zip(people, counts, strict=True) if count <= train + val]:
        raise ValueError(
            f"too few pictures of {', '.join(few[:10])}: it takes {train + val + 1} to train on {train}, validate on "
            f"{val} and test on the rest; lower data.train_images, add pictures, or set data.by to person"
        )
    parts: tuple[list[int], ...] = ([], [], [])
    for person in range(len(people)):
        own = (labels == person).nonzero().flatten().tolist()
        own.sort(key=lambda place: split_key(seed, names[place]))
        for part, some in zip(parts, (own[:train], own[train : train + val], own[train + val :]), strict=True):
            part += some
    first, second, third = (torch.tensor(sorted(part), dtype=torch.int64) for part in parts)
    return first, second, third


def find_pairs(listed: PairList, names: Sequence[str]) -> tuple[Pairs, int]:
    """A list of pairs with the places of their pictures among those named, and how many pairs it lacks pictures of."""
    places = {Path(name).stem: place for place, name in enumerate(names)}
    found = [
        (places[first], places[second], same, fold)
        for (first, second), same, fold in zip(listed.pictures, listed.same, listed.folds, strict=True)
        if first in places and second in places
    ]
    columns = torch.tensor(found, dtype=torch.int64).view(-1, 4).unbind(1)
    return Pairs(columns[0], columns[1], columns[2].bool(), columns[3]), len(listed.same) - len(found)
