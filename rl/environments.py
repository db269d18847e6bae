"""Gymnasium's environments as agents need them: checked, several side by side, and with a state that can be kept."""

import contextlib
import difflib
import io
import types
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import error, spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, RecordVideo
from PIL import Image

# What stays as it was made, or holds no state of an episode.
CONSTANT = (spaces.Space, EnvSpec, Enum, type, types.FunctionType, types.MethodType, types.ModuleType, partial)


@contextlib.contextmanager
def explained(env_id: str) -> Iterator[None]:
    """Turns what goes wrong as an environment is made into a ValueError with one line and a way out."""
    try:
        yield
    except error.DependencyNotInstalled as reason:
        if "box2d" in str(reason).lower():
            raise ValueError(f"{env_id} needs the extra box2d: pip install -e '.[box2d]'") from reason
        if "pygame" in str(reason) or "moviepy" in str(reason).lower():
            raise ValueError("a video needs the extra video: pip install -e '.[video]'") from reason
        raise ValueError(f"{env_id} is not complete: {reason}") from reason
    except error.UnregisteredEnv as reason:
        close = difflib.get_close_matches(env_id, gymnasium.registry, n=3)
        hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else f": {reason}"
        raise ValueError(f"there is no environment '{env_id}'{hint}") from reason
    except (error.Error, ImportError, TypeError, ValueError) as reason:
        raise ValueError(f"cannot make {env_id}: {reason}") from reason


def make_environment(
    env_id: str,
    *,
    env_options: dict[str, Any] | None = None,
    grayscale: bool = False,
    frame_stack: int = 1,
    render_mode: str | None = None,
    video_folder: str | None = None,
) -> gymnasium.Env:
    """One environment.

    Args:
        env_id: Gymnasium's name, such as `CartPole-v1`; `module:Name-v0` imports the module first.
        env_options: Keywords of the environment's own.
        grayscale: Whether to take the colour out of images.
        frame_stack: How many of the last images make an observation.
        render_mode: `rgb_array` for pictures.
        video_folder: Where to write films of episodes 0, 1, 8, 27, 64, ... (needs `rgb_array`).

    Raises:
        ValueError: There is no such environment, or it needs a package that is missing.
    """
    with explained(env_id):
        rendered = {} if render_mode is None else {"render_mode": render_mode}  # not every environment knows the word
        env = gymnasium.make(env_id, **(env_options or {}), **rendered)
        for wrapper in wrappers(grayscale, frame_stack):
            env = wrapper(env)
        return env if video_folder is None else RecordVideo(env, video_folder)


def make_environments(
    env_id: str,
    num_envs: int,
    vectorization: Literal["sync", "async"] = "sync",
    *,
    env_options: dict[str, Any] | None = None,
    grayscale: bool = False,
    frame_stack: int = 1,
) -> VectorEnv:
    """Several environments side by side, see `make_environment`.

    They reset themselves in gymnasium's mode "next step": the observation at an episode's end is its last one, and
    the next call of `step` resets. It is the one mode that every environment has, whoever vectorised it; the other,
    "same step", hides the last observation in `info`.

    Args:
        vectorization: One after the other (`sync`) or each in a process of its own (`async`), where the environment
            has no vectorised form of its own, which is faster than both.
    """
    with explained(env_id):
        mode = "vector_entry_point" if is_vectorised(env_id, grayscale, frame_stack) else vectorization
        wrap = wrappers(grayscale, frame_stack)
        environments = gymnasium.make_vec(env_id, num_envs, mode, wrappers=wrap, **(env_options or {}))
    mode = environments.metadata.get("autoreset_mode")
    if mode != gymnasium.vector.AutoresetMode.NEXT_STEP:
        raise ValueError(f"{env_id} resets itself in another way than gymnasium's 'next step': {mode}")
    return environments


def is_vectorised(env_id: str, grayscale: bool, frame_stack: int) -> bool:
    """Whether the environment has a vectorised form of its own, and nothing has to be wrapped around single ones."""
    return gymnasium.spec(env_id).vector_entry_point is not None and not wrappers(grayscale, frame_stack)


def wrappers(grayscale: bool, frame_stack: int) -> list[Any]:
    """Gymnasium's wrappers for images, the innermost first."""
    wrap: list[Any] = [GrayscaleObservation] if grayscale else []
    return [*wrap, partial(FrameStackObservation, stack_size=frame_stack)] if frame_stack > 1 else wrap


def refuse_other_spaces(env_id: str, environment: gymnasium.Env) -> None:
    """Raises a ValueError unless actions are `Discrete` and observations a `Box`."""
    action, observation = environment.action_space, environment.observation_space
    if isinstance(action, spaces.Box):
        raise ValueError(
            f"the actions of {env_id} are continuous, {action}: DQN chooses among a few. An actor-critic such as SAC "
            "or TD3 takes them; or look for an option that makes them discrete"
        )
    if not isinstance(action, spaces.Discrete):
        raise ValueError(f"the actions of {env_id} are {action}: DQN takes one Discrete choice, not several at once")
    if isinstance(observation, spaces.Dict | spaces.Tuple):
        raise ValueError(
            f"the observations of {env_id} are a {type(observation).__name__} of several: register it with gymnasium's "
            "wrapper FlattenObservation, which makes one Box of them"
        )
    if not isinstance(observation, spaces.Box):
        raise ValueError(f"the observations of {env_id} are {observation}: DQN takes a Box of numbers")


def step(environments: VectorEnv, action: np.ndarray, count: int) -> tuple[np.ndarray, ...]:
    """A step of every environment: `(observation, reward, terminated, truncated)`.

    Args:
        environments: As `make_environments` makes them.
        action: `(N,)`.
        count: How many steps there were before, for what is said of an error.

    Raises:
        ValueError: An environment raised something, or returned numbers that are none.
    """
    name = f"{environments.spec.id} at step {count}"
    try:
        observation, reward, terminated, truncated, _ = environments.step(action)
    except Exception as reason:
        raise ValueError(f"{name}: the environment raised {type(reason).__name__}: {reason}") from reason
    for what, value in (("observation", observation), ("reward", reward)):
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            wrong = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))[0]
            raise ValueError(f"{name}: environment {wrong} of {len(value)} returned the {what} {value[wrong]}")
    return observation, reward, terminated, truncated


def play_episodes(
    environments: VectorEnv, policy: Callable[[np.ndarray], np.ndarray], episodes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Plays whole episodes: their returns and lengths, `(episodes,)` each.

    Every environment plays the same number of them, or one more. Were the first to end counted, short ones would be
    counted too often.

    Args:
        environments: As `make_environments` makes them.
        policy: Observations `(N, ...)` -> actions `(N,)`.
        episodes: How many.
        seed: Of the environments.

    Raises:
        ValueError: See `step`.
    """
    count = environments.num_envs
    left = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
    total, length = np.zeros(count), np.zeros(count, dtype=np.int64)
    returns, lengths = [], []
    observation, _ = environments.reset(seed=seed)
    steps = 0
    while left.any():
        observation, reward, terminated, truncated = step(environments, policy(observation), steps)
        steps += count
        total += reward
        length += 1
        over = terminated | truncated
        counted = over & (left > 0)
        returns.append(total[counted])
        lengths.append(length[counted])
        left -= counted
        total[over], length[over] = 0, -1  # the next step only resets
    return np.concatenate(returns), np.concatenate(lengths)


def film_episode(environment: gymnasium.Env, policy: Callable[[np.ndarray], np.ndarray], seed: int) -> bytes:
    """Plays an episode: an animated GIF of it.

    Args:
        environment: As `make_environment` makes it, with `rgb_array`.
        policy: An observation -> an action.
        seed: Of the environment.
    """
    observation, _ = environment.reset(seed=seed)
    frames, over = [Image.fromarray(environment.render())], False
    while not over:
        observation, _, terminated, truncated, _ = environment.step(policy(observation))
        frames.append(Image.fromarray(environment.render()))
        over = terminated or truncated
    film = io.BytesIO()
    duration = 1000 / environment.metadata.get("render_fps", 30)
    frames[0].save(film, "GIF", save_all=True, append_images=frames[1:], duration=duration, loop=0)
    return film.getvalue()


def capture(environment: Any) -> dict[str, Any] | None:
    """An environment's state in tensors, numbers and text; None where it holds something else.

    Everything that an environment keeps in its attributes, and its wrappers in theirs: numbers, text, arrays, random
    generators, and lists, tuples and dictionaries of these. An environment whose state lies in a library's objects
    (Box2D's world, an emulator) or in another process can't be captured.
    """
    try:
        return _encode(environment, {})
    except TypeError:
        return None


def restore(environment: Any, state: dict[str, Any]) -> None:
    """Puts an environment, made as the captured one was, into a captured state."""
    _decode(state, environment, {})


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
    """The value of a state; objects that can't be made from it are the current ones, put into it."""
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
        bits = getattr(np.random, inner["bit_generator"])()
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
