"""The convolutional network of the MNIST tutorials: 21,840 parameters.

Images `(batch, 1, 28, 28)` -> logits `(batch, 10)`.

A small descendant of LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition",
1998, as the article that this project started from draws it. The article drops out whole channels (`Dropout2d`) of
the flat features too, where there are none: each feature is dropped by itself here (`Dropout`).

Legend: c1, c2 - channels of the two convolutions; 28 -> 24 -> 12 -> 8 -> 4 - height and width.
"""

from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_models.classifier import Classifier
from lit_models.common.arguments import AtLeastTwo, PositiveFloat, PositiveInt, UnitInterval, check_arguments
from lit_models.layers import channels_last
from lit_models.training.schedule import LRSchedulerCallable


class Net(Classifier):
    """Two convolutions and two linear layers for images of 28 to 31 pixels a side.

    Args:
        in_channels: Number of image channels.
        num_classes: Number of classes.
        channels: Channels after the first and the second convolution.
        hidden_features: Width of the hidden linear layer.
        conv_dropout: Probability of dropping a channel after the second convolution.
        dropout: Probability of dropping a feature of the hidden linear layer.
        mean: Mean of the images in 0..1, a number or one per channel. MNIST's is 0.1307; 0 with std 1 is the article's.
        std: Standard deviation of the images, likewise. MNIST's is 0.3081.
        class_names: Class names by label, for plots and predictions. The data module's, if not given.
        class_weights: Weight of each class in the training loss, or "balanced" for the inverse of its frequency.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.
    """

    sizes = range(28, 32)  # what leaves 4x4 for the linear layer

    def __init__(
        self,
        in_channels: PositiveInt = 1,
        num_classes: AtLeastTwo = 10,
        channels: tuple[PositiveInt, PositiveInt] = (10, 20),
        hidden_features: PositiveInt = 50,
        conv_dropout: UnitInterval = 0.5,
        dropout: UnitInterval = 0.5,
        mean: float | list[float] = 0.0,
        std: PositiveFloat | list[PositiveFloat] = 1.0,
        class_names: list[str] | None = None,
        class_weights: Literal["balanced"] | list[PositiveFloat] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, mean, std, class_names, optimizer, lr_scheduler, class_weights)
        check_arguments(Net, locals())
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.example_input_array = torch.zeros(1, in_channels, 28, 28, dtype=torch.uint8)
        c1, c2 = channels
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, c1, kernel_size=5),  # (batch, c1, 24, 24)
            nn.MaxPool2d(2),  # (batch, c1, 12, 12)
            nn.ReLU(),
            nn.Conv2d(c1, c2, kernel_size=5),  # (batch, c2, 8, 8)
            nn.Dropout2d(conv_dropout),
            nn.MaxPool2d(2),  # (batch, c2, 4, 4)
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),  # (batch, c2 * 16)
            nn.Linear(c2 * 16, hidden_features),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_features, num_classes),
        )
        if in_channels == 1:  # the layout that its gradient has, which DDP compares
            self.features[0].to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, num_classes)` of images `(batch, in_channels, 28, 28)`, uint8 in 0..255 or float in 0..1."""
        return self.classifier(self.features(channels_last(self.normalize(images))))
