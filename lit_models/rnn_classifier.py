"""A recurrent network that reads an image row by row, or pixel by pixel, and says what it shows.

Images `(batch, 1, 28, 28)` -> logits `(batch, 10)`.

Le, Jaitly and Hinton, "A simple way to initialize recurrent networks of rectified linear units", 2015, read MNIST by
the pixel, in order and permuted; Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and
recurrent networks for sequence modeling", 2018, give what each kind of network reaches.

Legend: time - rows, or pixels, of an image; features - what is read of it at a time.
"""

from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from lit_models.classifier import Classifier
from lit_models.rnn import Cell, recurrent


class RNNClassifier(Classifier):
    """Recurrent layers over an image, and a linear layer on what they have come to at its end.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        image_size: Height and width of the images.
        by: What is read at a time: a row from top to bottom, a pixel row by row, or a pixel in an order drawn once.
        cell: The kind of recurrent layer.
        hidden_dim: Width of the hidden state.
        num_layers: Number of recurrent layers.
        dropout: Probability of dropping a feature after each recurrent layer.
        permutation_seed: Seed of the order of a permuted image's pixels.
        mean: Mean of the images in 0..1, a number or one a channel. MNIST's is 0.1307.
        std: Their standard deviation; MNIST's is 0.3081.
        class_names: The classes by label, for pictures and predictions. The data module's, if not given.
        optimizer: Called with the parameters, returns the optimizer.
        lr_scheduler: Called with the optimizer, returns the schedule: stepped per batch if it wants `total_steps`
            that are not given (such as OneCycleLR), else per epoch.
    """

    def __init__(
        self,
        in_channels: int = 1,
        num_classes: int = 10,
        image_size: int = 28,
        by: Literal["row", "pixel", "permuted_pixel"] = "row",
        cell: Cell = "gru",
        hidden_dim: int = 128,
        num_layers: int = 1,
        dropout: float = 0.0,
        permutation_seed: int = 0,
        mean: float | list[float] = 0.0,
        std: float | list[float] = 1.0,
        class_names: list[str] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(in_channels, num_classes, mean, std, class_names, optimizer, lr_scheduler)
        if by not in ("row", "pixel", "permuted_pixel"):
            raise ValueError(f"by is {by!r}: it must be row, pixel or permuted_pixel")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.sizes = range(image_size, image_size + 1)
        self.example_input_array = torch.zeros(1, in_channels, image_size, image_size, dtype=torch.uint8)
        if by == "permuted_pixel":  # persistent: another release of torch may draw another order
            draw = torch.Generator().manual_seed(permutation_seed)
            self.register_buffer("order", torch.randperm(image_size**2, generator=draw))
        self.core = recurrent(cell, in_channels * (image_size if by == "row" else 1), hidden_dim, num_layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(batch, num_classes)` of images `(batch, in_channels, image_size, image_size)`.

        They are uint8 in 0..255 or float in 0..1.
        """
        pixels = self.normalize(images)
        by_row = self.hparams.by == "row"
        # (batch, height, in_channels * width), or (batch, height * width, in_channels)
        sequence = pixels.transpose(1, 2).flatten(2) if by_row else pixels.flatten(2).transpose(1, 2)
        if self.hparams.by == "permuted_pixel":
            sequence = sequence[:, self.order]
        features, _ = self.core(sequence)  # (batch, time, hidden_dim)
        return self.head(self.dropout(features[:, -1]))
