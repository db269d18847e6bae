"""Lightning's inner workings: private names, used where nothing public does it, and its profiler.

Further ones are methods of LightningCLI and ModelCheckpoint that our subclasses override or call. A test watches all.
"""

import contextlib
from typing import TYPE_CHECKING

import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import HalfPrecision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from typing_extensions import override

if TYPE_CHECKING:
    from torch.utils.tensorboard import FileWriter, SummaryWriter


class NoProfiler(PassThroughProfiler):
    """Profiles nothing, in one reusable context: Lightning's makes a new one some 70 times per training step."""

    nothing = contextlib.nullcontext()

    @override
    def profile(self, action_name: str) -> contextlib.nullcontext:
        return self.nothing


def is_accumulating(trainer: Trainer) -> bool:
    """Whether gradients are being accumulated over batches, and the optimizer's step is still to come."""
    return trainer.state.fn == "fit" and trainer.fit_loop.epoch_loop._should_accumulate()


def logged_step(trainer: Trainer) -> int:
    """The step at which Lightning logs the metrics of validation and test."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_step(trainer: Trainer, step: int, epoch: int) -> None:
    """Has a test log its metrics at the step and epoch of its checkpoint, not at 0."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step
    trainer.fit_loop.epoch_progress.current.completed = epoch


def file_writer(writer: "SummaryWriter") -> "FileWriter":
    """What takes summaries that a SummaryWriter has no method for; the public attribute is None once it was closed."""
    return writer._get_file_writer()


def disable_input_cast(trainer: Trainer) -> None:
    """With `bf16-true`, has a model get its batches as they are.

    Lightning rounds them to 8 bits first, which is too coarse for what is normalized, discounted or summed only then.
    """
    if isinstance(trainer.precision_plugin, HalfPrecision):
        trainer.precision_plugin.convert_input = lambda data: data


def launches_commands(trainer: Trainer) -> bool:
    """Whether each process of a run is a command of its own, started by Lightning or from elsewhere; else a copy."""
    return isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)


def agree_on_sigterm(trainer: Trainer) -> None:
    """Has SIGTERM in any process of a run end the training of all of them, before the same step.

    Lightning's handler broadcasts in the middle of whatever the processes are exchanging, which they then mix up, and a
    process that has got the signal leaves the others alone. What its loop asks the first process before each step is
    asked of all here.
    """
    if trainer.strategy.launcher is not None and not launches_commands(trainer):
        return  # what is set here would have to be copied
    connector, asked = trainer._signal_connector, False

    def note(*_: object) -> None:
        nonlocal asked
        asked = True
        if trainer.world_size == 1 or trainer.state.fn != "fit":
            connector.received_sigterm = True

    def agree() -> None:
        some = torch.tensor(float(asked), device=trainer.strategy.root_device)
        torch.distributed.all_reduce(some, torch.distributed.ReduceOp.MAX)
        if some:
            connector.received_sigterm = True
            raise SIGTERMException

    connector._sigterm_notifier_fn = note
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = agree
