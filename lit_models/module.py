"""What all models share and no paper describes: optimizer, schedule, epoch means, callbacks, checks of the data."""

import inspect
from typing import Any, ClassVar, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from typing_extensions import override

from lit_models.common.arguments import plain_hyperparameters, saved_hyperparameters
from lit_models.common.messages import inform
from lit_models.training.callbacks import MonitorCheck
from lit_models.training.checkpoint import save_class_paths
from lit_models.training.data_checks import check_task, match_scale
from lit_models.training.internals import disable_input_cast
from lit_models.training.means import EpochMeans
from lit_models.training.resume import ExactResume
from lit_models.training.schedule import (
    LRSchedulerCallable,
    describe_optimizers,
    optimizer_and_schedule,
)


class TensorSpec(NamedTuple):
    """An input or output of an exported model."""

    shape: tuple[int | str, ...]  # numbers, and the names of axes of any size: ("batch", 1, 28, 28)
    dtype: torch.dtype
    mean: float | Tensor = 0.0  # of an input: the mean of typical values, a number or one per column
    std: float | Tensor = 1.0  # their standard deviation, likewise
    count: int = 256  # of an input of integers: its values are 0 to below this


class ExportSpec(NamedTuple):
    """How a model is exported: inputs and outputs by name, in order."""

    network: nn.Module  # takes the inputs by position, returns the output, or a tuple of them
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


def default_factories(kind: type) -> dict[str, Any]:
    """The default optimizers and schedules of a model, by name."""
    found = {}
    for base in reversed(kind.__mro__):  # since a subclass may pass on keywords that it doesn't name
        for name, parameter in inspect.signature(base.__init__).parameters.items():
            if callable(parameter.default) and parameter.default is not parameter.empty:
                found[name] = parameter.default
    return found


class LitModule(LightningModule):
    """The base of all models.

    A subclass writes its steps, and adds to `means` in them what is logged of an epoch, as `train/loss` and so on.

    Args:
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule, see `lit_models.training.schedule`; a constant learning rate, if
            not given.
    """

    task: ClassVar[str | None] = None  # what it is for, such as "classification": a data module must be for the same
    data_tasks: ClassVar[frozenset[str]] = frozenset()  # further tasks of data modules that it takes
    output_name: ClassVar[str] = "output"  # in an exported file
    shown_metrics: ClassVar[tuple[str, ...]] = ("loss",)  # in the progress bar, without their stage
    from_data: ClassVar[frozenset[str]] = frozenset()  # hyperparameters that, where None, are the data module's
    resume_may_change: ClassVar[frozenset[str]] = frozenset()  # hyperparameters that a resumed run may have others of
    throughput_counters: ClassVar[tuple[str, ...]] = ()  # its attributes that count the training, if not samples do
    lr_monitor: ClassVar[bool] = True  # whether the command line logs the learning rate; False where the model does
    learning_rate: float | None = None  # instead of the optimizer's own: Lightning's LearningRateFinder sets it

    def __init__(self, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None) -> None:
        super().__init__()
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.means = EpochMeans()  # over the epoch in progress, by stage

    def __getstate__(self) -> dict[str, Any]:
        """Without factories that are defaults, which are mostly lambdas, and cannot be pickled."""
        state, defaults = super().__getstate__(), default_factories(type(self))
        omitted = {name for name in defaults if state.get(name) is defaults[name]}
        return {name: value for name, value in state.items() if name not in omitted} | {"omitted": omitted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        defaults = default_factories(type(self))
        omitted = {name: defaults[name] for name in state["omitted"]}
        super().__setstate__({name: value for name, value in state.items() if name != "omitted"} | omitted)

    @override
    def _set_hparams(self, hp: Any) -> None:
        super()._set_hparams(plain_hyperparameters(type(self), hp))

    def plots(self) -> list[Callback]:
        """Callbacks that draw the plots of this kind of model for TensorBoard."""
        return []

    @override
    def configure_callbacks(self) -> list[Callback]:
        """What the model needs in any Trainer, and the Trainer does not have yet."""
        needed: list[Callback] = [ExactResume(), MonitorCheck()] if self.trainer.state.fn == "fit" else []
        if any(isinstance(logger, TensorBoardLogger) for logger in self.trainer.loggers):
            needed += self.plots()
        present = self.trainer.callbacks
        return [callback for callback in needed if not any(isinstance(one, type(callback)) for one in present)]

    @override
    def setup(self, stage: str) -> None:
        """Raises a ValueError where the data module is for another task than this model's."""
        disable_input_cast(self.trainer)
        check_task(self, self.trainer.datamodule)

    @override
    def configure_optimizers(self) -> dict[str, Any]:
        """The injected optimizer and schedule."""
        return optimizer_and_schedule(self, self.parameters(), self.optimizer, self.lr_scheduler)

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """What is logged of a training epoch, by name."""
        return tuple(self.means.names.get("train", ()))

    @override
    def on_train_start(self) -> None:
        for line in describe_optimizers(self.trainer):
            inform(line)

    @override
    def on_fit_start(self) -> None:
        if any(isinstance(callback, LearningRateFinder | BatchSizeFinder) for callback in self.trainer.callbacks):
            # They have changed what the schedule was made for, and a checkpoint is restored after this.
            self.trainer.strategy.setup_optimizers(self.trainer)

    def epoch_metrics(self, stage: str) -> dict[str, Any]:
        """What is logged at the end of an epoch of a stage, "train", "val" or "test", by name."""
        return self.means.compute(stage, self.trainer.strategy)

    @override
    def on_validation_epoch_start(self) -> None:
        self.means.reset("test" if self.trainer.testing else "val")

    @override
    def on_train_epoch_end(self) -> None:
        stage = self.trainer.state.stage.dataloader_prefix  # "train", "val" or "test"
        for name, value in self.epoch_metrics(stage).items():
            self.log(f"{stage}/{name}", value, prog_bar=name in self.shown_metrics, sync_dist=True)

    on_test_epoch_start = on_validation_epoch_start
    on_validation_epoch_end = on_test_epoch_end = on_train_epoch_end

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        save_class_paths(self, checkpoint)
        for owner in (self, self.trainer.datamodule):  # for what was set later, and data modules of others
            if (key := getattr(owner, "CHECKPOINT_HYPER_PARAMS_KEY", None)) in checkpoint:
                checkpoint[key] = saved_hyperparameters(type(owner), checkpoint[key])
                checkpoint.pop(owner.CHECKPOINT_HYPER_PARAMS_TYPE, None)  # OmegaConf's class

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        match_scale(self, checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {}))

    def log_loss(self, loss: Tensor) -> None:
        """Logs `train/loss_step` at the steps that Lightning writes, since `self.log` takes 0.36 ms."""
        try:
            interval = self.trainer.log_every_n_steps
        except (RuntimeError, AttributeError):  # without a Trainer, or with Fabric
            return
        if interval and (self.trainer.global_step + 1) % interval == 0:
            self.log("train/loss_step", loss, prog_bar=True)

    def for_inference(self) -> "LitModule":
        """The model to export: this one, or a copy without what only training needs."""
        return self

    def export_spec(self) -> ExportSpec:
        """What is exported: the model itself, with one input and one output, for batches of any size."""
        example = self.example_input_array
        with torch.no_grad():
            result = self(example)
        name = next(iter(inspect.signature(self.forward).parameters))
        return ExportSpec(
            self,
            {name: TensorSpec(("batch", *example.shape[1:]), example.dtype)},
            {getattr(self, "output_name", "output"): TensorSpec(("batch", *result.shape[1:]), result.dtype)},
        )
