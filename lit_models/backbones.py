"""Networks from faces to embeddings: a compact one, written here, and those of torchvision.

Images `(batch, channels, height, width)` of mean 0 and standard deviation 1 -> `(batch, embedding_dim)`.

The compact one is a small residual network (He, Zhang, Ren and Sun, 2016, https://arxiv.org/abs/1512.03385), since it
is meant for some hundred pictures, not millions. Where that ends in a linear layer, here a 1x1 convolution and batch
normalisation do: a linear layer keeps what tells the people trained on apart, which for a few people is too little to
tell strangers apart by.

Legend for 48x48: height and width are 48 -> 24 -> 12 -> 6 -> 4.
"""

import difflib

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

GRID = 4  # height and width of the last feature map, from which an embedding is read off


class Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to what comes in.

    Args:
        in_channels: Channels of what comes in.
        out_channels: Channels of what goes out.
        stride: 2 halves height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True),
                nn.Conv2d(in_channels, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, out_channels, height / stride, width / stride)`."""
        return F.relu(self.layers(x) + self.shortcut(x))


def compact(in_channels: int, embedding_dim: int, dropout: float) -> nn.Sequential:
    """The network written here, for images of any size."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 7, stride=2, padding=3, bias=False),  # (batch, 32, 24, 24)
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32, 32),
        Residual(32, 64, stride=2),  # (batch, 64, 12, 12)
        Residual(64, 128, stride=2),  # (batch, 128, 6, 6)
        nn.AdaptiveAvgPool2d(GRID),  # (batch, 128, 4, 4)
        # No linear layer over all of it: trained on a few people, it would keep only what tells those apart.
        nn.Conv2d(128, embedding_dim // GRID**2, 1, bias=False),
        nn.Flatten(),  # (batch, embedding_dim)
        nn.BatchNorm1d(embedding_dim, affine=False),
        nn.Dropout(dropout),
    )


def torchvision_network(name: str, weights: str | None, embedding_dim: int, dropout: float) -> nn.Module:
    """A classification network of torchvision, whose last linear layer gives embeddings."""
    names = models.list_models(module=models)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"torchvision has no network '{name}'{f'; did you mean {close[0]!r}?' if close else ''}")
    try:
        network = models.get_model(name, weights=weights)
    except OSError as error:  # of urllib, which says no more than what the system says
        raise ConnectionError(
            f"could not download the weights of {name}: {error}; with no network here, set model.weights to null, or "
            f"bring the file from another machine into {torch.hub.get_dir()}/checkpoints"
        ) from error
    path, last = [item for item in network.named_modules() if any(True for _ in item[1].parameters(recurse=False))][-1]
    if not isinstance(last, nn.Linear):
        raise ValueError(f"the last layer of {name} is no linear one: choose another backbone, such as resnet18")
    parent, _, attribute = path.rpartition(".")
    setattr(
        network.get_submodule(parent),
        attribute,
        nn.Sequential(nn.Dropout(dropout), nn.Linear(last.in_features, embedding_dim)),
    )
    return network
