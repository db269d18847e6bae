"""Ranges of keyword arguments as annotations, checked from the command line and from Python alike."""

import math
import numbers
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """An interval that a number must lie in, of which `above` and `below` are no part: metadata of `Annotated`."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, numbers.Real):
            return False
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
Fraction = Annotated[float, Range(0, below=1)]


def check_arguments(owner: type, values: Mapping[str, Any]) -> None:
    """Raises a ValueError where an argument of a class's `__init__` isn't in the range or choices of its annotation.

    `values` are the arguments by name, `locals()` or `self.hparams`; None is taken for "not given".
    """
    for name, hint in get_type_hints(owner.__init__, include_extras=True).items():
        if values.get(name) is not None and (error := _find_error(name, values[name], hint)):
            raise ValueError(error)


def _find_error(name: str, value: Any, hint: Any) -> str | None:
    kind, parts, several = get_origin(hint), get_args(hint), isinstance(value, list | tuple)
    if kind is Annotated:
        broken = (allowed for allowed in parts[1:] if isinstance(allowed, Range) and value not in allowed)
        return next((f"{name} is {value}: it must be {allowed}" for allowed in broken), None)
    if kind is Literal and value not in parts:
        return f"{name} is {value!r}: it must be {' or '.join(map(str, parts))}"
    if kind in (Union, types.UnionType):
        parts = [part for part in parts if several == _is_sequence(part)]
        errors = [_find_error(name, value, part) for part in parts if part is not type(None)]
        return errors[0] if errors and all(errors) else None
    if _is_sequence(hint) and several:
        hints = parts if kind is tuple and parts[-1] is not ... else parts[:1] * len(value)
        errors = (_find_error(name, item, part) for item, part in zip(value, hints, strict=False))
        return next(filter(None, errors), None)
    return None


def _is_sequence(hint: Any) -> bool:
    kind = get_origin(hint)
    return isinstance(kind, type) and issubclass(kind, Sequence)
