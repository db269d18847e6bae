"""What a value-based agent has lived through: kept in tensors, drawn from at random, served to a Trainer.

Replay: Lin 1992 (https://doi.org/10.1007/BF00992699). Prioritized replay: Schaul et al. 2016
(https://arxiv.org/abs/1511.05952), with its proportional variant. Returns of n steps: Sutton 1988
(https://doi.org/10.1007/BF00115009), uncorrected for the older policies that the rewards come from, as in Rainbow
(https://arxiv.org/abs/1710.02298).

Shapes: N environments, n steps of a return, ... an observation.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.utils.data import IterableDataset


class Transitions(NamedTuple):
    """What an agent has lived through; every field begins with the same batch dimensions."""

    observation: Tensor  # (batch, ...)
    action: Tensor  # (batch,) int64
    reward: Tensor  # (batch,): the return of k steps, r1 + gamma r2 + ... + gamma^(k-1) rk
    next_observation: Tensor  # (batch, ...): k steps later; where the episode ended by then, its last one
    terminated: Tensor  # (batch,) bool: nothing comes after it; a time limit does not set it
    discount: Tensor  # (batch,): gamma^k, what the next observation's value counts
    weight: Tensor  # (batch,): importance weight, in 0..1; 1 where replay is uniform
    index: Tensor  # (batch,) int64: the place in the buffer


KEPT = Transitions._fields[:6]
COUNTERS = ("size", "position", "row", "greatest")


class ReplayBuffer:
    """The latest transitions of N environments that are played side by side, in tensors allocated once.

    Args:
        capacity: How many transitions are kept; the oldest make room.
        observation_shape: Shape of one observation.
        observation_dtype: Its type; that of images is best left at `torch.uint8`.
        num_envs: N.
        n_steps: How many rewards a return has, n; where the episode ends, it has fewer.
        gamma: Discount of one step, in 0..1.
        prioritized: Whether a transition is drawn with a probability in proportion to `priority ** alpha`; otherwise
            all are equally likely.
        alpha: How much priorities count, from 0 (not at all).
        beta: How much importance weights make up for the uneven draw, from 0 (not at all) to 1 (in full).
        device: Where everything is kept.
        seed: Of the draws.

    Raises:
        ValueError: The capacity is below `num_envs * n_steps`, or the buffer needs more memory than there is.
    """

    def __init__(
        self,
        capacity: int,
        observation_shape: Sequence[int],
        observation_dtype: torch.dtype = torch.float32,
        *,
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
        one = torch.empty(tuple(observation_shape), dtype=observation_dtype)
        self._refuse_more_than_memory(capacity, one)
        self.capacity, self.n_steps, self.gamma, self.alpha, self.beta = capacity, n_steps, gamma, alpha, beta

        def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.size, self.position = 0, 0
        self.observation = zeros(capacity, *one.shape, dtype=one.dtype)
        self.action = zeros(capacity, dtype=torch.int64)
        self.reward = zeros(capacity)
        self.next_observation = torch.zeros_like(self.observation)
        self.terminated = zeros(capacity, dtype=torch.bool)
        self.discount = zeros(capacity)
        # The last n steps, whose returns are still being summed; the step at time t is in row t % n.
        self.row = 0
        self.pending = zeros(n_steps, num_envs, dtype=torch.bool)
        self.pending_observation = zeros(n_steps, num_envs, *one.shape, dtype=one.dtype)
        self.pending_action = zeros(n_steps, num_envs, dtype=torch.int64)
        self.pending_reward = zeros(n_steps, num_envs)
        self.pending_discount = zeros(n_steps, num_envs)
        self.priority = zeros(capacity, dtype=torch.float64) if prioritized else None
        self.greatest = 1.0
        self.generator = torch.Generator(device).manual_seed(seed)

    def _refuse_more_than_memory(self, capacity: int, one: Tensor) -> None:
        needed = 2 * capacity * one.numel() * one.element_size()
        cuda = self.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.device)[0] if cuda else psutil.virtual_memory().available
        if needed > free:
            raise ValueError(
                f"a buffer of {capacity:,} transitions takes {needed:,} bytes, but {free:,} are free: "
                f"keep at most {free * capacity // needed:,}, or make the observations smaller"
            )

    def add(
        self,
        observation: Tensor,
        action: Tensor,
        reward: Tensor,
        next_observation: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        skip: Tensor | None = None,
    ) -> None:
        """Adds a step of each environment; it can be drawn once its return is complete.

        Args:
            observation: What was seen, `(N, ...)`.
            action: What was done, `(N,)`.
            reward: What it brought, `(N,)`.
            next_observation: What was seen then, `(N, ...)`; at an episode's end its last observation, not the first
                of the next episode.
            terminated: Whether the episode is over, `(N,)` bool.
            truncated: Whether it was broken off, by a time limit for one, `(N,)` bool.
            skip: Environments without a step, `(N,)` bool: those that were only reset.
        """
        row, self.row = self.row, (self.row + 1) % self.n_steps
        self.pending[row] = True if skip is None else ~skip
        self.pending_observation[row] = observation
        self.pending_action[row] = action
        self.pending_reward[row] = 0
        self.pending_discount[row] = 1
        self.pending_reward.addcmul_(self.pending_discount, reward)
        self.pending_discount *= self.gamma
        complete = self.pending & (terminated | truncated)
        complete[self.row] = self.pending[self.row]  # the oldest: n rewards
        self.pending ^= complete
        rows, envs = complete.nonzero(as_tuple=True)
        place = torch.arange(self.position, self.position + len(rows), device=self.device) % self.capacity
        self.observation[place] = self.pending_observation[rows, envs]
        self.action[place] = self.pending_action[rows, envs]
        self.reward[place] = self.pending_reward[rows, envs]
        self.next_observation[place] = next_observation[envs]
        self.terminated[place] = terminated[envs]
        self.discount[place] = self.pending_discount[rows, envs]
        if self.priority is not None:
            self.priority[place] = self.greatest  # as likely as any, until their errors are known
        self.position = (self.position + len(rows)) % self.capacity
        self.size = min(self.size + len(rows), self.capacity)

    def sample(self, *shape: int) -> Transitions:
        """Draws transitions, with replacement.

        Args:
            shape: Of the batch. Importance weights are relative to the greatest along its last dimension.
        """
        if self.priority is None:
            index = torch.randint(self.size, shape, generator=self.generator, device=self.device)
            weight = torch.ones(shape, device=self.device)
        else:
            # A running sum over all priorities costs less than a tree's calls, up to about a million of them.
            sums = self.priority[: self.size].cumsum(dim=0)
            mass = torch.rand(shape, generator=self.generator, dtype=torch.float64, device=self.device) * sums[-1]
            index = torch.searchsorted(sums, mass, right=True).clamp(max=self.size - 1)  # the product may round up
            weight = (self.size * self.priority[index] / sums[-1]) ** -self.beta
            weight = (weight / weight.amax(dim=-1, keepdim=True)).float()
        return Transitions(
            self.observation[index],
            self.action[index],
            self.reward[index],
            self.next_observation[index],
            self.terminated[index],
            self.discount[index],
            weight,
            index,
        )

    def update(self, index: Tensor, error: Tensor) -> None:
        """Sets the priorities of drawn transitions to their errors, both of the batch's shape; nothing if uniform."""
        if self.priority is not None:
            priority = (error.to(self.device).abs().double() + 1e-6) ** self.alpha  # none so small as never to be drawn
            self.greatest = max(self.greatest, priority.max().item())
            self.priority[index.to(self.device)] = priority

    def state_dict(self) -> dict[str, Any]:
        """Everything, the generator's state too: tensors, those of a full buffer its own, and numbers."""
        names = [*KEPT, "priority"] if self.priority is not None else KEPT
        kept = {name: getattr(self, name) for name in names}
        if self.size < self.capacity:  # a copy, since a part of a tensor would be saved with all of it
            kept = {name: value[: self.size].clone() for name, value in kept.items()}
        pending = {name: value for name, value in vars(self).items() if name.startswith("pending")}
        counters = {name: getattr(self, name) for name in COUNTERS}
        return {**kept, **pending, **counters, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the state of a buffer that was made with the same arguments."""
        for name, value in state.items():
            if name in COUNTERS:
                setattr(self, name, value)
            elif name == "generator":
                self.generator.set_state(value)
            else:
                getattr(self, name)[: len(value)] = value


class ReplayDataset(IterableDataset[Transitions]):
    """Batches for a Trainer: before each, an agent plays on, so that it always acts with its newest weights.

    Wrap it in `DataLoader(dataset, batch_size=None)`, without workers, which would play with copies of the agent. It
    has a length, without which Lightning would fetch a batch ahead.

    Args:
        buffer: Where the agent keeps what it has lived through.
        play: Called before each batch: adds to the buffer, and sees to it that there is enough to draw from.
        batches: How many batches make an epoch.
        shape: Of a batch, `(gradient steps, minibatch)` for one.
    """

    def __init__(self, buffer: ReplayBuffer, play: Callable[[], None], batches: int, shape: Sequence[int]) -> None:
        self.buffer, self.play, self.batches, self.shape = buffer, play, batches, tuple(shape)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Transitions]:
        for _ in range(self.batches):
            self.play()
            yield self.buffer.sample(*self.shape)
