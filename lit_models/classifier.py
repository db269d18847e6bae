"""What every image or sequence classifier shares: input scaling, cross-entropy, accuracy, optimizer and schedule.

Images `(batch, channels, height, width)`, uint8 in 0..255 or float in 0..1 -> logits `(batch, num_classes)`.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lit_models.training.checkpoint import record_classes
from lit_models.training.machine import keep_sums_precise
from lit_models.training.resume import kept_progress, record_progress, resume_progress
from lit_models.training.schedule import optimizer_and_schedule, refuse_longer_training

Batch = tuple[Tensor, Tensor]
SUMS = ("train_images", "train_loss", "train_right")  # over the epoch in progress


class Classifier(LightningModule):
    """The base of the classifiers: a subclass adds layers, and a `forward` from images to logits.

    Args:
        in_channels: Channels of the images.
        num_classes: Number of classes.
        mean: Mean of the images in 0..1, a number or one a channel, subtracted by `normalize`.
        std: Their standard deviation, divided by. Mean 0 and std 1 leave images in 0..1.
        class_names: The classes by label, for pictures and predictions. The data module's, if not given; where that
            has names too, they must be the same.
        optimizer: Called with the parameters, returns the optimizer.
        lr_scheduler: Called with the optimizer, returns the schedule: see `lit_models.training.schedule`.

    Attributes:
        sizes: The heights and widths that the network takes, in pixels.

    Raises:
        ValueError: The number of `class_names` isn't `num_classes`, or that of `mean` or `std` neither 1 nor
            `in_channels`; the images' size or channels, or the data's classes, don't fit the model; a label is outside
            of the classes; a schedule needs the number of steps, and training has no end.
    """

    sizes = range(1, sys.maxsize)

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        mean: float | Sequence[float],
        std: float | Sequence[float],
        class_names: list[str] | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__()
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"{len(class_names)} class_names are given, but num_classes is {num_classes}")
        for name, value, least in (("in_channels", in_channels, 1), ("num_classes", num_classes, 2)):
            if value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")
        if min(std if isinstance(std, Sequence) else [std]) <= 0:
            raise ValueError(f"std is {std}: it must be above 0")
        for name, values in (("mean", mean), ("std", std)):
            if isinstance(values, Sequence) and len(values) not in (1, in_channels):
                raise ValueError(f"{name} has {len(values)} numbers, but in_channels is {in_channels}")
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.class_names = class_names
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.resumed: list[dict[str, Any]] | None = None
        # Not persistent: they are rebuilt from the hyperparameters, which every checkpoint holds.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        # The checks that are off here would make the host wait for the device.
        self.metrics = torch.nn.ModuleDict()
        for stage in ("val", "test"):
            self.metrics[f"{stage}_loss"] = MeanMetric(nan_strategy="disable")
            self.metrics[f"{stage}_accuracy"] = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        for name in ("train_loss", "train_accuracy"):
            self.metrics[name] = MeanMetric(nan_strategy="disable")

    def normalize(self, images: Tensor) -> Tensor:
        """Images, uint8 in 0..255 or float in 0..1, less mean and over standard deviation, in the model's dtype.

        Raises:
            ValueError: The network doesn't take images of this size, or with these channels.
        """
        if not torch.jit.is_tracing():  # which has no numbers to compare, and warns
            self._refuse_misfits(images.shape)
        pixels = images.to(self.mean.dtype, copy=True)  # a copy, so that the rest can be done in place
        if not images.is_floating_point():
            pixels /= 255
        return pixels.sub_(self.mean).div_(self.std)

    def setup(self, stage: str) -> None:
        """Checks the classes of the data module against the model's, and takes over their names."""
        data = self.trainer.datamodule
        if hasattr(data, "num_features"):
            raise ValueError(f"{type(data).__name__} has no classes, but a series to forecast: --model RNN does that")
        if hasattr(data, "people"):
            raise ValueError(
                f"{type(data).__name__} has people to compare, not classes: --model FaceEmbedder does that"
            )
        names = getattr(data, "class_names", None)
        names = None if names is None else list(names)
        classes = getattr(data, "num_classes", self.num_classes if names is None else len(names))
        if classes != self.num_classes:
            raise ValueError(
                f"{type(data).__name__} has {classes} classes, but num_classes of {type(self).__name__} is "
                f"{self.num_classes}: to train on them, set model.num_classes to {classes}"
            )
        if self.class_names is None:
            self.class_names = self.hparams.class_names = names
        elif names is not None and names != self.class_names:
            raise ValueError(
                f"the classes of {type(data).__name__} are {listed(names)}, but those of the model are "
                f"{listed(self.class_names)}: give the data that it was trained on, or set model.class_names to theirs"
            )

    def on_train_start(self) -> None:
        """Goes on where the checkpoint was written, if there is one."""
        refuse_longer_training(self.trainer)
        self._empty_sums()
        for name, value in resume_progress(self).items():
            if name in SUMS:
                setattr(self, name, value.to(self.device) if isinstance(value, Tensor) else value)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch `(images, labels)`."""
        if batch_idx == 0:  # on_train_epoch_start is left out where a run is resumed
            self._empty_sums()
        images, labels = batch
        logits = self(images)
        loss = self._loss(logits, labels)
        # What every step pays for: a metric object or self.log costs more than a small model's optimizer does, so
        # the sums are plain tensors, and self.log is called only where Lightning would write.
        self.train_images += len(labels)
        self.train_loss.add_(loss.detach(), alpha=len(labels))
        self.train_right.add_((logits.argmax(dim=1) == labels).sum())
        interval = self.trainer.log_every_n_steps
        if interval and (self.trainer.global_step + 1) % interval == 0:
            self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs loss and accuracy over the epoch's training images, each as it was when it was trained on."""
        for name, total in (("train_loss", self.train_loss), ("train_accuracy", self.train_right)):
            self.metrics[name].update((total / self.train_images).expand(self.train_images))
        self._log("train")

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits of a batch `(images, labels)`; loss and accuracy are logged as `val/loss`, `val/accuracy`."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits of a batch `(images, labels)`; loss and accuracy are logged as `test/loss`, `test/accuracy`."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> Tensor:
        """The probabilities `(batch, num_classes)` of a batch of images and whatever goes with them."""
        return self(batch[0]).float().softmax(dim=1)

    def configure_optimizers(self) -> dict[str, Any]:
        """The injected optimizer and schedule."""
        return optimizer_and_schedule(self, self.optimizer, self.lr_scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names the classes of the model and its data, and says how far the epoch in progress is."""
        record_classes(self, checkpoint)
        record_progress(self, checkpoint, {name: getattr(self, name) for name in SUMS if hasattr(self, name)})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps how far the epoch was, for when training starts."""
        self.resumed = kept_progress(self, checkpoint)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Classifier":
        """Moves and casts the model; metrics keep their digits."""
        super()._apply(fn, recurse)
        keep_sums_precise(self.metrics)
        return self

    def _refuse_misfits(self, shape: torch.Size) -> None:
        name = type(self).__name__
        if len(shape) != 4:
            raise ValueError(f"{name} takes images (batch, channels, height, width), not a tensor {tuple(shape)}")
        _, channels, height, width = shape
        if channels != self.in_channels:
            raise ValueError(
                f"the images have {channels} channel(s), but in_channels of {name} is {self.in_channels}: to train on "
                f"them, set model.in_channels to {channels}"
            )
        if height not in self.sizes or width not in self.sizes:
            first, last = self.sizes[0], self.sizes[-1]
            sizes = f"{first}" if first == last else f"{first} or more" if last > 10**6 else f"{first} to {last}"
            hint = ", or set model.image_size" if "image_size" in self.hparams else ""
            raise ValueError(f"the images are {height}x{width} pixels, but {name} takes {sizes} along each side{hint}")

    def _empty_sums(self) -> None:
        self.train_images = 0
        self.train_loss, self.train_right = torch.zeros(2, dtype=torch.float32, device=self.device).unbind()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        try:
            return F.cross_entropy(logits.float(), labels)
        except IndexError as error:  # the CPU's words for a label out of range
            raise ValueError(f"{error} The model has num_classes={self.num_classes}: labels start at 0") from error

    def _evaluate(self, stage: str, batch: Batch) -> Tensor:
        images, labels = batch
        logits = self(images)  # (batch, num_classes)
        # Once an image: torchmetrics forgets a weight where nan_strategy is "disable".
        self.metrics[f"{stage}_loss"].update(self._loss(logits, labels).expand(len(labels)))
        self.metrics[f"{stage}_accuracy"].update(logits, labels)
        self._log(stage)
        return logits

    def _log(self, stage: str) -> None:
        for name in ("loss", "accuracy"):
            self.log(f"{stage}/{name}", self.metrics[f"{stage}_{name}"], on_step=False, on_epoch=True, prog_bar=True)


def listed(names: Sequence[str]) -> str:
    """The first few of many names, in one line."""
    return ", ".join(names[:5]) + (f", ... ({len(names)} of them)" if len(names) > 5 else "")
