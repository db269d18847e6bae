"""Rollouts: collects transitions from the training environments."""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from rl.env_state import get_env_state, set_env_state
from rl.envs import env_errors

FLOAT32_MAX = float(np.finfo(np.float32).max)
FIELDS = ("observation", "done", "episode_return", "episode_length")  # where each environment is


class Step(NamedTuple):
    """One step of N environments."""

    reward: Tensor  # (N,)
    next_observation: Tensor  # (N, ...); at the end of an episode its last one
    terminated: Tensor  # (N,) bool
    truncated: Tensor  # (N,) bool
    autoreset: Tensor  # (N,) bool: no step, the environment was only reset


class Collector:
    """Steps N environments of `make_vector_env`, and sums up the episodes that end."""

    def __init__(self, envs: VectorEnv, seed: int) -> None:
        self.envs = envs
        self.clear_stats()
        self.reset(seed)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"envs": None}  # which most often cannot be pickled; training makes new ones

    def reset(self, seed: int) -> None:
        """Starts new episodes."""
        count = self.envs.num_envs
        self.observation = torch.tensor(reset(self.envs, seed))  # (N, ...)
        self.done = torch.zeros(count, dtype=torch.bool)  # the next step only resets
        self.episode_return = torch.zeros(count)
        self.episode_length = torch.zeros(count, dtype=torch.int64)

    def clear_stats(self) -> None:
        """Starts new sums over the episodes that end: their number, returns and lengths."""
        self.episode_stats = {"episodes": 0.0, "return": 0.0, "length": 0.0}

    def collect(self, action: np.ndarray, env_steps: int) -> Step:
        """Steps every environment with actions `(N, ...)`; `env_steps` before it are for error messages."""
        arrays = step(self.envs, action, env_steps)
        next_observation, reward, terminated, truncated = (torch.tensor(part) for part in arrays)
        reward, autoreset = reward.float(), self.done
        self.observation, self.done = next_observation, terminated | truncated
        self.episode_return += reward
        self.episode_length += ~autoreset
        if self.done.any():
            self.episode_stats["episodes"] += self.done.sum().item()
            self.episode_stats["return"] += self.episode_return[self.done].sum().item()
            self.episode_stats["length"] += self.episode_length[self.done].sum().item()
            self.episode_return[self.done], self.episode_length[self.done] = 0, 0
        return Step(reward, next_observation, terminated, truncated, autoreset)

    def state_dict(self) -> dict[str, Any]:
        """Everything; `envs` is None if the state of the environments can't be read."""
        state = {name: getattr(self, name) for name in FIELDS}
        return state | {"envs": get_env_state(self.envs), "episode_stats": self.episode_stats}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Continues the episodes of a state, and returns whether it has those."""
        self.episode_stats = state["episode_stats"]
        if state["envs"] is None:
            return False
        set_env_state(self.envs, state["envs"])
        for name in FIELDS:
            setattr(self, name, state[name])
        return True


def reset(envs: VectorEnv, seed: int) -> np.ndarray:
    """Resets N environments: their first observations `(N, ...)`."""
    env_id, when = envs.spec.id, "at its start"
    with env_errors(env_id, when, envs):
        observation = envs.reset(seed=seed)[0]
    check_finite(f"{env_id} {when}", "observation", observation)
    return observation


def step(envs: VectorEnv, action: np.ndarray, env_steps: int) -> tuple[np.ndarray, ...]:
    """Steps N environments: their observations `(N, ...)`, rewards, terminated and truncated, `(N,)` each."""
    env_id, when = envs.spec.id, f"at step {env_steps}"
    with env_errors(env_id, when, envs):
        observation, reward, terminated, truncated, _ = envs.step(action)
    check_finite(f"{env_id} {when}", "observation", observation)
    check_finite(f"{env_id} {when}", "reward", reward)
    return observation, reward, terminated, truncated


def check_finite(where: str, name: str, value: np.ndarray) -> None:
    """Raises a ValueError if `value`, `(N, ...)`, has NaN or a number that is infinite as float32, our dtype."""
    if value.dtype.kind != "f" or (fits := fits_float32(value)).all():
        return
    wrong = np.flatnonzero(~fits.reshape(len(value), -1).all(axis=1))[0]
    number = f"environment {wrong} of {len(value)}" if len(value) > 1 else "the environment"
    shown = " ".join(np.array2string(value[wrong], threshold=20).split())
    beyond = ", of which float32 holds none beyond 3.4e38" if np.isfinite(value[wrong]).all() else ""
    raise ValueError(f"{where}: {number} returned the {name} {shown}{beyond}")


def fits_float32(value: np.ndarray) -> np.ndarray:
    """Where an array of floats is finite as float32."""
    return np.abs(value) <= FLOAT32_MAX if value.itemsize > 4 else np.isfinite(value)
