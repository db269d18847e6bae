"""What an environment is made with, to see whether it has changed since a checkpoint."""

import contextlib
import dataclasses
import os
import re
import socket
import threading
import time
import types
import zlib
from collections import deque
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
LONGEST = 200  # characters of a text that is kept as it is
ADDRESS = " at 0x"  # in the `repr` of an object
PROCESS = "its process"  # what is in this entry may be part of any text, and is no change
DATE = re.compile(r"20\d\d(\D?)[01]\d\1[0-3]\d")
DEVICE = re.compile(r"(cpu|cuda|mps)(:\d+)?")


def env_constants(env: gymnasium.Env | VectorEnv) -> dict[str, Any]:
    """Numbers and text that a freshly made environment has, by their paths, such as `my_module.MyEnv.factor`.

    They are those of the environment and of its wrappers: in attributes of their own and of their classes, in lists,
    dictionaries and plain objects there, and in variables of a module that their methods read. What is written in the
    methods themselves, or lies in a library's objects, is not seen; it is never restored from a checkpoint, either.
    """
    found: dict[str, Any] = {PROCESS: [str(os.getpid()), str(threading.get_ident()), socket.gethostname()]}
    _add(found, "max_episode_steps", getattr(env.spec, "max_episode_steps", None), set(), "")
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
        alike = repr(then) == repr(now) or _without_process(then, old) == _without_process(now, new)
        if known and name != PROCESS and not alike:
            changed[name] = f"{_show(then)} -> {_show(now)}"
    return changed


def fresh_constants(steps: int = 0, **settings: Any) -> dict[str, Any]:
    """The constants of an environment of today, and of its vectorized form, with the settings of `make_env`.

    The environment has been played for some random `steps`, as far as that goes.
    """
    with contextlib.closing(make_env(**settings)) as env:
        with contextlib.suppress(Exception):
            over = True
            for _ in range(steps):
                if over:
                    env.reset()
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                over = terminated or truncated
        constants = env_constants(env)
    if (envs := own_vector_form(num_envs=1, **settings)) is not None:
        with contextlib.closing(envs):
            constants |= env_constants(envs)
    return constants


def find_changes(old: dict[str, Any], **settings: Any) -> str:
    """What has changed in an environment since its constants were `old`, in words; empty, if nothing, or not known."""
    if not old or not (changed := changed_constants(old, new := fresh_constants(**settings))):
        return ""
    # What is drawn whenever one is made, or is what playing leaves behind, is no constant, nor are the sizes of such.
    varying = {name for steps in (1, 20) for name in changed_constants(new, fresh_constants(steps, **settings))}
    containers = {name.partition("[")[0] for name in varying}
    played = old.get(PROCESS) == new[PROCESS]  # in this process, so that there are more or fewer entries in tables
    for name in list(changed):
        table, bracket, _ = name.partition("[")
        entry = bracket and table != "env_options" and not (name in old and name in new)
        if name in varying or (entry and (played or table in containers)):
            del changed[name]
    return format_list([f"{name}: {values}" for name, values in changed.items()])


def _without_process(value: Any, constants: dict[str, Any]) -> str:
    """One of the constants as text, without what tells of the process that they are of, or of the day."""
    text = repr(value)
    for part in constants.get(PROCESS, []):
        text = re.sub(rf"(?<![^\W_]){re.escape(part)}(?![^\W_])", "", text)
    return re.sub(r"\d", "", text) if isinstance(value, str) and DATE.search(text) else text


def _show(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _add(found: dict[str, Any], path: str, value: Any, seen: set[int], package: str) -> None:
    """Adds what is plain in a value to `found`; objects are entered where their class is of the package."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple) and len(value) > MOST and isinstance(value[0], int | float | list | tuple):
        with contextlib.suppress(ValueError):  # of lists of several lengths
            if (array := np.asarray(value)).dtype.kind in "biuf":  # many times faster
                path, value = f"{path}[...]", array
    if value is None or isinstance(value, bool):
        found[path] = value
    elif isinstance(value, bytes | Enum | spaces.Space):  # an IntEnum is an int, too, which no checkpoint may hold
        found[path] = _shorten(str(value))
    elif isinstance(value, int | float):
        if not _is_now(value):
            found[path] = int(value) if isinstance(value, int) else float(value)
    elif isinstance(value, str):
        # Files lie elsewhere on another machine, folders are called otherwise, and it has other devices.
        folder = os.path.isabs(value) and not os.path.splitext(value)[1]
        if not (folder or DEVICE.fullmatch(value)):
            found[path] = _shorten(os.path.basename(value) if os.path.isabs(value) else str(value))
    elif isinstance(value, np.ndarray):
        checksum = f"array {value.shape}, checksum {zlib.crc32(value.tobytes()):08x}"
        if not value.dtype.hasobject:
            found[path] = str(value.tolist()) if value.size <= MOST else checksum
    elif isinstance(value, set | frozenset):
        found[path] = _shorten(_describe(value))
    elif id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, list | tuple | deque | dict):
            inner: dict[str, Any] = {}
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for number, (name, item) in enumerate(items):
                key = _describe(name)
                _add(inner, f"{path}[{number if ADDRESS in key else key}]", item, seen, package)
            checksum = f"{len(inner)} values, checksum {zlib.crc32(repr(inner).encode()):08x}"
            found |= inner if len(inner) <= MOST else {f"{path}[...]": checksum}
        elif _is_plain_object(value, package):
            for name, item in vars(value).items():
                _add(found, f"{path}.{name}", item, seen, package)


def _is_now(value: Any) -> bool:
    """Whether a number is a time of this day, in seconds, or thousandths, millionths, ... of one."""
    if not isinstance(value, int | float) or not 1e9 < value < 1e19:
        return False
    return any(abs(value / 1000**unit - time.time()) < 24 * 3600 for unit in range(4))


def _shorten(text: str) -> str:
    """A text, or its length and checksum."""
    checksum = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    return text if len(text) <= LONGEST else f"{len(text)} characters, checksum {checksum:08x}"


def _describe(value: Any) -> str:
    """The `repr`, with sets in the same order in every process, and their objects without addresses."""
    if isinstance(value, set | frozenset):
        described = sorted(re.sub(f"{ADDRESS}[0-9a-f]+", "", _describe(item)) for item in value)
        return f"{{{', '.join(described)}}}"
    if type(value) is tuple:
        return f"({', '.join(map(_describe, value))})"
    return repr(value)


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
