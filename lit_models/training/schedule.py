"""Optimizer and learning-rate schedule of a model, in the form that Lightning takes."""

import inspect
import math
from collections.abc import Iterable
from typing import Any

from lightning import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, ReduceLROnPlateau


def optimizer_and_schedule(
    trainer: Trainer,
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None,
) -> dict[str, Any]:
    """What a model's `configure_optimizers` returns.

    A schedule whose `total_steps` isn't given (such as OneCycleLR) gets the number of steps that the Trainer will take
    and steps after every batch; any other steps after every epoch, ReduceLROnPlateau with the metric that is its
    `monitor`, in `lightning.pytorch.cli.ReduceLROnPlateau`, or `val/loss`. Without one the learning rate is constant.
    """
    optimizing = optimizer(parameters)
    # A constant schedule where there is none, so that the learning rate is logged under the same name.
    schedule = lr_scheduler or (lambda optimizer: ConstantLR(optimizer, factor=1.0))
    defaults = {name: parameter.default for name, parameter in inspect.signature(schedule).parameters.items()}
    keywords = defaults | getattr(schedule, "keywords", {})  # of a functools.partial, which jsonargparse makes too
    options = {}
    if keywords.get("total_steps", "never asked for") is None:
        steps = trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError("a schedule over all steps needs trainer.max_epochs or trainer.max_steps")
        options["total_steps"] = int(steps)
    interval = "step" if options else "epoch"
    config = {"scheduler": schedule(optimizing, **options), "interval": interval, "name": "train/lr"}
    if trainer.lightning_module.automatic_optimization and (monitor := monitored(config["scheduler"])):
        config["monitor"] = monitor
    return {"optimizer": optimizing, "lr_scheduler": config}


def monitored(scheduler: LRScheduler) -> str | None:
    """The metric that a schedule is stepped with, if it is a ReduceLROnPlateau."""
    return getattr(scheduler, "monitor", "val/loss") if isinstance(scheduler, ReduceLROnPlateau) else None


def check_schedule(trainer: Trainer) -> None:
    """Raises a ValueError where training would go on for longer than a resumed run's schedule was made for."""
    planned = trainer.estimated_stepping_batches
    for config in trainer.lr_scheduler_configs:
        total = getattr(config.scheduler, "total_steps", planned)
        if config.interval == "step" and total < planned:
            raise ValueError(
                f"the checkpoint's schedule ends after {total} steps, but training would take {planned}: keep the "
                "number of epochs, or start a new run"
            )
