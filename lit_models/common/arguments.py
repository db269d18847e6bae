"""Keyword arguments: ranges as annotations, checked wherever they come from, and plain values for checkpoints."""

import argparse
import contextlib
import math
import numbers
import os
import types
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
from torch import Tensor


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

    `values` are the arguments by name, `locals()` or `self.hparams`; None is taken for "not given". What is not plain,
    see `plain_value`, is refused, except for factories of optimizers and schedules.
    """
    for name, hint in get_type_hints(owner.__init__, include_extras=True).items():
        if values.get(name) is None or _takes_functions(hint):
            continue
        if error := _find_error(name, plain_value(name, values[name]), hint):
            raise ValueError(error)


def plain_value(name: str, value: Any) -> Any:
    """A value in the form that a checkpoint may hold: None, numbers, strings, and lists and dictionaries of these.

    NumPy's numbers and arrays, tensors, paths, and the containers of OmegaConf and Hydra are converted; a ValueError
    names what cannot be.
    """
    match value:
        case None | bool():
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case np.generic() | np.ndarray() | Tensor():
            return plain_value(name, value.tolist())
        case str():
            return str.__str__(value)
        case os.PathLike():
            return os.fsdecode(value)
        case Mapping():
            return {plain_value(name, key): plain_value(f"{name}.{key}", item) for key, item in value.items()}
        case Sequence() | Set() if not isinstance(value, bytes | bytearray):
            items = [plain_value(name, item) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
    raise ValueError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold: give "
        "numbers, strings, or lists or dictionaries of them"
    )


def plain_hyperparameters(values: Mapping[str, Any] | argparse.Namespace) -> dict[str, Any]:
    """Hyperparameters as plain values, except for those that cannot be: a subclass's own, see `check_arguments`."""
    plain = dict(vars(values) if isinstance(values, argparse.Namespace) else values)
    for name, value in plain.items():
        with contextlib.suppress(ValueError):
            plain[name] = plain_value(name, value)
    return plain


def saved_hyperparameters(owner: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a class for a checkpoint: those that are not plain are left out, with a warning."""
    saved = {}
    for name, value in values.items():
        try:
            saved[name] = plain_value(name, value)
        except ValueError as error:
            reason = str(error).partition(":")[0]
            warnings.warn(f"{owner.__name__}: {reason}: give it to load_from_checkpoint again", stacklevel=2)
    return saved


def _takes_functions(hint: Any) -> bool:
    return get_origin(hint) is Callable or any(map(_takes_functions, get_args(hint)))


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
