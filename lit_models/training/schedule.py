"""Optimizer and learning-rate schedule of a model, in the form that Lightning takes."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning import Trainer
from lightning.pytorch.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler

if TYPE_CHECKING:
    from lit_models.module import LitModule


class OneCycleLR(torch.optim.lr_scheduler.OneCycleLR):
    """PyTorch's, with the optimizer's own learning rate and momentum as the peaks.

    Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates", 2018,
    https://arxiv.org/abs/1708.07120.

    Args:
        optimizer: The optimizer.
        max_lr: Peak of the learning rate; the optimizer's `lr`, if not given.
        total_steps: Number of steps; all that the Trainer will take, if not given.
        pct_start: Fraction of them in which the learning rate rises.
        anneal_strategy: Whether it rises and falls along a cosine or a line.
        cycle_momentum: Whether momentum, or Adam's first beta, falls while the learning rate rises, and then rises.
        base_momentum: Least momentum; the greatest, if that is smaller.
        max_momentum: Greatest momentum; the optimizer's `momentum` or first of `betas`, if not given.
        div_factor: Peak over the learning rate at the start.
        final_div_factor: Learning rate at the start over that at the end.
        three_phase: Whether it falls to that of the start as long as it rose, and only then to that of the end.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | list[float] | None = None,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float | None = None,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
    ) -> None:
        groups = optimizer.param_groups
        if cycle_momentum and not {"betas", "momentum"} & set(optimizer.defaults):
            raise ValueError(f"{type(optimizer).__name__} has no momentum: set cycle_momentum of OneCycleLR to false")
        peaks = [max_momentum] * len(groups)
        if max_momentum is None:
            peaks = [group["betas"][0] if "betas" in group else group.get("momentum", 0.0) for group in groups]
        if total_steps and pct_start * total_steps == 1:  # PyTorch divides by zero where the rise is one step
            pct_start *= 1 - 1e-9
        super().__init__(
            optimizer,
            [group["lr"] for group in groups] if max_lr is None else max_lr,
            total_steps,
            pct_start=pct_start,
            anneal_strategy=anneal_strategy,
            cycle_momentum=cycle_momentum,
            base_momentum=[min(base_momentum, peak) for peak in peaks],
            max_momentum=peaks,
            div_factor=div_factor,
            final_div_factor=final_div_factor,
            three_phase=three_phase,
        )


class ReduceLROnPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """PyTorch's, with the metric that it watches.

    Args:
        optimizer: The optimizer.
        monitor: Name of the metric.
        **kwargs: PyTorch's.
    """

    def __init__(self, optimizer: Optimizer, monitor: str = "val/loss", **kwargs: Any) -> None:
        super().__init__(optimizer, **kwargs)
        self.monitor = monitor


# A name by itself is looked for in this order, so that the first two are meant rather than PyTorch's.
LRSchedulerCallable = (
    Callable[[Optimizer], OneCycleLR] | Callable[[Optimizer], ReduceLROnPlateau] | Callable[[Optimizer], LRScheduler]
)


def optimizer_and_schedule(
    model: "LitModule",
    parameters: Iterable[nn.Parameter],
    optimizer: OptimizerCallable,
    lr_scheduler: LRSchedulerCallable | None,
) -> dict[str, Any]:
    """What a model's `configure_optimizers` returns; its `learning_rate` takes the place of the optimizer's own.

    A schedule whose `total_steps` isn't given (such as OneCycleLR) gets the number of steps that the Trainer will take
    and steps with the optimizer; any other steps after every epoch, ReduceLROnPlateau with the metric that is its
    `monitor`, or `val/loss`. A OneCycleLR without `max_lr` rises to the optimizer's learning rate. Without a schedule
    the learning rate is constant.
    """
    optimizing = optimizer(parameters)
    for group in optimizing.param_groups if model.learning_rate else ():
        group["lr"] = model.learning_rate
    # A constant schedule where there is none, so that the learning rate is logged under the same name.
    schedule = lr_scheduler or (lambda optimizer: ConstantLR(optimizer, factor=1.0))
    defaults = {name: parameter.default for name, parameter in inspect.signature(schedule).parameters.items()}
    keywords = defaults | getattr(schedule, "keywords", {})  # of a functools.partial, which jsonargparse makes too
    options, interval = {}, "epoch"
    if keywords.get("total_steps", "never asked for") is None:
        interval = "step"
        if None in (keywords.get("epochs"), keywords.get("steps_per_epoch")):  # of PyTorch's OneCycleLR
            options["total_steps"] = planned_steps(model.trainer)
    own = getattr(schedule, "func", schedule) is torch.optim.lr_scheduler.OneCycleLR  # PyTorch's
    if own and keywords["max_lr"] is inspect.Parameter.empty:
        options["max_lr"] = [group["lr"] for group in optimizing.param_groups]
    config = {"scheduler": schedule(optimizing, **options), "interval": interval, "name": "train/lr"}
    if monitor := monitored(config["scheduler"]):
        if not monitor.startswith("train/"):  # it is there after a validation only
            config["frequency"] = model.trainer.check_val_every_n_epoch or 1
        if model.automatic_optimization:  # else Lightning warns of it
            config["monitor"] = monitor
    return {"optimizer": optimizing, "lr_scheduler": config}


def planned_steps(trainer: Trainer) -> int:
    """Steps of the optimizer in the whole of training; a ValueError says what is missing where it has no end."""
    steps = trainer.estimated_stepping_batches  # which sees to it that the number of batches is known
    steps = getattr(trainer.lightning_module, "planned_gradient_steps", steps)  # an agent takes many in a training step
    if math.isinf(steps):
        raise ValueError("the schedule is over all steps, and training has no end: set trainer.max_epochs or max_steps")
    if steps < 0:
        raise ValueError("the schedule is over all steps, and the training data have no length: set trainer.max_steps")
    return int(steps)


def describe_optimizers(trainer: Trainer) -> list[str]:
    """Of each optimizer its kind, its learning rate, the peak of it if that changes, and its schedule, in one line."""
    lines = []
    for optimizer in trainer.optimizers:
        groups, rate, plan = optimizer.param_groups, "learning rate", ""
        names = " and ".join(type(one).__name__ for one in getattr(optimizer, "optimizers", [optimizer]))
        for config in trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if schedule.optimizer is not optimizer or (type(schedule) is ConstantLR and schedule.factor == 1):
                continue
            plan = f", {type(schedule).__name__}"
            if total := getattr(schedule, "total_steps", None):
                rate, plan = "peak learning rate", f"{plan} over {total:,} {config.interval}s"
            elif monitor := monitored(schedule):
                plan += f" on {monitor}"
            else:
                plan += f", stepped every {config.interval}"
        rates = dict.fromkeys(group.get("max_lr", group.get("initial_lr", group["lr"])) for group in groups)
        lines.append(f"{names}, {rate} {' and '.join(f'{lr:g}' for lr in rates)}{plan or ', constant'}")
    return lines


def monitored(scheduler: LRScheduler) -> str | None:
    """The metric that a schedule is stepped with, if it is a ReduceLROnPlateau."""
    plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
    return getattr(scheduler, "monitor", "val/loss") if plateau else None


def check_schedule(trainer: Trainer) -> None:
    """Raises a ValueError where training would go on for longer than a resumed run's schedule was made for."""
    for config in trainer.lr_scheduler_configs:
        total = getattr(config.scheduler, "total_steps", None)
        if config.interval == "step" and total is not None and total < (planned := planned_steps(trainer)):
            raise ValueError(
                f"the checkpoint's schedule ends after {total} steps, but training would take {planned}: keep the "
                "number of epochs, or start a new run"
            )
