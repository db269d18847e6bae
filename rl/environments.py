"""Gymnasium's environments as agents need them: several side by side, refused in one line where that cannot be."""

import contextlib
import difflib
import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import gymnasium
from gymnasium import error, spaces
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, RecordVideo


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
    except Exception as reason:
        raise ValueError(f"cannot make {env_id}: it raised {type(reason).__name__}: {reason}") from reason


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
    """Several environments side by side.

    They reset themselves in gymnasium's mode "next step": the observation at an episode's end is its last one, and
    the next call of `step` resets. It is the one mode that every environment has, whoever vectorised it; the other,
    "same step", hides the last observation in `info`.

    Args:
        env_id: See `make_environment`, as for the other arguments that it has too.
        num_envs: How many, N.
        vectorization: One after the other (`sync`) or each in a process of its own (`async`), where the environment
            has no vectorised form of its own, which is faster than both.
        env_options: See `make_environment`.
        grayscale: See `make_environment`.
        frame_stack: See `make_environment`.

    Raises:
        ValueError: There is no such environment, or it resets itself in another way.
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
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)  # which registers it
    return gymnasium.spec(name).vector_entry_point is not None and not wrappers(grayscale, frame_stack)


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
