"""Evaluation: whole episodes of a policy."""

from collections.abc import Callable

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from rl.envs import env_errors
from rl.rollout import reset, step

Policy = Callable[[np.ndarray], np.ndarray]  # observations -> actions, (N, ...) each, or one to one


def play_episodes(envs: VectorEnv, policy: Policy, episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Plays episodes in N environments of `make_vector_env`: their returns and lengths, `(episodes,)` each.

    Every environment plays the same number of episodes, or one more: to count those that end first would favor short
    ones.
    """
    count = envs.num_envs
    left = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
    total, length = np.zeros(count), np.zeros(count, dtype=np.int64)
    returns, lengths = [], []
    observation, env_steps = reset(envs, seed), 0
    while left.any():
        observation, reward, terminated, truncated = step(envs, policy(observation), env_steps)
        env_steps += count
        total += reward
        length += 1
        done = terminated | truncated
        counted = done & (left > 0)
        returns.append(total[counted])
        lengths.append(length[counted])
        left -= counted
        total[done], length[done] = 0, -1  # the next step only resets
    return np.concatenate(returns), np.concatenate(lengths)


def play_episode(
    env: gymnasium.Env, policy: Policy, seed: int, frames: list[np.ndarray] | None = None
) -> tuple[float, int, bool]:
    """Plays an episode: its return, its length, and whether it terminated instead of being truncated.

    Rendered images `(height, width, 3)` are appended to `frames`, if given.
    """
    total, length, terminated, truncated = 0.0, 0, False, False
    with env_errors(env.spec.id, f"with seed {seed}"):
        observation, _ = env.reset(seed=seed)
        while not (terminated or truncated):
            if frames is not None:
                frames.append(env.render())
            observation, reward, terminated, truncated, _ = env.step(policy(observation))
            total, length = total + float(reward), length + 1
    return total, length, bool(terminated)
