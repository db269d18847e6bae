"""Single and vectorized gymnasium environments, with errors of one line."""

import contextlib
import difflib
import importlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import error, spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import (
    DtypeObservation,
    FlattenObservation,
    FrameStackObservation,
    GrayscaleObservation,
    RecordVideo,
)

from lit_models.common.messages import missing_extra, suggest
from rl.networks import is_image

# The action spaces that an agent can ask for, as an error message puts them.
ACTIONS = {
    spaces.Discrete: "one Discrete choice, not several at once",
    spaces.MultiDiscrete: "several Discrete choices",
    spaces.MultiBinary: "several of yes or no",
    spaces.Box: "a Box of continuous numbers",
}
NAMESPACES = {"ALE": "ale_py"}  # of environments that a package registers when it is imported
# Dtypes that torch does not compute with, and the ones that hold their numbers.
DTYPES = {"uint16": np.int32, "uint32": np.int64, "uint64": np.float64, np.dtype(np.longdouble).name: np.float64}

Wrappers = list[str | dict[str, Any]]

gymnasium.register(
    "VectorPendulum-v1",
    "gymnasium.envs.classic_control:PendulumEnv",
    vector_entry_point="rl.vector_pendulum:PendulumVectorEnv",
    max_episode_steps=200,
)


@contextlib.contextmanager
def env_errors(env_id: str, when: str = "", envs: VectorEnv | None = None) -> Iterator[None]:
    """Turns whatever an environment raises, while it is made or `when`, into a ValueError with a way out."""
    try:
        yield
    except error.DependencyNotInstalled as reason:
        needed = str(reason).lower()
        if "pygame" in needed or "moviepy" in needed:  # that of rendering Box2D names box2d, too
            raise ValueError(missing_extra("video", "a video")) from reason
        for part, extra in (("box2d", "box2d"), ("mujoco", "mujoco"), ("opencv", "atari")):
            if part in needed:
                raise ValueError(missing_extra(extra, env_id)) from reason
        raise ValueError(f"{env_id} is not complete: {reason}") from reason
    except error.UnregisteredEnv as reason:
        raise ValueError(f"there is no environment '{env_id}'{find_env(env_id, reason)}") from reason
    except Exception as reason:
        if isinstance(reason, ModuleNotFoundError) and env_id.startswith("ale_py:") and "ale_py" in str(reason):
            raise ValueError(missing_extra("atari", env_id)) from reason
        if isinstance(reason, EOFError | ConnectionError) and (status := end_processes(envs)):
            raise ValueError(
                f"{env_id} {when}: a process of its environments has ended ({status}), for lack of memory or by a "
                "fault of its own: have fewer with model.num_envs, or one process with model.vectorization sync"
            ) from reason
        where = f"{env_id} {when}: the environment raised" if when else f"cannot make {env_id}:"
        skips = "frame-skipping" in str(reason) and "ALE/" in env_id  # others have no such option
        hint = ": set model.env_options to {frameskip: 1}" if skips else ""
        if isinstance(reason, OSError) and ".xml" in str(reason):  # of MuJoCo
            hint = ": give a file that is there, by its whole path, as xml_file in model.env_options"
        raise ValueError(f"{where} {type(reason).__name__}: {reason}{hint}") from reason


def find_env(env_id: str, reason: error.UnregisteredEnv) -> str:
    """What may have been meant by an id that is not registered."""
    module, colon, name = env_id.rpartition(":")
    if isinstance(reason, error.NamespaceNotFound) and not module:
        namespace = name.partition("/")[0]
        package = NAMESPACES.get(namespace, "my_module")
        return (
            f": the package that registers {namespace} has to be imported, by its name before a colon: {package}:{name}"
        )
    near = difflib.get_close_matches(name, gymnasium.registry, n=3)
    if close := [found for found in near if difflib.get_close_matches(unversioned(name), [unversioned(found)])]:
        return f"; did you mean {' or '.join(repr(module + colon + found) for found in close)}?"
    return f": {reason}" + ("" if module else " One of your own is my_module:Name-v0, where my_module registers it")


def unversioned(env_id: str) -> str:
    """An id without its version, which many others have in common with it."""
    return env_id.rpartition("-v")[0] or env_id


def end_processes(envs: VectorEnv | None) -> str:
    """If one of the processes of asynchronous environments has ended, ends the others, and returns how it ended."""
    processes = getattr(envs, "processes", [])
    for process in processes:
        process.join(0.2)  # its pipe is closed before it is gone
        if not process.is_alive():
            for other in processes:
                other.terminate()
            envs.closed = True  # closing them would wait for an answer
            return f"signal {-process.exitcode}" if process.exitcode < 0 else f"status {process.exitcode}"
    return ""


def make_env(
    env_id: str,
    *,
    env_options: dict[str, Any] | None = None,
    wrappers: Wrappers | None = None,
    grayscale: bool = False,
    frame_stack: int = 1,
    render: bool = False,
    video_folder: str | None = None,
) -> gymnasium.Env:
    """One environment, of an id such as `CartPole-v1`, or `module:Name-v0`, which imports the module first.

    With `render` its method of that name returns images; videos of episodes 0, 1, 8, 27, 64, ... go to `video_folder`.
    """
    found = all_wrappers(wrappers, grayscale, frame_stack)
    with env_errors(env_id):
        # Not every environment has the keyword.
        rendered = {"render_mode": "rgb_array"} if render or video_folder is not None else {}
        env = gymnasium.make(env_id, **(env_options or {}), **rendered)
        for wrapper in found:
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
    wrappers: Wrappers | None = None,
    grayscale: bool = False,
    frame_stack: int = 1,
) -> VectorEnv:
    """N environments, stepped together.

    They reset themselves in gymnasium's mode "next step": the observation at the end of an episode is its last one,
    and the next call of `step` only resets. It is the one mode that every environment has, whoever vectorized it; the
    other, "same step", hides the last observation in `info`.

    They run one after the other (`sync`) or in a process each (`async`). An environment's own vectorized form, which is
    faster than both, is used where it has one that fits.
    """
    given = {"env_options": env_options, "wrappers": wrappers, "grayscale": grayscale, "frame_stack": frame_stack}
    if (envs := own_vector_form(env_id, num_envs, **given)) is not None:
        return envs
    if vectorization == "async":  # gymnasium prints what a process has raised, which is raised again
        warnings.filterwarnings("ignore", message="(?s).*ERROR: (Received the following error from|Traceback|Raising)")
    wrap = all_wrappers(wrappers, grayscale, frame_stack)
    with env_errors(env_id):
        return gymnasium.make_vec(env_id, num_envs, vectorization, wrappers=wrap, **(env_options or {}))


def own_vector_form(
    env_id: str,
    num_envs: int,
    *,
    env_options: dict[str, Any] | None = None,
    wrappers: Wrappers | None = None,
    grayscale: bool = False,
    frame_stack: int = 1,
) -> VectorEnv | None:
    """An environment's own vectorized form, if it has one with the spaces of the single environment."""
    if wrappers or grayscale or frame_stack > 1:  # which do not fit it
        return None
    with contextlib.closing(make_env(env_id, env_options=env_options)) as env:
        if env.spec.vector_entry_point is None:
            return None
        try:
            envs = gymnasium.make_vec(env_id, num_envs, "vector_entry_point", **(env_options or {}))
        except Exception:  # it may lack a package, or an option, which the single environment does not
            return None
        alike = (envs.single_observation_space, envs.single_action_space) == (env.observation_space, env.action_space)
    if alike and envs.metadata.get("autoreset_mode") == AutoresetMode.NEXT_STEP:
        return envs
    envs.close()
    return None


def all_wrappers(wrappers: Wrappers | None, grayscale: bool, frame_stack: int) -> list[Callable[..., gymnasium.Env]]:
    """All that an environment is wrapped in, innermost first: the wrappers that were asked for, then those we need."""
    found = [find_wrapper(wrapper) for wrapper in wrappers or ()]
    found += [as_numbers, GrayscaleObservation] if grayscale else [as_numbers]
    return [*found, partial(FrameStackObservation, stack_size=frame_stack)] if frame_stack > 1 else found


def find_wrapper(wrapper: str | dict[str, Any]) -> Callable[..., gymnasium.Env]:
    """The wrapper of a class path, or of a dictionary of `class_path` and `init_args`; gymnasium's by their names."""
    given = {"class_path": wrapper} if isinstance(wrapper, str) else wrapper
    if not isinstance(path := given.get("class_path"), str) or given.keys() - {"class_path", "init_args"}:
        raise ValueError(f"wrappers: {wrapper} is neither a class path nor {{class_path: ..., init_args: {{...}}}}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module or "gymnasium.wrappers"), name)
    except (ImportError, AttributeError) as reason:
        hint = f": {reason}" if module else suggest(name, gymnasium.wrappers.__all__)
        raise ValueError(f"wrappers: there is no wrapper '{path}'{hint}") from reason
    if not (isinstance(found, type) and issubclass(found, gymnasium.Wrapper)):
        raise ValueError(f"wrappers: {path} is no gymnasium.Wrapper")
    # Sizes and shapes are tuples, where files and hyperparameters have lists.
    arguments = given.get("init_args") or {}
    tuples = {key: tuple(value) for key, value in arguments.items() if isinstance(value, list)}
    return partial(found, **arguments | tuples)


def as_numbers(env: gymnasium.Env) -> gymnasium.Env:
    """Makes observations one Box of a dtype that torch has: flattens others, so that choices become one-hot."""
    space = env.observation_space
    if not isinstance(space, spaces.Box) or not space.shape:
        if not space.is_np_flattenable:
            return env  # check_spaces says it
        env = FlattenObservation(env)
        low, high = env.observation_space.low.min(), env.observation_space.high.max()
        if np.issubdtype(env.observation_space.dtype, np.integer) and low >= 0 and high <= 1:
            return DtypeObservation(env, np.int8)  # one-hot: a replay buffer holds many
    dtype = DTYPES.get(env.observation_space.dtype.name)
    return env if dtype is None else DtypeObservation(env, dtype)


def check_spaces(env_id: str, env: gymnasium.Env, agent: str, action_spaces: tuple[type[spaces.Space], ...]) -> None:
    """Raises a ValueError unless the actions are of a kind that the agent takes, and observations a Box."""
    action, observation = env.action_space, env.observation_space
    if not isinstance(action, action_spaces):
        if isinstance(action, spaces.Box):
            raise ValueError(
                f"the actions of {env_id} are continuous, {action}: {agent} chooses among a few. DDPG, PPO or SAC "
                "takes them; or look for an option that makes them discrete"
            )
        taken = " or ".join(ACTIONS[kind] for kind in action_spaces)
        several = isinstance(action, spaces.MultiDiscrete | spaces.MultiBinary)
        others = ". DQN or PPO takes them" if isinstance(action, spaces.Discrete) else ". PPO takes them" * several
        raise ValueError(f"the actions of {env_id} are {action}: {agent} takes {taken}{others}")
    if isinstance(action, spaces.Box) and not np.issubdtype(action.dtype, np.floating):
        raise ValueError(
            f"the actions of {env_id} are integers, {action}: give it floats with a wrapper of your own, whose "
            "action_space is a Box of float32"
        )
    if not isinstance(observation, spaces.Box):
        raise ValueError(
            f"the observations of {env_id} are {observation}, which cannot be flattened to a Box of numbers: make "
            "one of them with model.wrappers"
        )


def describe_env(env: gymnasium.Env) -> str:
    """The kinds of observations and actions of an environment, and its time limit, in words."""
    observation, action, most = env.observation_space, env.action_space, env.spec.max_episode_steps
    size, raw = "x".join(map(str, observation.shape)), env.unwrapped.observation_space
    seen = f"images of {size} pixels" if is_image(observation) else f"{size} numbers ({observation.dtype})"
    if not isinstance(raw, spaces.Box):
        name = " ".join(str(raw).split())  # arrays have lines
        seen = f"{size} numbers (flattened from {name if len(name) < 50 else type(raw).__name__})"
    chosen = f"{action.n} actions" if isinstance(action, spaces.Discrete) else f"actions in {action}"
    limit = f"at most {most:,} steps per episode" if most else "no step limit (env_options.max_episode_steps)"
    return f"{env.spec.id}: observations of {seen}, {chosen}, {limit}"


def describe_vectorization(envs: VectorEnv) -> str:
    """How many environments train, and how they are stepped together, in words."""
    forms = {SyncVectorEnv: "in one process", AsyncVectorEnv: "in a process each"}
    return f"{envs.num_envs} for training, {forms.get(type(envs), 'vectorized by itself')}"
