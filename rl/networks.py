"""Networks of agents: fully connected layers, behind DQN's convolutions where observations are images.

Observations `(batch, ...)` -> Q-values, or other outputs. The convolutions are those of Mnih et al. 2015
(https://doi.org/10.1038/nature14236).
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

Activation = Literal["relu", "silu", "tanh"]


class Body(nn.Module):
    """Features `(batch, width)` of observations that are images in 0..255 or not.

    The shape of an image is `(height, width)`, with channels last `(..., 1 or 3)` or first, and with the frames of a
    stack before them `(frames, height, width, channels)`. Layer normalization (Ba et al. 2016,
    https://arxiv.org/abs/1607.06450) has no learned scale and shift.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        image: bool,
        hidden_sizes: Sequence[int],
        activation: Activation,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layer_norm = layer_norm
        self.activation = {"relu": F.relu, "silu": F.silu, "tanh": torch.tanh}[activation]
        self.convolutions = make_convolutions(as_channels(torch.empty(1, *observation_shape)).shape) if image else None
        with torch.no_grad():
            inputs = self._inputs(torch.zeros(1, *observation_shape)).shape[1]
        widths = [inputs, *hidden_sizes]
        self.hidden, self.width = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths)), widths[-1]

    def features(self, observation: Tensor, output: nn.Module) -> Tensor:
        """Features `(batch, width)` of observations `(batch, ...)`, in the dtype of an output layer's weights."""
        dtype = getattr(output.weight, "dtype", torch.float32)  # of a quantized layer it is a function
        features = self._inputs(observation.to(dtype))
        for layer in self.hidden:
            features = layer(features)
            if self.layer_norm:
                features = F.layer_norm(features, features.shape[1:])
            features = self.activation(features)
        return features

    def _inputs(self, observation: Tensor) -> Tensor:
        if self.convolutions is not None:
            observation = self.convolutions(as_channels(observation) / 255)
        return observation.flatten(1)


class QNetwork(Body):
    """Q-values of a number of actions; dueling, they are the state's value plus the advantages minus their mean."""

    def __init__(
        self,
        observation_shape: Sequence[int],
        image: bool,
        actions: int,
        hidden_sizes: Sequence[int] = (128, 128),
        activation: Activation = "relu",
        layer_norm: bool = False,
        dueling: bool = False,
    ) -> None:
        super().__init__(observation_shape, image, hidden_sizes, activation, layer_norm)
        self.advantage = nn.Linear(self.width, actions)
        self.value = nn.Linear(self.width, 1) if dueling else None

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values `(batch, actions)` of observations `(batch, ...)`."""
        features = self.features(observation, self.advantage)
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(dim=1, keepdim=True)


class ActorCritic(nn.Module):
    """A policy's parameters and a state's value, from two networks, or from one whose body is shared.

    Of a Box, means come from the network; the standard deviations are one number each, which begin at `action_std`.
    Weights are orthogonal, as in Andrychowicz et al. 2021 (https://arxiv.org/abs/2006.05990): by sqrt(2), by 0.01 for
    the policy's last layer, so that it begins almost uniform, and by 1 for the value's. With `normalize`, observations
    are, by the mean and standard deviation of all that were played with so far.
    """

    def __init__(
        self,
        observation_shape: Sequence[int],
        image: bool,
        outputs: int,
        hidden_sizes: Sequence[int],
        activation: Activation,
        shared: bool,
        normalize: bool,
        action_std: float | None,
    ) -> None:
        super().__init__()
        self.normalization = RunningNormalization(observation_shape) if normalize else nn.Identity()
        make_body = partial(Body, observation_shape, image, hidden_sizes, activation)
        self.body, self.value_body = make_body(), None if shared else make_body()
        self.policy, self.value = nn.Linear(self.body.width, outputs), nn.Linear(self.body.width, 1)
        self.log_std = None if action_std is None else nn.Parameter(torch.full((outputs,), math.log(action_std)))
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                gain = {self.policy: 0.01, self.value: 1.0}.get(layer, math.sqrt(2))
                nn.init.orthogonal_(layer.weight, gain)
                nn.init.zeros_(layer.bias)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Parameters of the policy `(batch, num_parameters)` and values `(batch,)` of observations `(batch, ...)`."""
        observation = self.normalization(observation)
        features = self.body.features(observation, self.policy)
        if self.value_body is not None:
            return self._outputs(features), self._value(self.value_body.features(observation, self.value))
        return self._outputs(features), self._value(features)

    def act(self, observation: Tensor) -> Tensor:
        """The parameters of the policy alone."""
        return self._outputs(self.body.features(self.normalization(observation), self.policy))

    def evaluate(self, observation: Tensor) -> Tensor:
        """The values alone."""
        body = self.body if self.value_body is None else self.value_body
        return self._value(body.features(self.normalization(observation), self.value))

    def _outputs(self, features: Tensor) -> Tensor:
        output = self.policy(features)
        return output if self.log_std is None else torch.cat([output, self.log_std.expand_as(output)], dim=1)

    def _value(self, features: Tensor) -> Tensor:
        return self.value(features)[:, 0].float()


class RunningNormalization(nn.Module):
    """Observations less their mean, over their standard deviation, both of all that were seen; within -10..10."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("var", torch.ones(*shape))

    def forward(self, observation: Tensor) -> Tensor:
        """Observations `(batch, ...)`, normalized."""
        return ((observation.to(self.mean.dtype) - self.mean) / (self.var + 1e-8).sqrt()).clamp(-10, 10)

    def update(self, observation: Tensor, strategy: Strategy) -> None:
        """Takes observations `(batch, ...)` of all processes in."""
        seen = observation.double()
        sums = [seen.new_full(seen.shape[1:], len(seen)), seen.sum(dim=0), seen.square().sum(dim=0)]
        number, total, square = strategy.reduce(torch.stack(sums), reduce_op="sum")
        count, mean, var = self.count.double(), self.mean.double(), self.var.double()
        whole = count + number
        new = (count * mean + total) / whole
        moment = (count * (var + mean.square()) + square) / whole
        self.var.copy_((moment - new.square()).clamp(min=0))
        self.mean.copy_(new)
        self.count.copy_(whole.max())


def is_image(space: spaces.Box) -> bool:
    """Whether observations are images: `uint8` with two dimensions or more."""
    return space.dtype == np.uint8 and len(space.shape) > 1


def make_convolutions(shape: Sequence[int]) -> nn.Sequential:
    """DQN's convolutions, for images of the shape `(batch, channels, height, width)`."""
    _, channels, height, width = shape
    if min(height, width) < 36:
        raise ValueError(
            f"images of {height}x{width} pixels are too small: the convolutions take 36 or more; model.wrappers "
            "[FlattenObservation] makes numbers of them"
        )
    layers = [nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, 64, 3), nn.ReLU())


def as_channels(images: Tensor) -> Tensor:
    """Images `(batch, ...)` of any layout as `(batch, channels, height, width)`; stacked frames become channels."""
    if images.dim() == 3:
        return images.unsqueeze(1)
    if images.dim() > 5:
        shape = tuple(images.shape[1:])
        raise ValueError(f"observations of shape {shape} are no images: set model.wrappers [FlattenObservation]")
    channels_last = images.shape[-1] < images.shape[-3]
    if images.dim() == 5:  # (batch, frames, height, width, channels), or with the channels before the height
        return (images.movedim(-1, 2) if channels_last else images).flatten(1, 2)
    return images.movedim(-1, 1) if channels_last else images
