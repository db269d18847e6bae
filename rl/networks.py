"""Q-networks: fully connected layers, behind DQN's convolutions where observations are images.

Observations `(batch, ...)` -> Q-values `(batch, actions)`. The convolutions are those of Mnih et al. 2015
(https://doi.org/10.1038/nature14236).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor, nn

Activation = Literal["relu", "silu", "tanh"]


class QNetwork(nn.Module):
    """Q-values of a number of actions, from observations that are images in 0..255 or not.

    The shape of an image is `(height, width)`, with channels last `(..., 1 or 3)` or first, and with the frames of a
    stack before them `(frames, height, width, channels)`. Layer normalization (Ba et al. 2016,
    https://arxiv.org/abs/1607.06450) has no learned scale and shift. Dueling Q-values are the state's value plus the
    advantages of the actions minus their mean.
    """

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
        super().__init__()
        self.layer_norm = layer_norm
        self.activation = {"relu": F.relu, "silu": F.silu, "tanh": torch.tanh}[activation]
        self.convolutions = make_convolutions(as_channels(torch.empty(1, *observation_shape)).shape) if image else None
        with torch.no_grad():
            width = self._features(torch.zeros(1, *observation_shape)).shape[1]
        widths = [width, *hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(widths))
        self.advantage = nn.Linear(widths[-1], actions)
        self.value = nn.Linear(widths[-1], 1) if dueling else None

    def forward(self, observation: Tensor) -> Tensor:
        """Q-values `(batch, actions)` of observations `(batch, ...)`."""
        dtype = getattr(self.advantage.weight, "dtype", torch.float32)  # of a quantized layer it is a function
        features = self._features(observation.to(dtype))  # (batch, width)
        for layer in self.hidden:
            features = layer(features)
            if self.layer_norm:
                features = F.layer_norm(features, features.shape[1:])
            features = self.activation(features)
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(dim=1, keepdim=True)

    def _features(self, observation: Tensor) -> Tensor:
        if self.convolutions is not None:
            observation = self.convolutions(as_channels(observation) / 255)
        return observation.flatten(1)


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
