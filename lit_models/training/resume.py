"""Exact resumption: a last checkpoint whatever happens, and in it the state that Lightning leaves out."""

import contextlib
import io
import os
import random
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lit_models.common.files import atomic_write
from lit_models.training.checkpoint import read_checkpoint
from lit_models.training.internals import is_accumulating
from lit_models.training.means import EpochMeans
from lit_models.training.recorded_config import modules_option
from lit_models.training.schedule import check_schedule


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint whose `last.ckpt` is always the latest state; it writes nothing in a `fast_dev_run`.

    Lightning writes `last.ckpt` only where a best one is written too. Here it is also written when training is
    interrupted or fails (`save_on_exception` would add a second file under the name of a best one), and a run finds its
    checkpoints in a folder that was moved, or is given by another path.

    Writing `last.ckpt` takes at most about 2% of a run: it is skipped where the last one took more than a fiftieth of
    the time since, except at the end of training and at steps that were asked for.
    """

    every_n_steps: int | None = None  # of the optimizer, after which `last.ckpt` is written within an epoch
    modules: list[str] | tuple[str, ...] = ()  # that the run's command has named
    state_key = cached_property(lambda self: super().state_key)  # asked for in every hook

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if own := own_checkpoints(self, state_dict):
            # What lies there was written by this run, before it was killed: it is written again, under the same name.
            self._enable_version_counter = False
            super().load_state_dict(own)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.first_step = self.step_before = trainer.global_step
        # Step of the latest `last.ckpt`; when it was written, by the monotonic clock; how long that took.
        self.last_step, self.written, self.seconds = -1, 0.0, 0.0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step, before, self.step_before = trainer.global_step, self.step_before, trainer.global_step
        due = self.every_n_steps and step // self.every_n_steps > before // self.every_n_steps
        if due and not trainer.is_last_batch and not self._should_skip_saving_checkpoint(trainer):
            saved = self._last_global_step_saved, self._last_checkpoint_saved
            self._write_last(trainer)
            # A validation that follows has still to write the best one of this step.
            self._last_global_step_saved, self._last_checkpoint_saved = saved

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._also_save_last(trainer, after_epoch=True)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not has_finite_weights(trainer):
            return
        super().on_validation_end(trainer, pl_module)
        self._also_save_last(trainer, after_epoch=False)

    @override
    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        with interrupts_held_back():  # else the one whose place is taken might be left behind for ever
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _also_save_last(self, trainer: Trainer, after_epoch: bool) -> None:
        due = self._every_n_epochs >= 1 and (trainer.current_epoch + 1) % self._every_n_epochs == 0
        due = due and self._should_save_on_train_epoch_end(trainer) is after_epoch
        if due and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        if trainer.strategy.broadcast(time.monotonic() - self.written > 50 * self.seconds):
            self._write_last(trainer)

    def _write_last(self, trainer: Trainer) -> None:
        if not has_finite_weights(trainer):
            return
        start = time.monotonic()
        super()._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        self.last_step, self.written = trainer.global_step, time.monotonic()
        self.seconds = self.written - start

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.fast_dev_run and self.last_step != trainer.global_step > self.first_step:
            self._write_last(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if hasattr(self, "first_step") or not (self.save_last and trainer.ckpt_path and trainer.is_global_zero):
            return
        # Nothing was left to train: the run was killed after its best checkpoint, and before the last one of that step.
        last = Path(self.dirpath, f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        if not last.is_file():
            return
        with contextlib.suppress(ValueError):  # a damaged one is replaced
            if read_checkpoint(last).get("global_step", 0) >= trainer.global_step:
                return
        with atomic_write(last, "make room, then go on with --ckpt_path last") as partial:
            shutil.copy(trainer.ckpt_path, partial)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        trained = trainer.global_step > getattr(self, "first_step", trainer.global_step)
        # Another process may wait elsewhere, and would never get to writing.
        if not (trained and self.save_last) or trainer.fast_dev_run or trainer.world_size > 1:
            return
        if not has_finite_weights(trainer):
            return
        self.last_model_path = self.last_model_path or str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}.ckpt")
        try:
            trainer.save_checkpoint(self.last_model_path, self.save_weights_only)
        except OSError:  # which may be what has ended training
            return
        rank_zero_info(f"Stopped after step {trainer.global_step}. To go on from there:")
        modules = modules_option(trainer, self.modules)
        rank_zero_info(f"  python -m lit_models fit --ckpt_path {shlex.quote(self.last_model_path)}{modules}")


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Lets SIGINT interrupt only after what is done within, which would otherwise be left half done."""
    handler, held = signal.getsignal(signal.SIGINT), []
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *received: held.append(received))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


def has_finite_weights(trainer: Trainer) -> bool:
    """Whether training can go on from the weights; if not, warns that the checkpoint before them is kept."""
    finite = all(bool(parameter.isfinite().all()) for parameter in trainer.lightning_module.parameters())
    finite = trainer.strategy.reduce_boolean_decision(finite)
    if not finite:
        rank_zero_warn("Weights are infinite or NaN: no checkpoint is written, and those from before are kept")
    return finite


def own_checkpoints(callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Any]:
    """A ModelCheckpoint's state with its checkpoints' paths in the present folder; empty if they aren't there.

    Lightning would write and delete wherever a restored state says, and follow a `..` out of the folder.
    """

    def here(path: str) -> str:
        name = os.path.basename(path)
        return os.path.join(callback.dirpath, name) if name.endswith(callback.FILE_EXTENSION) else ""

    try:
        own = {key: here(state[key]) for key in ("best_model_path", "last_model_path", "kth_best_model_path")}
        scores = {here(path): score for path, score in state["best_k_models"].items() if here(path)}
        own |= {"best_k_models": scores, "dirpath": str(callback.dirpath)}
        own |= {key: state[key] for key in ("best_model_score", "kth_value")}
    except (KeyError, TypeError, AttributeError):  # Lightning has not written it
        return {}
    there = state.get("dirpath") == callback.dirpath or any(map(os.path.exists, (*list(own.values())[:3], *scores)))
    full = len(scores) == callback.save_top_k
    return own if there and not (full and own["kth_best_model_path"] not in scores) else {}


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the global random generators: PyTorch's, its GPU's, NumPy's and Python's."""
    _, key, *rest = np.random.get_state()
    numpy = [torch.from_numpy(key.copy()), *rest]
    state = {"torch": torch.get_rng_state(), "numpy": numpy, "python": random.getstate()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restores a `random_state`; a GPU's only if it was taken on one."""
    torch.set_rng_state(state["torch"])
    key, *rest = state["numpy"]
    np.random.set_state(("MT19937", key.numpy(), *rest))
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


class ExactResume(Callback):
    """Stores in checkpoints the state that Lightning leaves out, so that a resumed run ends with the same weights.

    For every process: random generators, gradients being accumulated, means over the epoch in progress, and a model's
    `training_state()`, if it has one. A LitModule attaches it in any Trainer.
    """

    states: list[dict[str, Any]] | None = None  # of all processes, from the checkpoint

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = []
        if not (trainer.world_size > 1 and trainer.interrupted):  # another process may not get here any more
            states = [self._own_state(trainer, pl_module)]
            if trainer.world_size > 1:
                states = all_gather(states, trainer.world_size)
        checkpoint["processes"] = states

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.states = None  # of a run that failed before it could resume

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.states = checkpoint.get("processes", []) if trainer.training else None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        states, self.states = self.states, None
        if states is None:
            return
        check_schedule(trainer)
        if len(states) != trainer.world_size:
            rank_zero_info("The checkpoint is not of as many processes: random draws start anew")
            return
        state = states[trainer.global_rank]
        if "means" in state:
            pl_module.means.counts |= state["means"]["counts"]
            pl_module.means.totals |= state["means"]["totals"]
        if "module" in state:
            pl_module.load_training_state(state["module"])
        set_random_state(state["random"], pl_module.device)
        for parameter, gradient in zip(pl_module.parameters(), state.get("gradients", []), strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0 and isinstance(getattr(pl_module, "means", None), EpochMeans):
            # on_train_epoch_start is left out where a run is resumed at the end of an epoch.
            pl_module.means.reset("train")

    def _own_state(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        state: dict[str, Any] = {"random": random_state(pl_module.device)}
        if isinstance(getattr(pl_module, "means", None), EpochMeans):
            state["means"] = {"counts": pl_module.means.counts, "totals": pl_module.means.totals}
        if hasattr(pl_module, "training_state"):
            state["module"] = pl_module.training_state()
        if is_accumulating(trainer):
            state["gradients"] = [parameter.grad for parameter in pl_module.parameters()]
        return state


def all_gather(states: list[dict[str, Any]], processes: int) -> list[dict[str, Any]]:
    """The states of all processes, in each of them."""
    content = io.BytesIO()
    torch.save(states, content)
    contents = [b""] * processes
    torch.distributed.all_gather_object(contents, content.getvalue())
    return [state for content in contents for state in torch.load(io.BytesIO(content), "cpu", weights_only=True)]
