"""Evaluation: whole episodes of a policy."""

import math
from collections.abc import Callable

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from rl.envs import env_errors
from rl.rollout import check_finite, reset, step

Policy = Callable[[np.ndarray], np.ndarray]  # observations -> actions, (N, ...) each, or one to one


def play_episodes(
    envs: VectorEnv, policy: Policy, episodes: int, seed: int, max_steps: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Plays episodes in N environments of `make_vector_env`: their returns and lengths, `(episodes,)` each.

    Every environment plays the same number of episodes, or one more: to count those that end first would favor short
    ones. Raises a ValueError for one that has not ended after `max_steps`.
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
        if ((length >= max_steps) & ~done & (left > 0)).any():
            raise ValueError(never_ending(envs.spec.id, max_steps))
        total[done], length[done] = 0, -1  # the next step only resets
    return np.concatenate(returns), np.concatenate(lengths)


def play_episode(
    env: gymnasium.Env,
    policy: Policy,
    seed: int,
    frames: list[np.ndarray] | None = None,
    max_steps: float = math.inf,
) -> tuple[float, int, bool]:
    """Plays an episode, as `play_episodes`: its return, its length, and whether it terminated and was not truncated.

    Rendered images `(height, width, 3)` are appended to `frames`, if given.
    """
    env_id, total, length, terminated, truncated = env.spec.id, 0.0, 0, False, False
    with env_errors(env_id, f"with seed {seed}"):
        observation, _ = env.reset(seed=seed)
    while not (terminated or truncated):
        if length >= max_steps:
            raise ValueError(never_ending(env_id, max_steps))
        when = f"at step {length} with seed {seed}"
        check_finite(f"{env_id} {when}", "observation", np.asarray(observation)[None])
        if frames is not None:
            with env_errors(env_id, when):
                frames.append(env.render())
        action = policy(observation)
        with env_errors(env_id, when):
            observation, reward, terminated, truncated, _ = env.step(action)
        check_finite(f"{env_id} {when}", "reward", np.asarray([reward], dtype=np.float64))
        total, length = total + float(reward), length + 1
    return total, length, bool(terminated)


def never_ending(env_id: str, max_steps: float) -> str:
    """The error for an episode that does not end."""
    return (
        f"{env_id}: an episode has not ended after {max_steps:,} steps: give it a time limit with model.env_options "
        "{max_episode_steps: 1000}, or more steps with model.eval_max_steps"
    )
