"""State of environments and of their random generators as tensors, numbers and text, for checkpoints."""

import types
from collections import deque
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

# Stays as it was made, or holds no state of an episode.
CONSTANT = (spaces.Space, EnvSpec, AutoresetMode, type, types.FunctionType, types.ModuleType)


def get_env_state(env: Any) -> Any:
    """The state of an environment or a NumPy generator as tensors, numbers and text; None if it holds anything else.

    That is everything in the attributes of an environment and of its wrappers: numbers, text, arrays, generators, and
    lists, tuples and dictionaries of these. An environment whose state lies in a library's objects (Box2D's world, an
    emulator) or in another process has None.
    """
    seen: dict[int, Any] = {}
    try:
        state = _encode(env, seen)
    except TypeError:
        return None
    arrays = [item for item in seen.values() if isinstance(item, np.ndarray)]
    owners = {id(array if array.base is None else array.base) for array in arrays}
    return state if len(owners) == len(arrays) else None  # views would no longer share memory


def set_env_state(env: Any, state: Any) -> Any:
    """Puts an environment, made like the one whose state it is, into that state, and returns it; or a generator."""
    return _decode(state, env, {})


def _encode(value: Any, seen: dict[int, Any]) -> Any:
    if type(value) in (type(None), bool, int, float, str):
        return value
    if isinstance(value, CONSTANT):
        return {"constant": True}
    if id(value) in seen:
        return {"same": list(seen).index(id(value))}
    seen[id(value)] = value  # the object too, so that no other one gets its id
    if isinstance(value, gymnasium.Env | VectorEnv):
        return {"attributes": {name: _encode(item, seen) for name, item in vars(value).items()}}
    if isinstance(value, np.ndarray | np.generic):
        return {"array": torch.from_numpy(np.array(value)), "scalar": isinstance(value, np.generic)}
    if isinstance(value, np.random.Generator):
        return {"generator": _encode(value.bit_generator.state, seen)}
    if type(value) in (list, tuple, deque):
        items = [_encode(item, seen) for item in value]
        return {"items": items, "kind": type(value).__name__, "limit": getattr(value, "maxlen", None)}
    if type(value) is dict:
        return {"pairs": [(_encode(key, seen), _encode(item, seen)) for key, item in value.items()]}
    raise TypeError(type(value).__name__)


def _decode(state: Any, current: Any, seen: dict[int, Any]) -> Any:
    """The value of a state; objects that can't be rebuilt from it are the current ones, put into it."""
    if not isinstance(state, dict):
        return state
    if "constant" in state:
        return current
    if "same" in state:
        return seen[state["same"]]
    number = len(seen)
    seen[number] = current
    if "attributes" in state:
        for name, item in state["attributes"].items():
            setattr(current, name, _decode(item, getattr(current, name, None), seen))
        return current
    if "array" in state:
        array = state["array"].numpy().copy()
        value: Any = array[()] if state["scalar"] else array
    elif "generator" in state:
        inner = _decode(state["generator"], None, seen)
        kind = getattr(np.random, inner["bit_generator"], None)
        if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):  # any function would be called
            raise ValueError(f"NumPy has no generator {inner['bit_generator']}, which an environment's state is of")
        bits = kind()
        bits.state = inner
        value = np.random.Generator(bits)
    elif "items" in state:
        present = list(current) if isinstance(current, list | tuple | deque) else []
        present += [None] * (len(state["items"]) - len(present))
        items = [_decode(item, old, seen) for item, old in zip(state["items"], present, strict=False)]
        value = deque(items, state["limit"]) if state["kind"] == "deque" else tuple(items)
        value = items if state["kind"] == "list" else value
    else:
        value, present = {}, current if isinstance(current, dict) else {}
        for key, item in state["pairs"]:
            name = _decode(key, None, seen)
            value[name] = _decode(item, present.get(name), seen)
    seen[number] = value
    return value
