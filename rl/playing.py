"""Playing: the training environments in the middle of their episodes, and whole episodes of a policy."""

import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from PIL import Image
from torch import Tensor

from rl.state import capture, restore

Policy = Callable[[np.ndarray], np.ndarray]
EPISODE = ("observation", "over", "episode_return", "episode_length")  # where each environment is


class Player:
    """N environments that are played on and on.

    Args:
        environments: As `make_environments` makes them.
        seed: Of the environments.
    """

    def __init__(self, environments: VectorEnv, seed: int) -> None:
        self.environments, count = environments, environments.num_envs
        self.observation = torch.tensor(reset(environments, seed))  # (N, ...)
        self.over = torch.zeros(count, dtype=torch.bool)  # whose next step is none, but a reset
        self.episode_return = torch.zeros(count)
        self.episode_length = torch.zeros(count, dtype=torch.int64)
        self.finished = {"episodes": 0.0, "return": 0.0, "length": 0.0}

    def step(self, action: np.ndarray, count: int) -> tuple[Tensor, ...]:
        """A step of every environment.

        Args:
            action: `(N,)`.
            count: How many steps there were before, for what is said of an error.

        Returns:
            Reward `(N,)`, next observation `(N, ...)`, terminated, truncated, and whether the step was only a reset,
            `(N,)` each, as `ReplayBuffer.add` takes them.

        Raises:
            ValueError: See `step`.
        """
        seen, reward, terminated, truncated = (torch.tensor(part) for part in step(self.environments, action, count))
        reward, skip, self.observation, self.over = reward.float(), self.over, seen, terminated | truncated
        self.episode_return += reward
        self.episode_length += ~skip
        if self.over.any():
            self.finished["episodes"] += self.over.sum().item()
            self.finished["return"] += self.episode_return[self.over].sum().item()
            self.finished["length"] += self.episode_length[self.over].sum().item()
            self.episode_return[self.over], self.episode_length[self.over] = 0, 0
        return reward, seen, terminated, truncated, skip

    def state_dict(self) -> dict[str, Any]:
        """Where the environments are; their own state is None if it can't be captured."""
        state = {name: getattr(self, name) for name in EPISODE}
        return state | {"environments": capture(self.environments), "finished": self.finished}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Goes on from there; False, and the episodes just started are played on, if that can't be."""
        self.finished = state["finished"]
        if state["environments"] is None:
            return False
        restore(self.environments, state["environments"])
        for name in EPISODE:
            setattr(self, name, state[name])
        return True


@contextlib.contextmanager
def named(where: str) -> Iterator[None]:
    """Turns whatever an environment raises into a ValueError that says where."""
    try:
        yield
    except gymnasium.error.DependencyNotInstalled as reason:  # only drawing needs anything more by now
        raise ValueError("a video needs the extra video: pip install -e '.[video]'") from reason
    except Exception as reason:
        raise ValueError(f"{where}: the environment raised {type(reason).__name__}: {reason}") from reason


def reset(environments: VectorEnv, seed: int) -> np.ndarray:
    """The first observations `(N, ...)`.

    Raises:
        ValueError: An environment raised something.
    """
    name = f"{environments.spec.id} at its start"
    with named(name):
        observation = environments.reset(seed=seed)[0]
    refuse_what_is_no_number(name, "observation", observation)
    return observation


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
    with named(name):
        observation, reward, terminated, truncated, _ = environments.step(action)
    refuse_what_is_no_number(name, "observation", observation)
    refuse_what_is_no_number(name, "reward", reward)
    return observation, reward, terminated, truncated


def refuse_what_is_no_number(name: str, what: str, value: np.ndarray) -> None:
    """Raises a ValueError where something of an environment is infinite or not a number."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        wrong = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))[0]
        raise ValueError(f"{name}: environment {wrong} of {len(value)} returned the {what} {value[wrong]}")


def play_episodes(environments: VectorEnv, policy: Policy, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
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
    observation, steps = reset(environments, seed), 0
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


def play_episode(
    environment: gymnasium.Env, policy: Policy, seed: int, frames: list[np.ndarray] | None = None
) -> tuple[float, int, bool]:
    """Plays one episode: its return, its length, and whether it terminated, rather than being broken off.

    Args:
        environment: As `make_environment` makes it.
        policy: An observation -> an action.
        seed: Of the environment.
        frames: Where to add its images `(height, width, 3)`; the environment must have been made with `rgb_array`.

    Raises:
        ValueError: The environment raised something.
    """
    total, length, terminated, truncated = 0.0, 0, False, False
    with named(f"{environment.spec.id} with seed {seed}"):
        observation, _ = environment.reset(seed=seed)
        while not (terminated or truncated):
            if frames is not None:
                frames.append(environment.render())
            observation, reward, terminated, truncated, _ = environment.step(policy(observation))
            total, length = total + float(reward), length + 1
    return total, length, bool(terminated)


def film(frames: list[np.ndarray], frames_per_second: float) -> bytes:
    """An animated GIF of images `(height, width, 3)`."""
    content, images = io.BytesIO(), [Image.fromarray(frame) for frame in frames]
    duration = 1000 / frames_per_second  # milliseconds
    images[0].save(content, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return content.getvalue()
