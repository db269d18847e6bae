"""Stochastic policies over the action spaces of gymnasium: how actions are drawn, and how probable they are.

Parameters `(batch, num_parameters)` of a network -> actions `(batch, num_actions)`, in the form that is stored.
"""

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn


class Choices(nn.Module):
    """Independent choices: the one of a Discrete space, those of MultiDiscrete, yes or no of MultiBinary.

    Parameters are the logits of all choices, one after the other.
    """

    dtype = torch.int64

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) -> None:
        super().__init__()
        start = np.asarray(getattr(space, "start", 0), dtype=np.int64)
        sizes = {spaces.Discrete: lambda: [space.n], spaces.MultiDiscrete: lambda: space.nvec.flatten()}
        self.sizes = [int(size) for size in sizes.get(type(space), lambda: [2] * int(np.prod(space.shape)))()]
        self.shape, self.num_actions, self.num_parameters = space.shape, len(self.sizes), sum(self.sizes)
        self.register_buffer("start", torch.from_numpy(start), persistent=False)

    def sample(self, parameters: Tensor, rng: Any) -> Tensor:
        """Actions drawn with a `np.random.Generator`, or `np.random`: the largest logit with Gumbel noise on it."""
        noise = torch.from_numpy(rng.gumbel(size=parameters.shape)).to(parameters)
        return self.mode(parameters + noise)

    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable actions."""
        if self.num_actions == 1:
            return parameters.argmax(dim=1, keepdim=True)
        return torch.stack([logits.argmax(dim=1) for logits in parameters.split(self.sizes, dim=1)], dim=1)

    def evaluate(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the actions' probability, and entropy, `(batch,)` each."""
        log_prob, entropy = 0, 0
        for column, logits in enumerate(parameters.split(self.sizes, dim=1)):
            logarithms = logits.log_softmax(dim=1)
            log_prob = log_prob + logarithms.gather(1, action[:, column : column + 1])[:, 0]
            entropy = entropy - (logarithms.exp() * logarithms).sum(dim=1)
        return log_prob, entropy

    def to_env(self, action: Tensor) -> Tensor:
        """Actions `(batch, ...)` as the environment takes them."""
        return action.view(len(action), *self.shape) + self.start


class Gaussian(nn.Module):
    """Independent normal distributions over a Box, whose finite ranges are scaled to -1..1.

    Parameters are the means, and then the logarithms of the standard deviations.
    """

    dtype = torch.float32

    def __init__(self, space: spaces.Box) -> None:
        super().__init__()
        self.shape, self.num_actions = space.shape, math.prod(space.shape)
        self.num_parameters = 2 * self.num_actions
        low, high = (torch.from_numpy(bound.astype(np.float32).flatten()) for bound in (space.low, space.high))
        finite = low.isfinite() & high.isfinite()
        # Others are taken as they are, within the bounds.
        scale = torch.where(finite, high / 2 - low / 2, 1)
        for name, bound in (("low", low), ("high", high), ("scale", scale)):
            self.register_buffer(name, bound, persistent=False)
        self.register_buffer("offset", torch.where(finite, high / 2 + low / 2, 0), persistent=False)

    def sample(self, parameters: Tensor, rng: Any) -> Tensor:
        """Actions drawn with a `np.random.Generator`, or `np.random`."""
        mean, log_std = parameters.chunk(2, dim=1)
        return mean + log_std.exp() * torch.from_numpy(rng.standard_normal(mean.shape)).to(mean)

    def mode(self, parameters: Tensor) -> Tensor:
        """The most probable actions."""
        return parameters.chunk(2, dim=1)[0]

    def evaluate(self, parameters: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the actions' probability density, and entropy, `(batch,)` each."""
        mean, log_std = parameters.float().chunk(2, dim=1)
        log_prob = -0.5 * ((action - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        entropy = log_std + 0.5 * math.log(2 * math.pi * math.e)
        return log_prob.sum(dim=1), entropy.sum(dim=1)

    def to_env(self, action: Tensor) -> Tensor:
        """Actions `(batch, ...)` as the environment takes them, within its bounds."""
        scaled = (action * self.scale + self.offset).clamp(self.low, self.high)
        return scaled.view(len(action), *self.shape)


def make_distribution(space: spaces.Space) -> Choices | Gaussian:
    """The distribution for an action space."""
    return Gaussian(space) if isinstance(space, spaces.Box) else Choices(space)
