"""What a run gets beside its curves: progress, speed and pictures; and what trains a part of a model."""

import time
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor, nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid

from lit_models.classifier import Batch, Classifier
from lit_models.rnn import RNN, Window

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, which gathers and draws its numbers by the clock and not in every training step.

    Args:
        interval: Seconds from one drawing to the next.
    """

    def __init__(self, interval: float = 0.5) -> None:
        super().__init__()
        self.interval = interval
        self.drawn = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws, if it is time to."""
        now = time.monotonic()
        if now - self.drawn >= self.interval or batch_idx + 1 == self.total_train_batches:
            self.drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class Throughput(Callback):
    """Logs the speed of every training epoch, over all processes, validation left out.

    It is `throughput/samples_per_second`; of an agent, which counts its `env_steps` and `gradient_steps` itself,
    `throughput/env_steps_per_second` and `throughput/gradient_steps_per_second`.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock also where a run is resumed in the middle of an epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.samples, self.seconds, self.started = 0, 0.0, time.perf_counter()
        names = ("env_steps", "gradient_steps")
        self.counted = {name: getattr(pl_module, name) for name in names if hasattr(pl_module, name)}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch."""
        if not self.counted:
            self.samples += extract_batch_size(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock, if training is under way."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.seconds += clock(pl_module.device) - self.started

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the clock go on, unless the epoch's last batch is done."""
        self.started = None if trainer.is_last_batch else time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch's speed."""
        if self.started is not None:
            self.seconds += clock(pl_module.device) - self.started
        counts = {name: getattr(pl_module, name) - before for name, before in self.counted.items()}
        counts = counts or {"samples": self.samples * trainer.world_size}
        speeds = {f"throughput/{name}_per_second": count / self.seconds for name, count in counts.items()}
        pl_module.log_dict(speeds, sync_dist=True)


def clock(device: torch.device) -> float:
    """The time in seconds, once a GPU has done what it was given: training steps only queue up their work there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class FreezeBackbone(Callback):
    """Trains the rest of a model, whose submodules named here stay as they are.

    Their parameters get no gradients, and they stay in eval mode: dropout is off, and the statistics of batch
    normalisation neither move nor give way to a batch's own, as they do with Lightning's `BaseFinetuning.freeze`. A
    model that comes in eval mode, as from `lit_models.load`, is put into training mode but for them. They stay frozen
    after training.

    Args:
        modules: The name of a submodule, or several: `features` of Net and CNN, `core` of RNN and RNNClassifier,
            `network` of FaceEmbedder.

    Raises:
        ValueError: The model has no such submodule, or nothing is left to train.
    """

    def __init__(self, modules: str | list[str] = "features") -> None:
        self.names = [modules] if isinstance(modules, str) else list(modules)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freezes, before the optimizer and other processes are looked for."""
        if stage != "fit":
            return
        there = dict(pl_module.named_modules())
        for name in self.names:
            if name not in there or not name:
                children = [name for name, child in pl_module.named_children() if any(True for _ in child.parameters())]
                raise ValueError(
                    f"FreezeBackbone: {type(pl_module).__name__} has no submodule '{name}', but {', '.join(children)}"
                )
        if not pl_module.training:
            pl_module.train()
        self.frozen = [there[name].requires_grad_(False).eval() for name in self.names]
        if not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise ValueError(f"FreezeBackbone: with {', '.join(self.names)} nothing is left to train: name fewer")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Back to eval mode, where something has put the whole model into training mode."""
        for module in self.frozen:
            if module.training:
                module.eval()


def boards(trainer: Trainer) -> "list[SummaryWriter]":
    """The TensorBoard writers of a run, in the process that writes."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [logger.experiment for logger in loggers] if trainer.is_global_zero else []


def evaluation_step(trainer: Trainer) -> int:
    """The step at which Lightning logs the metrics of validation and test."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


class EvaluationPictures(Callback):
    """Draws what a subclass gathers over a validation or a test, at its end.

    In training this takes no more than about 5% of the time: a validation's pictures are left out where the last ones
    took more than a twentieth of the time since. Those of the last validation are always drawn.

    Attributes:
        drawn: When pictures were last drawn, in seconds of the monotonic clock.
        seconds: How long that took.
        left_out: The step of the latest validation, if its pictures were left out.
    """

    drawn, seconds = 0.0, 0.0
    left_out: int | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, unless it takes too much of the training."""
        if trainer.sanity_checking:
            return
        due = trainer.state.fn != "fit" or time.monotonic() - self.drawn >= 20 * self.seconds
        if trainer.strategy.broadcast(due):  # what is drawn is summed over all processes first
            self._draw_timed(trainer, pl_module, "val", evaluation_step(trainer))
        else:
            self.left_out = evaluation_step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the last validation."""
        if self.left_out is not None:
            self._draw_timed(trainer, pl_module, "val", self.left_out)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        self._draw_timed(trainer, pl_module, "test", evaluation_step(trainer))

    def _draw_timed(self, trainer: Trainer, pl_module: LightningModule, stage: str, step: int) -> None:
        start, self.left_out = time.monotonic(), None
        self.draw(trainer, pl_module, stage, step)
        self.drawn = time.monotonic()
        self.seconds = self.drawn - start

    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str, step: int) -> None:
        """Draws what was gathered over a stage, `val` or `test`, at a step, on every process."""
        raise NotImplementedError


class Pictures(EvaluationPictures):
    """Draws what a Classifier has learnt and what it confuses, for TensorBoard's IMAGES tab.

    At the end of validation and test, `val/confusion` or `test/confusion` counts the images by true and predicted
    class; `val/mistakes` or `test/mistakes` shows the images that the model gets most confidently wrong. At the end of
    every training epoch, `train/filters` shows the weights of the first convolution, if there is one.

    Args:
        mistakes: How many wrongly classified images to show, at least 1.
    """

    def __init__(self, mistakes: int = 20) -> None:
        if mistakes < 1:
            raise ValueError(f"mistakes is {mistakes}: it must be at least 1; trainer.logger=false draws no pictures")
        self.mistakes = mistakes

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the first convolution's filters."""
        layer = next((layer for layer in pl_module.modules() if isinstance(layer, nn.Conv2d)), None)
        if isinstance(pl_module, Classifier) and layer is not None:
            for board in boards(trainer):
                board.add_image("train/filters", filter_sheet(layer.weight.detach().float()), trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Empties what was counted."""
        if isinstance(pl_module, Classifier):
            self.confusion = MulticlassConfusionMatrix(pl_module.num_classes, validate_args=False).to(pl_module.device)
            self.worst: tuple[Tensor, ...] | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts the batch, and keeps the worst mistakes so far."""
        if not isinstance(pl_module, Classifier):
            return
        images, labels = batch
        confidence, predicted = outputs.softmax(dim=1).max(dim=1)
        self.confusion.update(predicted, labels)
        wrongness = torch.where(predicted == labels, -1.0, confidence)  # below any mistake's; no wait for the device
        found = (wrongness, predicted, labels, images)
        pool = found if self.worst is None else tuple(map(torch.cat, zip(self.worst, found, strict=True)))
        kept = pool[0].topk(min(self.mistakes, len(pool[0]))).indices
        self.worst = tuple(part[kept] for part in pool)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str, step: int) -> None:
        """Draws the confusion matrix and the worst mistakes."""
        if not isinstance(pl_module, Classifier) or self.worst is None:
            return
        counts = self.confusion.compute().cpu()  # on every process: it is summed over them
        writers = boards(trainer)
        if not writers:
            return
        from lit_models.training import pictures  # matplotlib takes half a second to import

        names = pl_module.class_names or [str(label) for label in range(pl_module.num_classes)]
        for board in writers:
            board.add_figure(f"{stage}/confusion", pictures.confusion(counts, names), step)
            board.add_figure(f"{stage}/mistakes", pictures.mistakes(*(part.cpu() for part in self.worst), names), step)


class Forecasts(EvaluationPictures):
    """Draws, at the end of validation and test, what an RNN forecasts, for TensorBoard's IMAGES tab.

    `val/forecast` or `test/forecast` shows the first window, its forecast over the truth, and where it begins to run
    free; `val/horizon` or `test/horizon` the error (NRMSE) over all windows against the rows ahead.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Empties what was summed."""
        self.errors: MeanSquaredError | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor,
        batch: Window,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sums the errors, and keeps the first window."""
        if not isinstance(pl_module, RNN):
            return
        past, future = batch
        horizon = future.shape[1]
        if self.errors is None:
            self.errors = MeanSquaredError(squared=False, num_outputs=horizon).to(pl_module.device)
            self.shown = past[0], future[0], outputs[0]
        # A row a column and window, so that each row ahead is an output of the metric.
        rows = (pl_module.normalize(part).transpose(1, 2).reshape(-1, horizon) for part in (outputs, future))
        self.errors.update(*rows)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str, step: int) -> None:
        """Draws the first window's forecast and the error against the rows ahead."""
        if self.errors is None:
            return
        errors = self.errors.compute().view(-1).cpu()  # on every process: it is summed over them
        writers = boards(trainer)
        if not writers:
            return
        from lit_models.training import pictures  # matplotlib takes half a second to import

        past, future, forecast = (part.float().cpu() for part in self.shown)
        names = getattr(trainer.datamodule, "column_names", None) or [str(i + 1) for i in range(past.shape[1])]
        for board in writers:
            board.add_figure(f"{stage}/forecast", pictures.forecast(past, future, forecast, names), step)
            board.add_figure(f"{stage}/horizon", pictures.horizon(errors), step)


def filter_sheet(weights: Tensor) -> Tensor:
    """Filters `(count, channels, height, width)` side by side: an image `(3, ...)` in 0..1, each filter from 0 to 1.

    Filters of another number of channels than 1 and 3 are averaged over them.
    """
    weights = weights if weights.shape[1] in (1, 3) else weights.mean(dim=1, keepdim=True)
    large = weights.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return make_grid(large, nrow=round(len(weights) ** 0.5), padding=4, normalize=True, scale_each=True)
