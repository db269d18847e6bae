"""The convolutional network of the article: AlexNet's five convolutions for small images, 2,300,234 parameters.

Images `(batch, 3, height, width)`, 28 pixels or more a side -> logits `(batch, 10)`.

After Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, whose channels the middle
convolutions have. The article does not say which images its linear layer, of 256 * 4 * 4 features, is made for: with
its strides it is 43 to 50 pixels a side. Here an adaptive average pooling brings any other size to 4x4, and leaves
these as they are.

Legend for 48x48: height and width are 48 -> 21 -> 10 -> 4.
"""

import sys
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_models.classifier import Classifier
from lit_models.common.arguments import AtLeastTwo, PositiveFloat, PositiveInt, Range, UnitInterval, check_arguments
from lit_models.layers import AdaptiveAvgPool2d, channels_last
from lit_models.training.schedule import LRSchedulerCallable

MIN_SIZE = 28  # pixels: less would leave less than 2x2 to pool from


def convolution(in_channels: int, out_channels: int, kernel: int, batch_norm: bool, **options: int) -> list[nn.Module]:
    """A convolution and its ReLU; with batch normalization between them, which brings its own bias."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel, bias=not batch_norm, **options)
    return [convolution, *([nn.BatchNorm2d(out_channels)] if batch_norm else []), nn.ReLU()]


class CNN(Classifier):
    """Five convolutions and a linear layer.

    Args:
        in_channels: Number of image channels.
        num_classes: Number of classes.
        image_size: Height and width that images are scaled to first; not scaled, if not given.
        batch_norm: Batch normalization after every convolution.
        dropout: Probability of dropping a feature before the linear layer.
        mean: Mean of the images in 0..1, a number or one per channel. 0 with std 1 is the article's.
        std: Standard deviation of the images, likewise.
        class_names: Class names by label, for plots and predictions. The data module's, if not given.
        class_weights: Weight of each class in the training loss, or "balanced" for the inverse of its frequency.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.
    """

    def __init__(
        self,
        in_channels: PositiveInt = 3,
        num_classes: AtLeastTwo = 10,
        image_size: Annotated[int, Range(MIN_SIZE)] | None = None,
        batch_norm: bool = False,
        dropout: UnitInterval = 0.0,
        mean: float | list[float] = 0.0,
        std: PositiveFloat | list[PositiveFloat] = 1.0,
        class_names: list[str] | None = None,
        class_weights: Literal["balanced"] | list[PositiveFloat] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=3e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, mean, std, class_names, optimizer, lr_scheduler, class_weights)
        check_arguments(CNN, locals())
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.sizes = range(1 if image_size else MIN_SIZE, sys.maxsize)
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
        if in_channels == 1:  # the layout that its gradient has, which DDP compares
            self.features[0].to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, num_classes)` of images `(batch, in_channels, height, width)`, uint8 or float in 0..1."""
        pixels = self.normalize(images)
        if side := self.hparams.image_size:
            pixels = F.interpolate(pixels, size=(side, side), mode="bilinear")
        return self.classifier(self.features(channels_last(pixels)))
