"""Callbacks that draw into TensorBoard's IMAGES tab what a model has learnt."""

import time
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.utils import make_grid
from typing_extensions import override

from lit_models.common.arguments import PositiveInt, check_arguments
from lit_models.training.baselines import baselines
from lit_models.training.data_checks import images_and_labels
from lit_models.training.internals import logged_step

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


def tensorboard_writers(trainer: Trainer) -> "list[SummaryWriter]":
    """The TensorBoard writers of a run, in the process that writes."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return [logger.experiment for logger in loggers] if trainer.is_global_zero else []


def holds_weights(trainer: Trainer) -> bool:
    """Whether this process is the first and can call the model by itself, which fsdp's shards of the weights cannot."""
    return trainer.is_global_zero and not isinstance(trainer.strategy, FSDPStrategy)


class EvaluationPlots(Callback):
    """Draws, at the end of validation and test, what a subclass has gathered over it.

    In training this takes at most about 5% of the time: a validation's figures are left out where the last ones took
    more than a twentieth of the time since. Those of the last validation are always drawn.
    """

    task: ClassVar[str]  # of the models that it is for; a Trainer may go on with another one
    drawn, seconds = 0.0, 0.0  # when figures were last drawn, by the monotonic clock, and how long that took
    left_out: int | None = None  # step of the latest validation, if its figures were left out

    def reset(self, pl_module: LightningModule) -> None:
        """Begins an evaluation."""

    def update(self, pl_module: LightningModule, outputs: Any, batch: Any) -> None:
        """Gathers a batch."""

    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> "dict[str, Figure]":
        """Figures by name, of a stage, `val` or `test`; called in every process, and used in the first."""
        raise NotImplementedError

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(pl_module, "task", None) == self.task:
            self.reset(pl_module)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if getattr(pl_module, "task", None) == self.task:
            self.update(pl_module, outputs, batch)

    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        due = trainer.state.fn != "fit" or time.monotonic() - self.drawn >= 20 * self.seconds
        if trainer.strategy.broadcast(due):  # what is drawn is summed over all processes first
            self._draw_timed(trainer, pl_module, "val", logged_step(trainer))
        else:
            self.left_out = logged_step(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.left_out is not None:
            self._draw_timed(trainer, pl_module, "val", self.left_out)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_timed(trainer, pl_module, "test", logged_step(trainer))

    def _draw_timed(self, trainer: Trainer, pl_module: LightningModule, stage: str, step: int) -> None:
        start, self.left_out = time.monotonic(), None
        figures = self.draw(trainer, pl_module, stage) if getattr(pl_module, "task", None) == self.task else {}
        for writer in tensorboard_writers(trainer):
            for name, figure in figures.items():
                writer.add_figure(f"{stage}/{name}", figure, step)
        self.drawn = time.monotonic()
        self.seconds = self.drawn - start


class ClassificationPlots(EvaluationPlots):
    """Draws what a Classifier has learnt and what it confuses.

    At the end of validation and test, `val/confusion` or `test/confusion` is the confusion matrix, and
    `val/mistakes` or `test/mistakes` shows the images that are most confidently misclassified. At the end of
    every training epoch, `train/filters` shows the weights of the first convolution, if there is one.

    Args:
        misclassified: Number of misclassified images to show.
    """

    task = "classification"

    def __init__(self, misclassified: PositiveInt = 20) -> None:
        check_arguments(ClassificationPlots, locals())
        self.misclassified = misclassified

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layer = next((layer for layer in pl_module.modules() if isinstance(layer, nn.Conv2d)), None)
        for writer in tensorboard_writers(trainer) if layer is not None else []:
            writer.add_image("train/filters", filter_sheet(layer.weight.detach().float()), trainer.global_step)

    @override
    def reset(self, pl_module: LightningModule) -> None:
        self.confusion = MulticlassConfusionMatrix(pl_module.num_classes, validate_args=False).to(pl_module.device)
        self.worst: tuple[Tensor, ...] | None = None

    @override
    def update(self, pl_module: LightningModule, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> None:
        if not isinstance(outputs, Tensor) or outputs.dim() != 2:  # of a step that was overridden
            return
        images, labels = images_and_labels(pl_module, batch)
        confidence, predicted = outputs.softmax(dim=1).max(dim=1)
        self.confusion.update(predicted, labels)
        wrongness = torch.where(predicted == labels, -1.0, confidence)  # below any mistake's; no wait for the device
        found = (wrongness, predicted, labels, images)
        pool = found if self.worst is None else tuple(map(torch.cat, zip(self.worst, found, strict=True)))
        kept = pool[0].topk(min(self.misclassified, len(pool[0]))).indices
        self.worst = tuple(part[kept] for part in pool)

    @override
    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> "dict[str, Figure]":
        if self.worst is None:
            return {}
        counts = self.confusion.compute().cpu()  # in every process: it is summed over them
        if not trainer.is_global_zero:
            return {}
        from lit_models.training import figures  # matplotlib takes half a second to import

        names = pl_module.class_names or [str(label) for label in range(pl_module.num_classes)]
        return {
            "confusion": figures.plot_confusion_matrix(counts, names),
            "mistakes": figures.plot_misclassified(*(part.cpu() for part in self.worst), names),
        }


class ForecastPlots(EvaluationPlots):
    """Draws what a forecaster forecasts.

    `val/forecast` or `test/forecast` shows the first window with its free-running forecast, and those of the baselines
    as thin lines, over the truth;
    `val/horizon` or `test/horizon` the error (NRMSE) over all windows by the number of rows ahead.
    """

    task = "forecasting"

    @override
    def reset(self, pl_module: LightningModule) -> None:
        self.errors: MeanSquaredError | None = None

    @override
    def update(self, pl_module: LightningModule, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> None:
        context, target = batch
        own, horizon = pl_module.hparams.output_dim, target.shape[1]
        truth = target[:, :, :own]
        if not isinstance(outputs, Tensor) or outputs.shape != truth.shape:  # of a step that was overridden
            return
        if self.errors is None:
            self.errors = MeanSquaredError(squared=False, num_outputs=horizon).to(pl_module.device)
            self.first = context[0], target[0], outputs[0]
        # One row per column and window, so that each row ahead is an output of the metric.
        rows = (pl_module.by_series(part).transpose(1, 2).reshape(-1, horizon) for part in (outputs, truth))
        self.errors.update(*(row.float() for row in rows))

    @override
    def draw(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> "dict[str, Figure]":
        if self.errors is None:
            return {}
        errors = self.errors.compute().view(-1).cpu()  # in every process: it is summed over them
        if not trainer.is_global_zero:
            return {}
        from lit_models.training import figures  # matplotlib takes half a second to import

        own = self.first[2].shape[1]
        context, target, forecast = (part[:, :own].float().cpu() for part in self.first)
        names = getattr(trainer.datamodule, "column_names", None) or [str(i + 1) for i in range(own)]
        simple = baselines(context[None], len(target), getattr(trainer.datamodule, "season", 1))
        others = {name: other[0] for name, other in simple.items()}
        bands = None
        if pl_module.hparams.get("quantiles"):
            with torch.no_grad():
                ahead = pl_module.known_ahead(self.first[1][None])
                bands = pl_module.forecast_quantiles(self.first[0][None], len(target), ahead)[0].float().cpu()
        return {
            "forecast": figures.plot_forecast(context, target, forecast, others, names, bands),
            "horizon": figures.plot_error_by_horizon(errors),
        }


def filter_sheet(weights: Tensor) -> Tensor:
    """Filters `(count, channels, height, width)` side by side: an image `(3, ...)` in 0..1, each filter from 0 to 1."""
    # An image has 1 or 3 channels: filters of another number are averaged over them.
    weights = weights if weights.shape[1] in (1, 3) else weights.mean(dim=1, keepdim=True)
    large = weights.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return make_grid(large, nrow=round(len(weights) ** 0.5), padding=4, normalize=True, scale_each=True)
