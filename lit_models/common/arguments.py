"""Ranges of keyword arguments as annotations, checked from the command line and from Python alike."""

import math
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """An interval that a number must lie in, as metadata of `typing.Annotated`.

    Attributes:
        low: The least number.
        high: The greatest number.
        above: A number that it must be greater than.
        below: A number that it must be less than.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: Any) -> bool:
        open_low, open_high = self.above == -math.inf, self.below == math.inf  # infinite numbers pass there
        return self.low <= value <= self.high and (open_low or value > self.above) and (open_high or value < self.below)

    def __repr__(self) -> str:
        words = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        return " and ".join(f"{word} {bound:g}" for word, bound in words.items() if math.isfinite(bound))


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
AtLeastTwo = Annotated[int, Range(2)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(0)]
UnitInterval = Annotated[float, Range(0, 1)]
Probability = Annotated[float, Range(0, below=1)]  # of something that must also not happen


def check_arguments(owner: type, values: Mapping[str, Any]) -> None:
    """Raises a ValueError where an argument is outside of the range, or not among the choices, of its annotation.

    Args:
        owner: The class whose `__init__` has the annotations.
        values: Its arguments by name, `locals()` or `self.hparams`; None is taken for "not given".
    """
    for name, hint in get_type_hints(owner.__init__, include_extras=True).items():
        if name in values:
            _check(name, values[name], hint)


def _check(name: str, value: Any, hint: Any) -> None:
    kind, parts = get_origin(hint), get_args(hint)
    if value is None or kind is None:
        return
    if kind is Annotated:
        for allowed in parts[1:]:
            if isinstance(allowed, Range) and value not in allowed:
                raise ValueError(f"{name} is {value}: it must be {allowed}")
    elif kind is Literal:
        if value not in parts:
            raise ValueError(f"{name} is {value!r}: it must be {' or '.join(map(str, parts))}")
    elif kind in (Union, types.UnionType):
        several = isinstance(value, Sequence) and not isinstance(value, str)
        for part in parts:
            if several == _of_several(part):
                _check(name, value, part)
    elif _of_several(hint) and isinstance(value, Sequence):
        for item in value:
            _check(name, item, parts[0])


def _of_several(hint: Any) -> bool:
    kind = get_origin(hint)
    return isinstance(kind, type) and issubclass(kind, Sequence)
