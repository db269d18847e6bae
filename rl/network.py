"""The network of a value-based agent: fully connected, or behind the convolutions of DQN for images.

Observations `(batch, ...)` -> the value of each action, `(batch, actions)`. The convolutions are those of Mnih et al.
2015 (https://doi.org/10.1038/nature14236).
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal["relu", "silu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class QNetwork(nn.Module):
    """Values of actions.

    Args:
        observation_shape: Of one observation. One of `uint8` is an image, `(height, width)`, with channels last
            `(..., 1 or 3)` or first, and before them those of a frame stack `(frames, height, width, channels)`.
        image: Whether it is one.
        actions: How many actions there are.
        hidden_sizes: Widths of the fully connected layers.
        activation: What follows each of them.
        layer_norm: Whether each is normalised first (Ba et al. 2016, https://arxiv.org/abs/1607.06450), without
            weights of its own.
        dueling: Whether values are a state's value plus the advantages of the actions over their mean.

    Raises:
        ValueError: The image is too small for the convolutions.
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
        self.image = image
        layers: list[nn.Module] = []
        if image:
            channels, height, width = as_channels(torch.empty(1, *observation_shape)).shape[1:]
            if min(height, width) < 36:
                raise ValueError(f"images of {height}x{width} pixels are too small: the convolutions take 36 or more")
            layers += [nn.Conv2d(channels, 32, 8, stride=4), nn.ReLU()]
            layers += [nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 3), nn.ReLU()]
        layers.append(nn.Flatten())
        with torch.no_grad():
            width = nn.Sequential(*layers)(self._prepare(torch.zeros(1, *observation_shape))).shape[1]
        for size in hidden_sizes:
            layers.append(nn.Linear(width, size))
            if layer_norm:
                layers.append(nn.LayerNorm(size, elementwise_affine=False))
            layers.append(ACTIVATIONS[activation]())
            width = size
        self.body = nn.Sequential(*layers)
        self.advantage = nn.Linear(width, actions)
        self.value = nn.Linear(width, 1) if dueling else None

    def forward(self, observation: Tensor) -> Tensor:
        """Values `(batch, actions)` of observations `(batch, ...)`."""
        dtype = self.advantage.weight.dtype
        features = self.body(self._prepare(observation.to(dtype)))  # (batch, width)
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(dim=1, keepdim=True)

    def _prepare(self, observation: Tensor) -> Tensor:
        return as_channels(observation) / 255 if self.image else observation


def as_channels(images: Tensor) -> Tensor:
    """Images as convolutions take them, `(batch, channels, height, width)`; frames become channels."""
    if images.dim() == 3:
        return images.unsqueeze(1)
    if images.dim() == 5:  # (batch, frames, height, width, channels)
        return images.permute(0, 1, 4, 2, 3).flatten(1, 2)
    return images.movedim(-1, 1) if images.shape[-1] < images.shape[1] else images
