"""Keyword arguments: ranges as annotations, checked wherever they come from, and plain values for checkpoints."""

import argparse
import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
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


def plain_value(name: str, value: Any, kept: tuple[type, ...] = ()) -> Any:
    """A value in the form that a checkpoint may hold: None, numbers, strings, and lists and dictionaries of these.

    NumPy's numbers and arrays, tensors, paths, and the containers of OmegaConf and Hydra are converted, except for
    types that are `kept`; a ValueError names what cannot be.
    """
    if isinstance(value, kept):
        return value
    match value:
        case None | bool():
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case np.generic() | np.ndarray() | Tensor():
            return plain_value(name, value.tolist(), kept)
        case str():
            return str.__str__(value)
        case os.PathLike():
            return os.fsdecode(value)
        case Mapping():
            return {plain_value(name, key): plain_value(f"{name}.{key}", item, kept) for key, item in value.items()}
        case Sequence() | Set() if not isinstance(value, bytes | bytearray):
            items = [plain_value(name, item, kept) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
    raise ValueError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint cannot hold: give "
        "numbers, strings, or lists or dictionaries of them"
    )


def plain_hyperparameters(kind: type, values: Mapping[str, Any] | argparse.Namespace) -> dict[str, Any]:
    """Hyperparameters with those that our classes take, which `check_arguments` has seen, as plain values.

    Others, which a class of the user's takes, stay as they are.
    """
    ours = [base for base in kind.__mro__ if base.__module__.partition(".")[0] in ("lit_models", "datamodules", "rl")]
    names = {name for base in ours for name in inspect.signature(base.__init__).parameters}
    given = vars(values) if isinstance(values, argparse.Namespace) else values
    return {name: plain_value(name, value) if name in names else value for name, value in given.items()}


def saved_hyperparameters(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of a class for a checkpoint: what it cannot hold is left out, with a warning."""
    saved = {}
    for name, value in values.items():
        try:
            saved[name] = plain_value(name, value, kept=(Tensor, torch.dtype, torch.device))
        except ValueError as error:
            reason = str(error).partition(":")[0]
            rank_zero_warn(f"{kind.__name__}: {reason}: give it to load_from_checkpoint again")
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
