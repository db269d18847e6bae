"""What an environment is made with, to see whether it has changed since a checkpoint."""

import contextlib
import dataclasses
import os
import types
import zlib
from collections import deque
from collections.abc import Iterable
from enum import Enum
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from lit_models.common.messages import format_list
from rl.envs import make_env, own_vector_form

IGNORED = {"env", "spec", "_cached_spec", "metadata", "render_mode"}  # attributes that change nothing, or are seen to
MOST = 20  # numbers of a list, dictionary or array that are kept as they are; of more, a checksum


def env_constants(env: gymnasium.Env | VectorEnv) -> dict[str, Any]:
    """Numbers and text that a freshly made environment has, by their paths, such as `my_module.MyEnv.factor`.

    They are those of the environment and of its wrappers: in attributes of their own and of their classes, in lists,
    dictionaries and plain objects there, and in variables of a module that their methods read. What is written in the
    methods themselves, or lies in a library's objects, is not seen; it is never restored from a checkpoint, either.
    """
    found: dict[str, Any] = {"max_episode_steps": getattr(env.spec, "max_episode_steps", None)}
    _add(found, "env_options", dict(getattr(env.spec, "kwargs", None) or {}), set(), "")
    layer, names = env, []
    while layer is not None:
        kind = type(layer)
        variables: dict[str, Any] = {}
        for base in reversed(kind.__mro__[:-1]):
            variables |= {name: value for name, value in vars(base).items() if not name.startswith("__")}
            for name, value in _read_globals(base).items():
                _add(found, f"{base.__module__}.{name}", value, set(), "")
        seen, package = {id(layer)}, kind.__module__.partition(".")[0]
        for name, value in (variables | vars(layer)).items():
            # A wrapper's arrays are buffers, which hold anything at first.
            buffer = kind.__module__.startswith("gymnasium.wrappers") and isinstance(value, np.ndarray | list)
            if name not in IGNORED and not buffer:
                _add(found, f"{kind.__module__}.{kind.__qualname__}.{name}", value, seen, package)
        names.append(kind.__qualname__)
        layer = getattr(layer, "env", None)
    return found | {"its wrappers and itself": ", ".join(names)}


def changed_constants(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """What differs between the constants of then and now: `10 -> 1000` by its path."""
    changed = {}
    for name in {**old, **new}:
        # A new version of gymnasium may have attributes of its own.
        known = (name in old and name in new) or not name.startswith("gymnasium.")
        then, now = old.get(name), new.get(name)
        if known and then != now and repr(then) != repr(now):  # NaN is like itself
            changed[name] = f"{then} -> {now}"
    return changed


def fresh_constants(**settings: Any) -> dict[str, Any]:
    """The constants of an environment of today, and of its vectorized form, with the settings of `make_env`."""
    with contextlib.closing(make_env(**settings)) as env:
        constants = env_constants(env)
    if (envs := own_vector_form(num_envs=1, **settings)) is not None:
        with contextlib.closing(envs):
            constants |= env_constants(envs)
    return constants


def find_changes(old: dict[str, Any], **settings: Any) -> str:
    """What has changed in an environment since its constants were `old`, in words; empty, if nothing, or not known."""
    if not old or not (changed := changed_constants(old, new := fresh_constants(**settings))):
        return ""
    drawn = changed_constants(new, fresh_constants(**settings))  # whenever one is made, which tells nothing
    return format_list([f"{name}: {values}" for name, values in changed.items() if name not in drawn])


def _add(found: dict[str, Any], path: str, value: Any, seen: set[int], package: str) -> None:
    """Adds what is plain in a value to `found`; objects are entered where their class is of the package."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float):
        found[path] = value
    elif isinstance(value, str):
        found[path] = os.path.basename(value) or value  # files lie elsewhere on another machine
    elif isinstance(value, bytes | Enum | spaces.Space):
        found[path] = str(value)
    elif isinstance(value, np.ndarray):
        checksum = f"array {value.shape}, checksum {zlib.crc32(value.tobytes()):08x}"
        if not value.dtype.hasobject:
            found[path] = str(value.tolist()) if value.size <= MOST else checksum
    elif id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, list | tuple | deque | set | frozenset | dict):
            inner: dict[str, Any] = {}
            for name, item in _items(value):
                _add(inner, f"{path}[{name!r}]", item, seen, package)
            checksum = f"{len(inner)} values, checksum {zlib.crc32(repr(inner).encode()):08x}"
            found |= inner if len(inner) <= MOST else {path: checksum}
        elif _is_plain_object(value, package):
            for name, item in vars(value).items():
                _add(found, f"{path}.{name}", item, seen, package)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(sorted(value, key=repr) if isinstance(value, set | frozenset) else value)


def _is_plain_object(value: Any, package: str) -> bool:
    if isinstance(value, type | types.ModuleType | types.FunctionType) or not hasattr(value, "__dict__"):
        return False
    own = type(value).__module__.partition(".")[0] == package
    return own or dataclasses.is_dataclass(value) or isinstance(value, types.SimpleNamespace)


def _read_globals(kind: type) -> dict[str, Any]:
    """Variables of its module that the methods of a class read, and the functions that they call there."""
    if kind.__module__.partition(".")[0] == "gymnasium":
        return {}
    functions = [getattr(value, "__func__", getattr(value, "fget", value)) for value in vars(kind).values()]
    functions = [value for value in functions if isinstance(value, types.FunctionType)]
    found: dict[str, Any] = {}
    done = set()
    while functions:
        function = functions.pop()
        done.add(function)
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]  # lambdas
            for name in code.co_names:
                value = function.__globals__.get(name)
                if isinstance(value, types.FunctionType) and value.__module__ == kind.__module__:
                    functions += [value] if value not in done else []
                elif name in function.__globals__ and not isinstance(value, type | types.ModuleType):
                    found[name] = value
    return found
