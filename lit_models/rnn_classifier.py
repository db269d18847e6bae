"""A recurrent network that classifies an image by reading it row by row, or pixel by pixel.

Images `(batch, 1, 28, 28)` -> logits `(batch, 10)`.

Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear units", 2015, read MNIST by
the pixel, in order and permuted; Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and
recurrent networks for sequence modeling", 2018, give what each kind of network reaches.

Legend: time - rows or pixels of an image; features - what is read at each time step.
"""

from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lit_models.classifier import Classifier
from lit_models.common.arguments import (
    AtLeastTwo,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    check_arguments,
)
from lit_models.layers import Cell, make_rnn
from lit_models.training.schedule import LRSchedulerCallable


class RNNClassifier(Classifier):
    """Recurrent layers over an image, and a linear layer on their last output.

    Args:
        in_channels: Number of image channels.
        num_classes: Number of classes.
        image_size: Height and width of the images.
        scan_order: What a time step reads: a row, a pixel in row-major order, or a pixel in one random order.
        cell: Kind of recurrent layer.
        hidden_dim: Hidden size.
        num_layers: Number of recurrent layers.
        dropout: Probability of dropping a feature after each recurrent layer.
        permutation_seed: Seed of the random pixel order.
        mean: Mean of the images in 0..1, a number or one per channel. MNIST's is 0.1307.
        std: Standard deviation of the images, likewise. MNIST's is 0.3081.
        class_names: Class names by label, for plots and predictions. The data module's, if not given.
        class_weights: Weight of each class in the training loss, or "balanced" for the inverse of its frequency.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.
    """

    def __init__(
        self,
        in_channels: PositiveInt = 1,
        num_classes: AtLeastTwo = 10,
        image_size: PositiveInt = 28,
        scan_order: Literal["row", "pixel", "permuted_pixel"] = "row",
        cell: Cell = "gru",
        hidden_dim: PositiveInt = 128,
        num_layers: PositiveInt = 1,
        dropout: UnitInterval = 0.0,
        permutation_seed: NonNegativeInt = 0,
        mean: float | list[float] = 0.0,
        std: PositiveFloat | list[PositiveFloat] = 1.0,
        class_names: list[str] | None = None,
        class_weights: Literal["balanced"] | list[PositiveFloat] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, mean, std, class_names, optimizer, lr_scheduler, class_weights)
        check_arguments(RNNClassifier, locals())
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.sizes = range(image_size, image_size + 1)
        self.example_input_array = torch.zeros(1, in_channels, image_size, image_size, dtype=torch.uint8)
        if scan_order == "permuted_pixel":  # persistent: another release of torch may draw another order
            draw = torch.Generator().manual_seed(permutation_seed)
            self.register_buffer("order", torch.randperm(image_size**2, generator=draw))
        input_size = in_channels * (image_size if scan_order == "row" else 1)
        self.rnn = make_rnn(cell, input_size, hidden_dim, num_layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, num_classes)` of images `(batch, in_channels, height, width)`, uint8 or float in 0..1."""
        pixels = self.normalize(images)
        by_row = self.hparams.scan_order == "row"
        # (batch, height, in_channels * width), or (batch, height * width, in_channels)
        sequence = pixels.transpose(1, 2).flatten(2) if by_row else pixels.flatten(2).transpose(1, 2)
        if self.hparams.scan_order == "permuted_pixel":
            sequence = sequence[:, self.order]
        features, _ = self.rnn(sequence)  # (batch, time, hidden_dim)
        return self.head(self.dropout(features[:, -1]))
