"""What every image or sequence classifier shares: input scaling, cross-entropy, accuracy, optimizer and schedule.

Images `(batch, channels, height, width)`, uint8 in 0..255 or float in 0..1 -> logits `(batch, num_classes)`.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lit_models.checkpoint import record_classes

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """The base of the classifiers: a subclass adds layers, and a `forward` from images to logits.

    Args:
        num_classes: Number of classes.
        mean: Mean of the images in 0..1, a number or one a channel, subtracted by `normalize`.
        std: Their standard deviation, divided by. Mean 0 and std 1 leave images in 0..1.
        class_names: The classes by label, for pictures and predictions. The data module's, if not given.
        optimizer: Called with the parameters, returns the optimizer.
        lr_scheduler: Called with the optimizer, returns the schedule. One whose `total_steps` isn't given (such as
            OneCycleLR) gets the number of steps that the Trainer will take and steps after every batch; any other
            steps after every epoch. Without one the learning rate is constant.

    Raises:
        ValueError: The number of `class_names` isn't `num_classes`; the data have more classes than the model, or a
            label outside of them; a schedule needs the number of steps, and training has no end.
    """

    def __init__(
        self,
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
        self.num_classes = num_classes
        self.class_names = class_names
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
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
        """Images, uint8 in 0..255 or float in 0..1, less mean and over standard deviation, in the model's dtype."""
        pixels = images.to(self.mean.dtype, copy=True)  # a copy, so that the rest can be done in place
        if not images.is_floating_point():
            pixels /= 255
        return pixels.sub_(self.mean).div_(self.std)

    def setup(self, stage: str) -> None:
        """Checks the classes of the data module against the model's, and takes over their names."""
        data = self.trainer.datamodule
        classes = getattr(data, "num_classes", self.num_classes)
        if classes > self.num_classes:
            raise ValueError(
                f"{type(data).__name__} has {classes} classes, but num_classes of {type(self).__name__} is "
                f"{self.num_classes}: set model.num_classes to {classes}"
            )
        names = getattr(data, "class_names", None)
        if self.class_names is None and names is not None and len(names) == self.num_classes:
            self.class_names = self.hparams.class_names = names

    def on_train_start(self) -> None:
        """Refuses to go on for longer than the schedule of a resumed run was made for."""
        planned = self.trainer.estimated_stepping_batches
        for config in self.trainer.lr_scheduler_configs:
            total = getattr(config.scheduler, "total_steps", planned)
            if config.interval == "step" and total < planned:
                raise ValueError(
                    f"the checkpoint's schedule ends after {total} steps, but training would take {planned}: keep the "
                    "number of epochs, or start a new run"
                )
        self.on_train_epoch_start()  # which Lightning leaves out where a run is resumed in the middle of an epoch

    def on_train_epoch_start(self) -> None:
        """Empties the sums over the epoch."""
        self.train_images = 0
        self.train_loss, self.train_right = torch.zeros(2, device=self.device).unbind()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch `(images, labels)`."""
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
        optimizer = self.optimizer(self.parameters())
        # A constant schedule where there is none, so that the learning rate is logged under the same name.
        schedule = self.lr_scheduler or (lambda optimizer: ConstantLR(optimizer, factor=1.0))
        defaults = {name: parameter.default for name, parameter in inspect.signature(schedule).parameters.items()}
        keywords = defaults | getattr(schedule, "keywords", {})  # of a functools.partial, which jsonargparse makes too
        if keywords.get("total_steps", "never asked for") is None:
            steps = self.trainer.estimated_stepping_batches
            if math.isinf(steps):
                raise ValueError("a schedule over all steps needs trainer.max_epochs or trainer.max_steps")
            interval, options = "step", {"total_steps": int(steps)}
        else:
            interval, options = "epoch", {}
        scheduler = {"scheduler": schedule(optimizer, **options), "interval": interval, "name": "train/lr"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names the classes of the model and its data, so that the checkpoint alone is enough to test it."""
        record_classes(self, checkpoint)

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
