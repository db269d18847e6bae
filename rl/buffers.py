"""Replay buffer with n-step returns and prioritized sampling, and the dataset that feeds it to a Trainer.

Replay: Lin 1992 (https://doi.org/10.1007/BF00992699). Prioritized replay, proportional variant: Schaul et al. 2016
(https://arxiv.org/abs/1511.05952). n-step returns: Sutton 1988 (https://doi.org/10.1007/BF00115009), without correction
for the older policies that the rewards come from, as in Rainbow (https://arxiv.org/abs/1710.02298).

Legend: N - environments, n - steps of a return.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils.data import IterableDataset


class Transitions(NamedTuple):
    """Transitions of k <= n steps; every field begins with the same batch dimensions."""

    observation: Tensor  # (batch, ...)
    action: Tensor  # (batch, ...)
    reward: Tensor  # (batch,): the return of k steps, r1 + gamma r2 + ... + gamma^(k-1) rk
    next_observation: Tensor  # (batch, ...): k steps later; where the episode ended by then, its last one
    terminated: Tensor  # (batch,) bool: the next state has no value; false where the episode was truncated
    discount: Tensor  # (batch,): gamma^k
    weight: Tensor  # (batch,): importance weight, in 0..1; 1 in uniform replay
    index: Tensor  # (batch,) int64: index in the buffer


FIELDS = Transitions._fields[:6]  # those that the buffer stores
COUNTERS = ("size", "position", "steps", "max_priority")


class ReplayBuffer:
    """The latest transitions of N environments, in preallocated tensors.

    Args:
        capacity: Maximum number of transitions; the oldest are overwritten.
        observation_shape: Shape of one observation.
        observation_dtype: Dtype of observations; for images, `torch.uint8` saves memory.
        action_shape: Shape of one action; `()` for a discrete one.
        action_dtype: Dtype of actions.
        num_envs: Number of environments, N.
        n_steps: Number of rewards in a return, n; fewer where the episode ends.
        gamma: Discount factor.
        prioritized: Sample in proportion to `priority ** alpha`, instead of uniformly.
        alpha: Prioritization exponent; 0 is uniform.
        beta: Importance-sampling exponent; 1 corrects for the prioritization in full.
        device: Device of all tensors.
        seed: Seed of the sampling.

    Attributes:
        size: Number of transitions that can be sampled.
        steps: Number of steps of every environment that were added.

    Raises:
        ValueError: The capacity is below `num_envs * n_steps`, or the buffer needs more memory than there is.
    """

    def __init__(
        self,
        capacity: int,
        observation_shape: Sequence[int],
        observation_dtype: torch.dtype = torch.float32,
        *,
        action_shape: Sequence[int] = (),
        action_dtype: torch.dtype = torch.int64,
        num_envs: int = 1,
        n_steps: int = 1,
        gamma: float = 0.99,
        prioritized: bool = False,
        alpha: float = 0.6,
        beta: float = 0.4,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        if capacity < num_envs * n_steps:
            raise ValueError(
                f"a buffer of {capacity} transitions is too small for {n_steps} step(s) of {num_envs} environment(s): "
                f"it needs at least {num_envs * n_steps}"
            )
        self.device = torch.device(device)
        needed = 2 * capacity * math.prod(observation_shape) * observation_dtype.itemsize
        cuda = self.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.device)[0] if cuda else psutil.virtual_memory().available
        if needed > free:
            raise ValueError(
                f"a buffer of {capacity:,} transitions takes {needed:,} bytes, but {free:,} are free: "
                f"keep at most {free * capacity // needed:,}, or make the observations smaller"
            )
        self.capacity, self.n_steps, self.gamma, self.alpha, self.beta = capacity, n_steps, gamma, alpha, beta
        self.size, self.position, self.steps = 0, 0, 0
        zeros = partial(torch.zeros, dtype=torch.float32, device=device)
        self.observation = zeros(capacity, *observation_shape, dtype=observation_dtype)
        self.action = zeros(capacity, *action_shape, dtype=action_dtype)
        self.reward = zeros(capacity)
        self.next_observation = torch.zeros_like(self.observation)
        self.terminated = zeros(capacity, dtype=torch.bool)
        self.discount = zeros(capacity)
        # The last n steps, whose returns are still being summed; step t is in row t % n.
        self.pending = zeros(n_steps, num_envs, dtype=torch.bool)
        self.pending_observation = zeros(n_steps, num_envs, *observation_shape, dtype=observation_dtype)
        self.pending_action = zeros(n_steps, num_envs, *action_shape, dtype=action_dtype)
        self.pending_reward = zeros(n_steps, num_envs)
        self.pending_discount = zeros(n_steps, num_envs)
        self.priority = zeros(capacity, dtype=torch.float64) if prioritized else None
        self.max_priority = 1.0
        self.generator = torch.Generator(device).manual_seed(seed)

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def add(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        next_observation: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        autoreset: Tensor | None = None,
    ) -> None:
        """Adds a step of every environment, which can be sampled once its return is complete.

        Args:
            observation: Observations, `(N, ...)`.
            action: Actions, `(N, ...)`.
            reward: Rewards, `(N,)`.
            next_observation: Next observations, `(N, ...)`; at the end of an episode its last one, not the first of the
                next episode.
            terminated: Whether the episode reached a terminal state, `(N,)` bool.
            truncated: Whether the episode was cut off, by a time limit for example, `(N,)` bool.
            autoreset: Whether the environment was only reset, which is not a transition, `(N,)` bool.
        """
        row, oldest = self.steps % self.n_steps, (self.steps + 1) % self.n_steps
        self.steps += 1
        self.pending[row] = True if autoreset is None else ~autoreset
        self.pending_observation[row] = observation
        self.pending_action[row] = action
        self.pending_reward[row] = 0
        self.pending_discount[row] = 1
        self.pending_reward.addcmul_(self.pending_discount, reward)
        self.pending_discount *= self.gamma
        complete = self.pending & (terminated | truncated)
        complete[oldest] = self.pending[oldest]  # it has n rewards
        self.pending ^= complete
        rows, envs = complete.nonzero(as_tuple=True)
        index = torch.arange(self.position, self.position + len(rows), device=self.device) % self.capacity
        self.observation[index] = self.pending_observation[rows, envs]
        self.action[index] = self.pending_action[rows, envs]
        self.reward[index] = self.pending_reward[rows, envs]
        self.next_observation[index] = next_observation[envs]
        self.terminated[index] = terminated[envs]
        self.discount[index] = self.pending_discount[rows, envs]
        if self.priority is not None:
            self.priority[index] = self.max_priority  # until their errors are known
        self.position = (self.position + len(rows)) % self.capacity
        self.size = min(self.size + len(rows), self.capacity)

    def drop_pending(self) -> None:
        """Forgets the steps whose returns are incomplete, since the environments start new episodes."""
        self.pending.zero_()

    def sample(self, *shape: int) -> Transitions:
        """Samples transitions with replacement.

        Args:
            shape: Batch dimensions. Importance weights are relative to the largest one along the last of them.
        """
        if self.priority is None:
            index = torch.randint(self.size, shape, generator=self.generator, device=self.device)
            weight = torch.ones(shape, device=self.device)
        else:
            # A cumulative sum over all priorities costs less than the calls of a tree, up to about a million of them.
            sums = self.priority[: self.size].cumsum(dim=0)
            mass = torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.device) * sums[-1]
            index = torch.searchsorted(sums, mass, right=True).clamp(max=self.size - 1)  # the product may round up
            weight = (self.size * self.priority[index] / sums[-1]) ** -self.beta
            weight = (weight / weight.amax(dim=-1, keepdim=True)).float()
        return Transitions(*(getattr(self, name)[index] for name in FIELDS), weight, index)

    def update(self, index: Tensor, error: Tensor) -> None:
        """Sets the priorities of sampled transitions from their errors, both `(batch,)`; nothing in uniform replay."""
        if self.priority is not None:
            priority = (error.to(self.device).abs().double() + 1e-6) ** self.alpha  # each can still be sampled
            self.max_priority = max(self.max_priority, priority.max().item())
            self.priority[index.to(self.device)] = priority

    def state_dict(self) -> dict[str, Any]:
        """Everything, the state of the generator too; the tensors of a full buffer are shared, not copied."""
        names = [*FIELDS, "priority"] if self.priority is not None else FIELDS
        stored = {name: getattr(self, name) for name in names}
        if self.size < self.capacity:  # cloned, since a slice would be saved with the whole tensor
            stored = {name: value[: self.size].clone() for name, value in stored.items()}
        pending = {name: value for name, value in vars(self).items() if name.startswith("pending")}
        counters = {name: getattr(self, name) for name in COUNTERS}
        return {**stored, **pending, **counters, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state of a buffer that was made with the same arguments."""
        for name, value in state.items():
            if name in COUNTERS:
                setattr(self, name, value)
            elif name == "generator":
                self.generator.set_state(value)
            else:
                getattr(self, name)[: len(value)] = value


class ReplayDataset(IterableDataset[Transitions]):
    """Batches from a replay buffer; before each, the agent collects transitions with its newest weights.

    Use it as `DataLoader(dataset, batch_size=None)`, without workers, which would collect with copies of the agent. It
    has a length, without which Lightning would fetch a batch ahead.

    Args:
        buffer: The replay buffer.
        collect: Called before each batch to add transitions to the buffer.
        batches: Number of batches per epoch.
        shape: Batch dimensions, such as `(gradient steps, minibatch)`.
    """

    def __init__(self, buffer: ReplayBuffer, collect: Callable[[], None], batches: int, shape: Sequence[int]) -> None:
        self.buffer, self.collect, self.batches, self.shape = buffer, collect, batches, tuple(shape)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Transitions]:
        for _ in range(self.batches):
            self.collect()
            yield self.buffer.sample(*self.shape)
