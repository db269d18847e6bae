"""The base of all image classifiers: input normalization, cross-entropy, accuracy.

Images `(batch, channels, height, width)`, uint8 in 0..255 or float in 0..1 -> logits `(batch, num_classes)`.
"""

import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from typing_extensions import override

from lit_models.common.arguments import AtLeastTwo, PositiveFloat, PositiveInt, check_arguments, plain_value
from lit_models.common.messages import unique_names
from lit_models.layers import Normalize
from lit_models.module import LitModule
from lit_models.training.data_checks import (
    balanced_weights,
    check_images,
    images_and_labels,
    images_and_names,
    match_classes,
    warn_of_range,
)
from lit_models.training.means import EpochMeans
from lit_models.training.plots import ClassificationPlots
from lit_models.training.predictions import class_rows
from lit_models.training.schedule import LRSchedulerCallable

Batch = tuple[Tensor, Tensor]
MOST_NAMED = 50  # classes whose accuracies are logged by themselves


class Classifier(LitModule):
    """The base of the classifiers: a subclass adds layers, a `forward` from images to logits, and its `sizes`.

    Args:
        in_channels: Number of image channels.
        num_classes: Number of classes.
        mean: Mean of the images in 0..1, a number or one per channel.
        std: Standard deviation of the images, likewise. Mean 0 and std 1 leave images in 0..1.
        class_names: Class names by label, for plots and predictions. The data module's, if not given; where that has
            names too, they must be the same.
        class_weights: Weight of each class in the training loss, or "balanced" for the inverse of its frequency in the
            data module's training labels. All count alike, if not given; and in the losses of validation and test.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule, see `lit_models.training.schedule`.

    Raises:
        ValueError: An argument is out of range, or `class_names`, `class_weights`, `mean` or `std` have another length;
            images, labels or classes of the data don't fit the model.
    """

    task = "classification"
    output_name = "logits"
    shown_metrics = ("loss", "accuracy")
    from_data = frozenset({"class_names"})
    sizes: range = range(1, sys.maxsize)  # heights and widths that the network takes, in pixels

    def __init__(
        self,
        in_channels: PositiveInt,
        num_classes: AtLeastTwo,
        mean: float | Sequence[float],
        std: PositiveFloat | Sequence[PositiveFloat],
        class_names: list[str] | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        class_weights: Literal["balanced"] | Sequence[PositiveFloat] | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_arguments(Classifier, locals())
        for name, values in (("class_names", class_names), ("class_weights", class_weights)):
            if values is not None and not isinstance(values, str) and len(values) != num_classes:
                raise ValueError(f"{len(values)} {name} are given, but num_classes is {num_classes}")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        self.warned_of_range = False  # that float images were not in 0..1
        self.normalization = Normalize(mean, std, in_channels, images=True)
        self.balanced = isinstance(class_weights, str)
        known = class_weights is not None and not self.balanced
        self.class_weights = torch.tensor(plain_value("class_weights", class_weights)).float() if known else None
        evaluated = ("loss", "accuracy", "right", "seen")  # the latter are by class
        sizes = {"right": num_classes, "seen": num_classes}
        self.means = EpochMeans(sizes, train=("loss", "accuracy"), val=evaluated, test=evaluated)

    def normalize(self, images: Tensor) -> Tensor:
        """Images, uint8 in 0..255 or float in 0..1, minus mean, over standard deviation, in the model's dtype."""
        if not torch.jit.is_tracing():  # which has no numbers to compare, and warns
            check_images(self, images.shape)
        return self.normalization(images).to(self.normalization.dtype)

    @override
    def plots(self) -> list[Callback]:
        return [ClassificationPlots()]

    def setup(self, stage: str) -> None:
        """Checks the data module's classes against the model's; takes over their names, and the images' shape."""
        super().setup(stage)
        data = self.trainer.datamodule
        match_classes(self, data)
        shape = getattr(data, "shape", None)
        if stage == "fit" and isinstance(shape, Sequence) and len(shape) == 3:
            self.example_input_array = torch.zeros(1, *shape, dtype=torch.uint8)
        if stage == "fit" and self.balanced:
            self.class_weights = balanced_weights(self, data)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch `(images, labels)`."""
        loss, _ = self._step("train", batch, batch_idx)
        self.log_loss(loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits of a batch `(images, labels)`."""
        return self._step("val", batch, batch_idx)[1]

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits of a batch `(images, labels)`."""
        return self._step("test", batch, batch_idx)[1]

    def predict_step(self, batch: Tensor | tuple[Tensor, Any], batch_idx: int) -> list[dict[str, Any]]:
        """One row per image: `file`, or `index` if a writer wants it, `label`, and the probability of each class.

        Instead of its file, an image may have a dictionary of `file` and more columns, which end the row.
        """
        images, files = images_and_names(self, batch)
        if batch_idx == 0:  # it waits for the device
            warn_of_range(self, images)
        names = self.class_names or [str(label) for label in range(self.num_classes)]
        unnamed = files is None or isinstance(files, Tensor)  # labels, where the batch has no file names
        key, values = ("index", self.trainer.predict_loop.current_batch_indices) if unnamed else ("file", files)
        return class_rows(key, values, names, self(images).float().softmax(dim=1))

    @override
    def epoch_metrics(self, stage: str) -> dict[str, Any]:
        """Loss and accuracy; of evaluations also the mean accuracy over the classes, and in a test that of each."""
        metrics = super().epoch_metrics(stage)
        if "seen" not in metrics:
            return metrics
        right, seen = metrics.pop("right"), metrics.pop("seen")
        accuracies = (right / seen)[seen > 0]
        metrics["balanced_accuracy"] = accuracies.mean()
        if stage == "test" and self.num_classes <= MOST_NAMED:
            names = self.class_names or [str(label) for label in range(self.num_classes)]
            names = [name.encode("utf-8", "replace").decode() for name in unique_names(names)]  # for TensorBoard
            present = [name for name, count in zip(names, seen.tolist(), strict=True) if count]
            metrics |= {f"accuracy/{name}": value for name, value in zip(present, accuracies, strict=True)}
        return metrics

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["input_shape"] = list(self.example_input_array.shape[1:])

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "input_shape" in checkpoint:  # those of the data that it was trained on
            self.example_input_array = self.example_input_array.new_zeros(1, *checkpoint["input_shape"])

    def _step(self, stage: str, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = images_and_labels(self, batch)
        if batch_idx == 0:  # it waits for the device
            warn_of_range(self, images)
        logits = self(images)  # (batch, num_classes)
        weights = self.class_weights if stage == "train" else None
        try:
            if weights is None:
                loss = F.cross_entropy(logits.float(), labels)
            else:  # PyTorch's mean would divide by the weights of a batch, and so lose them where it is of one class
                weights = weights.to(logits.device)
                loss = F.cross_entropy(logits.float(), labels, weights, reduction="sum") / len(labels)
        except IndexError as error:  # how the CPU reports a label out of range
            raise ValueError(f"{error} The model has num_classes={self.num_classes}: labels start at 0") from error
        right = logits.argmax(dim=1) == labels
        totals = {"loss": loss.detach() * len(labels), "accuracy": right.sum()}
        if stage != "train":
            of_class = labels[:, None] == torch.arange(self.num_classes, device=labels.device)  # (batch, num_classes)
            totals |= {"right": (of_class & right[:, None]).sum(0), "seen": of_class.sum(0)}
        self.means.update(stage, len(labels), **totals)
        return loss, logits
