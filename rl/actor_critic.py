"""Networks of actor-critics for continuous actions: a policy, and critics that are computed as one batched product.

Legend: K - critics, A - numbers of an action.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rl.networks import Activation, Body, is_image


class Actor(Body):
    """From observations to a number of outputs."""

    def __init__(self, space: spaces.Box, outputs: int, hidden_sizes: Sequence[int], activation: Activation) -> None:
        super().__init__(space.shape, is_image(space), hidden_sizes, activation)
        self.output = nn.Linear(self.width, outputs)

    def forward(self, observation: Tensor) -> Tensor:
        """Outputs `(batch, outputs)` for observations `(batch, ...)`."""
        return self.output(self.features(observation, self.output))


class BatchedLinear(nn.Module):
    """K linear layers with inputs of their own, as one product; their weights are initialized as `nn.Linear`'s."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """`(K, batch, inputs)` -> `(K, batch, outputs)`."""
        return torch.baddbmm(self.bias, x, self.weight)


class Critics(nn.Module):
    """K independent Q(s, a), which share no more than the convolutions where observations are images."""

    def __init__(
        self, space: spaces.Box, actions: int, count: int, hidden_sizes: Sequence[int], activation: Activation
    ) -> None:
        super().__init__()
        self.body = Body(space.shape, is_image(space), (), activation)
        widths = [self.body.width + actions, *hidden_sizes]
        self.hidden = nn.ModuleList(BatchedLinear(count, *pair) for pair in pairwise(widths))
        self.output = BatchedLinear(count, widths[-1], 1)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Values `(K, batch)` of observations `(batch, ...)` and actions `(batch, A)` in -1..1."""
        dtype, count = self.output.weight.dtype, len(self.output.weight)
        seen = self.body.features(observation, self.output)
        hidden = torch.cat([seen, action.to(dtype)], dim=1).expand(count, -1, -1)
        for layer in self.hidden:
            hidden = self.body.activation(layer(hidden))
        return self.output(hidden).squeeze(2)


class ActionScale(nn.Module):
    """Scales actions from -1..1 to the bounds of a Box, which are buffers: they are part of what is exported.

    Raises:
        ValueError: The bounds are infinite.
    """

    def __init__(self, env_id: str, space: spaces.Box) -> None:
        super().__init__()
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(
                f"the actions of {env_id} have infinite bounds, {space}: leave out ClipAction, if that is what makes "
                "them so, or give it bounds with a wrapper of your own, whose action_space is finite"
            )
        self.register_buffer("low", torch.tensor(space.low, dtype=torch.float32))
        self.register_buffer("high", torch.tensor(space.high, dtype=torch.float32))

    def forward(self, action: Tensor) -> Tensor:
        """Actions `(batch, A)` in -1..1 as the environment takes them, `(batch, ...)`."""
        action = action.view(action.shape[0], *self.low.shape)
        # 1 is to be the upper bound itself, whatever is rounded.
        return (self.low + (action + 1) / 2 * (self.high - self.low)).clamp(self.low, self.high)


def check_off_policy(buffer_size: int, batch_size: int, learning_starts: int) -> None:
    """Raises a ValueError where a replay buffer cannot hold what training starts with."""
    if buffer_size < (least := max(batch_size, learning_starts)):
        raise ValueError(f"buffer_size is {buffer_size}: batch_size and learning_starts need {least} or more")
