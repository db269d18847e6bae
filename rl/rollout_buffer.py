"""Rollouts of an on-policy agent with generalized advantage estimates, and the dataset that feeds them to a Trainer.

Generalized advantage estimation: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
estimation" (https://arxiv.org/abs/1506.02438).

Legend: N - environments, T - steps of each in a rollout.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset


class Rollout(NamedTuple):
    """The steps of a rollout, in one dimension; resets of environments are left out, so there may be fewer than T N."""

    observation: Tensor  # (batch, ...)
    action: Tensor  # (batch, ...)
    log_prob: Tensor  # (batch,): of the action, when it was taken
    value: Tensor  # (batch,): of the observation, estimated then
    advantage: Tensor  # (batch,)


class RolloutBuffer:
    """T steps of N environments, in preallocated tensors.

    Args:
        rollout_steps: Number of steps of every environment, T.
        num_envs: Number of environments, N.
        observation_shape: Shape of one observation.
        observation_dtype: Dtype of observations.
        action_shape: Shape of one action.
        action_dtype: Dtype of actions.
    """

    def __init__(
        self,
        rollout_steps: int,
        num_envs: int,
        observation_shape: Sequence[int],
        observation_dtype: torch.dtype = torch.float32,
        *,
        action_shape: Sequence[int] = (),
        action_dtype: torch.dtype = torch.int64,
    ) -> None:
        size = (rollout_steps, num_envs)
        self.position = 0  # of the next step
        self.observation = torch.zeros(rollout_steps + 1, num_envs, *observation_shape, dtype=observation_dtype)
        self.action = torch.zeros(*size, *action_shape, dtype=action_dtype)
        self.log_prob, self.reward = torch.zeros(size), torch.zeros(size)
        self.terminated, self.done, self.autoreset = (torch.zeros(size, dtype=torch.bool) for _ in range(3))

    def add(
        self,
        observation: Tensor,
        action: Tensor,
        log_prob: Tensor,
        reward: Tensor,
        next_observation: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        autoreset: Tensor,
    ) -> None:
        """Adds a step of every environment, `(N, ...)` each; see `ReplayBuffer.add`. After T steps it begins anew.

        What follows an episode's last observation is a step that only resets, so each step's `next_observation` is the
        observation of the next.
        """
        row = self.position % len(self.reward)
        self.position = row + 1
        self.observation[row] = observation
        self.observation[row + 1] = next_observation
        self.action[row], self.log_prob[row], self.reward[row] = action, log_prob, reward
        self.terminated[row], self.done[row], self.autoreset[row] = terminated, terminated | truncated, autoreset

    def rollout(self, value: Tensor, gamma: float, gae_lambda: float) -> Rollout:
        """The rollout, given the values `(T + 1, N)` of its observations, with those after the last step."""
        advantage = estimate_advantages(self.reward, value, self.terminated, self.done, gamma, gae_lambda)
        kept = ~self.autoreset
        parts = (self.observation[:-1], self.action, self.log_prob, value[:-1], advantage)
        return Rollout(*(part[kept] for part in parts))


def estimate_advantages(
    reward: Tensor, value: Tensor, terminated: Tensor, done: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalized advantage estimates `(T, N)` from rewards, `(T, N)`, and values, `(T + 1, N)`, of T steps.

    What is after a terminal state has no value. A truncated episode has that of its last observation. Beyond the end of
    an episode, `done`, no errors are summed.
    """
    error = torch.addcmul(reward, value[1:], ~terminated, value=gamma) - value[:-1]  # eq. 10: delta
    decay, advantage = gamma * gae_lambda * ~done, torch.empty_like(reward)
    following = torch.zeros_like(reward[0])
    for step in reversed(range(len(reward))):
        following = torch.addcmul(error[step], decay[step], following)  # eq. 16, as a recursion
        advantage[step] = following
    return advantage


class RolloutDataset(IterableDataset[Rollout]):
    """Rollouts, each collected with the newest weights when it is asked for.

    Use it as `DataLoader(dataset, batch_size=None)`, without workers. It has a length, without which Lightning would
    collect one ahead.

    Args:
        collect: Collects a rollout.
        batches: Number of rollouts per epoch.
    """

    def __init__(self, collect: Callable[[], Rollout], batches: int) -> None:
        self.collect, self.batches = collect, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Rollout]:
        for _ in range(self.batches):
            yield self.collect()
