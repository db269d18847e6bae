"""Single and vectorized gymnasium environments, with errors of one line."""

import contextlib
import difflib
import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import gymnasium
from gymnasium import error, spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, RecordVideo

from lit_models.common.messages import missing_extra

# The action spaces that an agent can ask for, as an error message puts them.
ACTIONS = {spaces.Discrete: "one Discrete choice, not several at once", spaces.Box: "a Box of continuous numbers"}


@contextlib.contextmanager
def env_errors(env_id: str, when: str = "") -> Iterator[None]:
    """Turns whatever an environment raises, while it is made or `when`, into a ValueError with a way out."""
    try:
        yield
    except error.DependencyNotInstalled as reason:
        needed = str(reason).lower()
        if "pygame" in needed or "moviepy" in needed:  # that of rendering Box2D names box2d, too
            raise ValueError(missing_extra("video", "a video")) from reason
        if "box2d" in needed:
            raise ValueError(missing_extra("box2d", env_id)) from reason
        raise ValueError(f"{env_id} is not complete: {reason}") from reason
    except error.UnregisteredEnv as reason:
        close = difflib.get_close_matches(env_id, gymnasium.registry, n=3)
        hint = f"; did you mean {' or '.join(repr(name) for name in close)}?" if close else f": {reason}"
        raise ValueError(f"there is no environment '{env_id}'{hint}") from reason
    except Exception as reason:
        where = f"{env_id} {when}: the environment raised" if when else f"cannot make {env_id}:"
        raise ValueError(f"{where} {type(reason).__name__}: {reason}") from reason


def make_env(
    env_id: str,
    *,
    env_options: dict[str, Any] | None = None,
    grayscale: bool = False,
    frame_stack: int = 1,
    render: bool = False,
    video_folder: str | None = None,
) -> gymnasium.Env:
    """One environment, of an id such as `CartPole-v1`, or `module:Name-v0`, which imports the module first.

    With `render` its method of that name returns images; videos of episodes 0, 1, 8, 27, 64, ... go to `video_folder`.
    """
    with env_errors(env_id):
        # Not every environment has the keyword.
        rendered = {"render_mode": "rgb_array"} if render or video_folder is not None else {}
        env = gymnasium.make(env_id, **(env_options or {}), **rendered)
        for wrapper in wrappers(grayscale, frame_stack):
            env = wrapper(env)
        if video_folder is None:
            return env
        try:
            return RecordVideo(env, video_folder)
        except OSError as reason:
            denied = reason
    raise OSError(
        f"cannot write videos to {video_folder} ({denied.strerror}): give another folder with --video"
    ) from denied


def make_vector_env(
    env_id: str,
    num_envs: int,
    vectorization: Literal["sync", "async"] = "sync",
    *,
    env_options: dict[str, Any] | None = None,
    grayscale: bool = False,
    frame_stack: int = 1,
) -> VectorEnv:
    """N environments, stepped together.

    They reset themselves in gymnasium's mode "next step": the observation at the end of an episode is its last one,
    and the next call of `step` only resets. It is the one mode that every environment has, whoever vectorized it; the
    other, "same step", hides the last observation in `info`.

    They run one after the other (`sync`) or in a process each (`async`). An environment's own vectorized form, which is
    faster than both, is used where it has one.
    """
    with env_errors(env_id):
        mode = "vector_entry_point" if is_vectorized(env_id, grayscale, frame_stack) else vectorization
        wrap = wrappers(grayscale, frame_stack)
        envs = gymnasium.make_vec(env_id, num_envs, mode, wrappers=wrap, **(env_options or {}))
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.NEXT_STEP:
        raise ValueError(f"{env_id} resets itself in another way than gymnasium's 'next step': {mode}")
    return envs


def is_vectorized(env_id: str, grayscale: bool, frame_stack: int) -> bool:
    """Whether the environment's own vectorized form can be used, which no wrapper fits."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)  # which registers it
    return gymnasium.spec(name).vector_entry_point is not None and not wrappers(grayscale, frame_stack)


def wrappers(grayscale: bool, frame_stack: int) -> list[Any]:
    """Gymnasium's wrappers for images, innermost first."""
    wrap: list[Any] = [GrayscaleObservation] if grayscale else []
    return [*wrap, partial(FrameStackObservation, stack_size=frame_stack)] if frame_stack > 1 else wrap


def check_spaces(env_id: str, env: gymnasium.Env, agent: str, action_spaces: tuple[type[spaces.Space], ...]) -> None:
    """Raises a ValueError unless the actions are of a kind that the agent takes, and observations a Box."""
    action, observation = env.action_space, env.observation_space
    if not isinstance(action, action_spaces):
        if isinstance(action, spaces.Box):
            raise ValueError(
                f"the actions of {env_id} are continuous, {action}: {agent} chooses among a few. An actor-critic such "
                "as SAC or TD3 takes them; or look for an option that makes them discrete"
            )
        taken = " or ".join(ACTIONS[kind] for kind in action_spaces)
        raise ValueError(f"the actions of {env_id} are {action}: {agent} takes {taken}")
    if isinstance(observation, spaces.Dict | spaces.Tuple):
        raise ValueError(
            f"the observations of {env_id} are a {type(observation).__name__} of several: register it with gymnasium's "
            "wrapper FlattenObservation, which makes one Box of them"
        )
    if not isinstance(observation, spaces.Box):
        raise ValueError(f"the observations of {env_id} are {observation}: {agent} takes a Box of numbers")
