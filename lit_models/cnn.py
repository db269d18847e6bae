"""The convolutional network of the article: AlexNet's five convolutions for small images, 2,300,234 parameters.

Images `(batch, 3, height, width)`, 28 pixels or more a side -> logits `(batch, 10)`.

After Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, whose channels the middle
convolutions have. The article does not say which images its linear layer, of 256 * 4 * 4 features, is made for: with
its strides it is 43 to 50 pixels a side. Here an adaptive average pooling brings any other size to 4x4, and leaves
these as they are.

Legend for 48x48: height and width are 48 -> 21 -> 10 -> 4.
"""

import sys

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_models.classifier import Classifier
from lit_models.layers import AdaptiveAvgPool2d

LEAST = 28  # pixels: less would leave less than 2x2 to pool from


def convolution(in_channels: int, out_channels: int, kernel: int, batch_norm: bool, **options: int) -> list[nn.Module]:
    """A convolution and its ReLU; with batch normalisation between them, which brings its own bias."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, bias=not batch_norm, **options)
    return [convolution, *([nn.BatchNorm2d(out_channels)] if batch_norm else []), nn.ReLU()]


class CNN(Classifier):
    """Five convolutions and a linear layer.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Height and width that images are scaled to first, 28 or more; as they are, if not given.
        batch_norm: Batch normalisation after every convolution.
        dropout: Probability of dropping a feature before the linear layer.
        mean: Mean of the images in 0..1, a number or one a channel. 0 with std 1 is the article's.
        std: Their standard deviation.
        class_names: The classes by label, for pictures and predictions. The data module's, if not given.
        optimizer: Called with the parameters, returns the optimizer.
        lr_scheduler: Called with the optimizer, returns the schedule: stepped per batch if it wants `total_steps`
            that are not given (such as OneCycleLR), else per epoch.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int | None = None,
        batch_norm: bool = False,
        dropout: float = 0.0,
        mean: float | list[float] = 0.0,
        std: float | list[float] = 1.0,
        class_names: list[str] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=3e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, mean, std, class_names, optimizer, lr_scheduler)
        if image_size is not None and image_size < LEAST:
            raise ValueError(f"image_size is {image_size}: it must be at least {LEAST}")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.sizes = range(1 if image_size else LEAST, sys.maxsize)
        side = image_size or 48
        self.example_input_array = torch.zeros(1, in_channels, side, side, dtype=torch.uint8)
        self.features = nn.Sequential(
            *convolution(in_channels, 64, 7, batch_norm, stride=2),  # (batch, 64, 21, 21)
            nn.MaxPool2d(3, stride=2),  # (batch, 64, 10, 10)
            *convolution(64, 192, 3, batch_norm, padding=1),
            nn.MaxPool2d(3, stride=2),  # (batch, 192, 4, 4)
            *convolution(192, 384, 3, batch_norm, padding=1),
            *convolution(384, 256, 3, batch_norm, padding=1),
            *convolution(256, 256, 3, batch_norm, padding=1),
            AdaptiveAvgPool2d(4),  # (batch, 256, 4, 4)
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),  # (batch, 256 * 4 * 4)
            nn.Dropout(dropout),
            nn.Linear(256 * 4 * 4, num_classes),
        )
        # A quarter faster on CPU, and more with 16 bits or on a GPU.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, num_classes)` of images `(batch, in_channels, height, width)`.

        They are uint8 in 0..255 or float in 0..1, and 28 pixels or more a side unless `image_size` scales them.
        """
        pixels = self.normalize(images)
        if side := self.hparams.image_size:
            pixels = F.interpolate(pixels, size=(side, side), mode="bilinear")
        return self.classifier(self.features(pixels))
