"""Networks from faces to features: a compact one, written here, and those of torchvision.

Images `(batch, channels, height, width)` of mean 0 and standard deviation 1 -> `(batch, features)`, each feature of
mean 0 and standard deviation 1 over the training images.

The compact one is meant for some hundred pictures, not millions, so it does not learn to see: it begins with the
energies of Gabor filters, as cells in the visual cortex are thought to (Adelson and Bergen, "Spatiotemporal energy
models for the perception of motion", 1985), long used for faces (Liu and Wechsler, "Gabor feature based classification
using the enhanced Fisher linear discriminant model for face recognition", 2002). A residual block (He, Zhang, Ren and
Sun, "Identity mappings in deep residual networks", 2016, https://arxiv.org/abs/1603.05027) learns what to add to them,
from nothing on: the few people that are trained on can refine what tells strangers apart, and hardly spoil it.

Legend for 48x48: height and width are 48 -> 24 -> 5.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from lit_models.common.messages import suggest
from lit_models.layers import AdaptiveAvgPool2d

DIRECTIONS = 6
WAVELENGTHS = [2 ** (step / 2) / 16 for step in range(5)]  # in image sides: 3 to 12 pixels of 48
SHORTEST = 2.5  # pixels; of a wave of two, some filters see nothing where its crests lie between them
BANDWIDTH = 0.65  # standard deviation of a filter's Gaussian, in wavelengths
HIDDEN = 64
GRID = 5  # height and width of the last feature map


class GaborEnergy(nn.Module):
    """How strongly an image is striped, at every place, for each wavelength and direction; nothing of it is learnt.

    The energy is the amplitude of a wave, wherever its crests are, so that it hardly changes where a face moves by a
    pixel. Beside the energies, of which the square root is taken, stand the image's own channels.

    Args:
        image_size: Height and width of the images, which the wavelengths follow.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.stride = max(image_size // 24, 1)
        for number, wavelength in enumerate(WAVELENGTHS):
            filters = gabor_filters(max(wavelength * image_size, SHORTEST))
            self.register_buffer(f"filters_{number}", filters, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """`(batch, channels + 30, height / stride, width / stride)`."""
        grey = images.mean(dim=1, keepdim=True)
        maps = [F.avg_pool2d(images, self.stride, ceil_mode=True)]
        for filters in self.buffers():
            margin = filters.shape[-1] // 2
            padded = F.pad(grey, (margin,) * 4, mode="replicate")
            even, odd = F.conv2d(padded, filters, stride=self.stride).float().chunk(2, dim=1)
            energies = (even.square() + odd.square() + 1e-6).sqrt()
            maps.append(energies.sqrt().to(images.dtype))
        return torch.cat(maps, dim=1)


def gabor_filters(wavelength: float) -> Tensor:
    """Filters `(2 * DIRECTIONS, 1, side, side)`, the even ones and then the odd ones, of a wavelength in pixels.

    A wave of that length and amplitude 1 has the energy 1.
    """
    deviation = BANDWIDTH * wavelength
    reach = math.ceil(2.2 * deviation)
    y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1, dtype=torch.float64)] * 2, indexing="ij")
    angle = torch.arange(DIRECTIONS, dtype=torch.float64)[:, None, None] * math.pi / DIRECTIONS
    phase = (x * angle.cos() + y * angle.sin()) * 2 * math.pi / wavelength  # (DIRECTIONS, side, side)
    window = torch.exp(-(x.square() + y.square()) / (2 * deviation**2))
    window = 2 * window / window.sum()
    even = window * phase.cos()
    even = even - window * even.sum(dim=(1, 2), keepdim=True) / 2  # a flat image has no energy
    return torch.cat([even, window * phase.sin()])[:, None].to(torch.get_default_dtype())


class Residual(nn.Module):
    """Two 3x3 convolutions, whose result, zero at first, is added to what comes in.

    Args:
        channels: Channels of what comes in and goes out.
        hidden: Channels between the convolutions.
    """

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
        """What comes in `(batch, channels, height, width)`, and what is added to it."""
        return x + self.layers(x)


def gabor_backbone(in_channels: int, image_size: int) -> tuple[nn.Sequential, int]:
    """The network written here, and how many features it gives: 775 of grey images, 825 of coloured ones."""
    channels = in_channels + DIRECTIONS * len(WAVELENGTHS)
    features = channels * GRID**2
    network = nn.Sequential(
        GaborEnergy(image_size),  # (batch, 31, 24, 24)
        Residual(channels, HIDDEN),
        AdaptiveAvgPool2d(GRID),  # (batch, 31, 5, 5)
        nn.Flatten(),  # (batch, 775)
        nn.BatchNorm1d(features, affine=False),
    )
    return network, features


def torchvision_backbone(name: str, weights: str | None, features: int) -> nn.Module:
    """A classification network of torchvision, whose last linear layer gives features."""
    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f"torchvision has no network '{name}'{suggest(name, names)}")
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
        nn.Sequential(nn.Linear(last.in_features, features, bias=False), nn.BatchNorm1d(features, affine=False)),
    )
    return network
