"""Random splits that depend on the names and a seed alone, so that they hold where files are added."""

import hashlib
from collections.abc import Sequence

from torch import Tensor


def split_key(seed: int, name: str) -> bytes:
    """The sort key of a random order: a hash of seed and name, independent of the other names."""
    return hashlib.sha256(f"{seed}/{name}".encode("utf-8", "surrogateescape")).digest()


def stratified_split(labels: Tensor, names: Sequence[str], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Splits items so that every part has the same fraction of every class.

    An item that is added or removed moves at most one other item per part, and none of another class. Returns the
    indices that remain, at least one per class, and those of the part for each fraction, all in order; a fraction above
    0 takes at least one item of each class that has enough.
    """
    parts: list[list[int]] = [[] for _ in range(1 + len(fractions))]
    keys = [split_key(seed, name) for name in names]
    for label in labels.unique():
        own = sorted((labels == label).nonzero().flatten().tolist(), key=keys.__getitem__)
        left = count = len(own)
        for part, fraction in zip(parts[1:], fractions, strict=True):
            size = min(max(1, round(count * fraction)) if fraction else 0, left - 1)
            part += own[left - size : left]
            left -= size
        parts[0] += own[:left]
    return [sorted(part) for part in parts]
