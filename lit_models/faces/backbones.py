"""Backbones from faces to features: a small one of Gabor filters, and those of torchvision.

Images `(batch, channels, height, width)` of mean 0 and standard deviation 1 -> `(batch, features)`, each feature of
mean 0 and standard deviation 1 over the training images.

The small one is made for some hundred images, not millions. It begins with the energies of fixed Gabor filters, as in
models of the visual cortex (Adelson and Bergen, "Spatiotemporal energy models for the perception of motion", 1985) and
in face recognition before deep learning (Liu and Wechsler, "Gabor feature based classification using the enhanced
Fisher linear discriminant model for face recognition", 2002). A residual block (He, Zhang, Ren and Sun, "Identity
mappings in deep residual networks", 2016, https://arxiv.org/abs/1603.05027), zero at initialization, refines them: few
people to train on suffice to improve features that separate strangers, and hardly spoil them.

Legend for 48x48: height and width are 48 -> 24 -> 5.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from lit_models.common.messages import suggest
from lit_models.layers import AdaptiveAvgPool2d, channels_last

ORIENTATIONS = 6
WAVELENGTHS = [2 ** (step / 2) / 16 for step in range(5)]  # in image sides: 3 to 12 pixels of 48
MIN_WAVELENGTH = 2.5  # pixels; at two, the response of some filters vanishes where the crests lie between pixels
BANDWIDTH = 0.65  # standard deviation of a filter's Gaussian, in wavelengths
GRID_SIZE = 5  # height and width of the last feature map


class GaborEnergy(nn.Module):
    """Fixed Gabor filters: the image's channels, and the square root of the energy per wavelength and orientation.

    Energy is the amplitude of a wave, whatever its phase, so it changes little where a face moves by a pixel.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.stride = max(image_size // 24, 1)
        for number, wavelength in enumerate(WAVELENGTHS):
            filters = gabor_filters(max(wavelength * image_size, MIN_WAVELENGTH))
            self.register_buffer(f"filters_{number}", filters, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """`(batch, channels + 30, height / stride, width / stride)`."""
        gray = images.mean(dim=1, keepdim=True)
        maps = [F.avg_pool2d(images, self.stride, ceil_mode=True)]
        for filters in self.buffers():
            margin = filters.shape[-1] // 2
            padded = F.pad(gray, (margin,) * 4, mode="replicate")
            even, odd = F.conv2d(padded, filters, stride=self.stride).float().chunk(2, dim=1)
            energies = (even.square() + odd.square() + 1e-6).sqrt()
            maps.append(energies.sqrt().to(images.dtype))
        return torch.cat(maps, dim=1)


def gabor_filters(wavelength: float) -> Tensor:
    """Even, then odd filters `(12, 1, size, size)` of a wavelength in pixels; a wave of amplitude 1 has energy 1."""
    deviation = BANDWIDTH * wavelength
    reach = math.ceil(2.2 * deviation)
    y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1, dtype=torch.float64)] * 2, indexing="ij")
    angle = torch.arange(ORIENTATIONS, dtype=torch.float64)[:, None, None] * math.pi / ORIENTATIONS
    phase = (x * angle.cos() + y * angle.sin()) * 2 * math.pi / wavelength  # (ORIENTATIONS, size, size)
    window = torch.exp(-(x.square() + y.square()) / (2 * deviation**2))
    window = 2 * window / window.sum()
    even = window * phase.cos()
    even = even - window * even.sum(dim=(1, 2), keepdim=True) / 2  # a flat image has no energy
    return torch.cat([even, window * phase.sin()])[:, None].to(torch.get_default_dtype())


class Residual(nn.Module):
    """A residual block of two 3x3 convolutions with `hidden` channels between them, the identity at initialization."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 3, padding=1, bias=False),
        )
        nn.init.zeros_(self.layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, channels, height, width)` -> the same shape."""
        return x + self.layers(channels_last(x))


def build_backbone(
    name: str | None, weights: str | None, in_channels: int, image_size: int, embedding_dim: int
) -> tuple[nn.Module, int]:
    """A torchvision network by name, with `embedding_dim` features, or the Gabor backbone; its number of features."""
    if name is not None:
        return torchvision_backbone(name, weights, embedding_dim), embedding_dim
    if weights:
        raise ValueError(f"weights is {weights}, but they are for a network of torchvision: name it as backbone")
    network, features = gabor_backbone(in_channels, image_size)
    if embedding_dim > features:
        raise ValueError(f"embedding_dim is {embedding_dim}: the network has {features} features, so at most that")
    return network, features


def gabor_backbone(in_channels: int, image_size: int) -> tuple[nn.Sequential, int]:
    """The Gabor backbone, and its number of features: 775 for grayscale images, 825 for RGB."""
    channels = in_channels + ORIENTATIONS * len(WAVELENGTHS)  # 31
    features = channels * GRID_SIZE**2
    network = nn.Sequential(
        GaborEnergy(image_size),  # (batch, 31, 24, 24)
        Residual(channels, hidden=64),
        AdaptiveAvgPool2d(GRID_SIZE),  # (batch, 31, 5, 5)
        nn.Flatten(),  # (batch, 775)
        nn.BatchNorm1d(features, affine=False),
    )
    return network, features


def torchvision_backbone(name: str, weights: str | None, features: int) -> nn.Module:
    """A classification network of torchvision, with a new last layer that gives features."""
    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f"torchvision has no network '{name}'{suggest(name, names)}")
    try:
        network = models.get_model(name, weights=weights)
    except OSError as error:  # of urllib, whose message is no more than the system's
        raise ConnectionError(
            f"could not download the weights of {name}: {error}; with no network here, set model.weights to null, or "
            f"bring the file from another machine into {torch.hub.get_dir()}/checkpoints"
        ) from error
    path, last = [item for item in network.named_modules() if any(True for _ in item[1].parameters(recurse=False))][-1]
    if not isinstance(last, nn.Linear):
        raise ValueError(f"the last layer of {name} is no linear one: choose another backbone, such as resnet18")
    parent, _, attribute = path.rpartition(".")
    head = nn.Sequential(nn.Linear(last.in_features, features, bias=False), nn.BatchNorm1d(features, affine=False))
    setattr(network.get_submodule(parent), attribute, head)
    return network
