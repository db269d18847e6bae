"""Playing: the training environments in the middle of their episodes, and whole episodes of a policy."""

import io
from collections.abc import Callable
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
        self.observation = torch.tensor(environments.reset(seed=seed)[0])  # (N, ...)
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


def film_episode(environment: gymnasium.Env, policy: Policy, seed: int) -> bytes:
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
