"""Run metadata: `config.yaml` and `run.json` in the run's folder, and the table of runs."""

import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from torch import Tensor
from typing_extensions import override

from lit_models.common.files import atomic_write
from lit_models.training.internals import file_writer
from lit_models.training.plots import tensorboard_writers
from lit_models.training.recorded_config import RESUME_SECTIONS, flat
from lit_models.training.resume import own_checkpoints

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "gymnasium", "lit-models")


class RunRecord(SaveConfigCallback):
    """Records how a run was started and its results.

    The resolved config goes into the run's folder as `config.yaml`, into its checkpoints, and into TensorBoard's
    HPARAMS tab; commands, machine, versions, seed, best checkpoint and latest metrics, also of `test` and `validate`,
    into `run.json`.
    """

    folder: Path | None = None
    first_step: int | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.config = self.config.clone()
        self.config.ckpt_path = None  # the saved config starts a run like this one, it doesn't resume it
        self.content = json.loads(self.parser.dump(self.config, format="json", skip_none=False))
        folder = trainer.log_dir  # every process is asked, and told by the first
        self.save_to_log_dir = folder is not None  # a logger may write to a database
        if stage == "fit" and trainer.logger is not None:
            super().setup(trainer, pl_module, stage)
        if not trainer.loggers or folder is None or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        self.folder = Path(folder)
        self.record = read_record(self.folder)  # of a run that goes on, or is tested
        self.before = self.record.get("state")
        command = shlex.join(["python", "-m", "lit_models", *sys.argv[1:]])
        self.record["commands"] = [*self.record.get("commands", []), command]
        if stage == "fit":
            self.record.setdefault("started", now())
            seed = self.content["seed_everything"]
            self.record |= {"state": "training", "environment": environment(trainer), "seed": seed}
            self._write(trainer)

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        from torch.utils.tensorboard.summary import hparams

        sections = {key: self.content.get(key) for key in RESUME_SECTIONS}
        sections["trainer"] = {key: self.content["trainer"][key] for key in ("max_epochs", "precision")}
        values = {key: "none" if value is None else value for key, value in flat(sections).items()}
        _, start, end = hparams({k: v if isinstance(v, int | float | str) else str(v) for k, v in values.items()}, {})
        for writer in map(file_writer, tensorboard_writers(trainer)):
            writer.add_summary(start)
            writer.add_summary(end)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.content
        if trainer.state.fn == "fit":
            self._write(trainer)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning's own ModelCheckpoint, too, would write and delete where a checkpoint says.
        states = checkpoint["callbacks"]
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.state_key in states:
                states[callback.state_key] = own_checkpoints(callback, states[callback.state_key])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_step = trainer.global_step
        # An epoch of small data may be shorter than the interval.
        trainer.log_every_n_steps = int(min(trainer.log_every_n_steps, trainer.num_training_batches))

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, state="finished")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit" and self.folder is not None:
            trained = self.first_step is not None and trainer.global_step > self.first_step
            self._write(trainer, state="stopped" if trained or self.before is None else self.before)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._write(trainer)

    on_test_end = on_validation_end

    def _write(self, trainer: Trainer, **changes: Any) -> None:
        if self.folder is None:
            return
        metrics = {name: finite(value) for name, value in trainer.callback_metrics.items()}
        self.record |= {"metrics": self.record.get("metrics", {}) | metrics, **changes}
        if trainer.state.fn == "fit":
            self.record |= {"epoch": trainer.current_epoch, "step": trainer.global_step, "written": now()}
            callback = trainer.checkpoint_callback
            if isinstance(callback, ModelCheckpoint) and callback.monitor and callback.best_model_score is not None:
                best = {"metric": callback.monitor, "value": finite(callback.best_model_score), "mode": callback.mode}
                self.record["best"] = best | {"checkpoint": os.path.basename(callback.best_model_path)}
        try:
            with atomic_write(self.folder / "run.json", "the run goes on without its record") as partial:
                partial.write_text(json.dumps(self.record, indent=2) + "\n")
        except OSError as error:  # training is worth more than its record
            warnings.warn(str(error), stacklevel=2)


def finite(value: Tensor) -> float | str:
    """A number, or, since JSON has none for them, `nan` or `inf` as text."""
    number = value.item()
    return number if math.isfinite(number) else str(number)


def version(package: str) -> str | None:
    """The version of a package; None where it is used without being installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run; empty if there is none, or it can't be read."""
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(record, dict) and isinstance(record.get("commands", []), list)
    return record if whole and isinstance(record.get("metrics", {}), dict) else {}


def now() -> str:
    """The local time, to the second."""
    return time.strftime("%Y-%m-%d %H:%M:%S")


def environment(trainer: Trainer) -> dict[str, Any]:
    """Versions, commit and hardware of a run."""
    device = trainer.strategy.root_device
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": commit(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processes": trainer.world_size,
    }


def commit() -> str | None:
    """The commit of this code, with `-dirty` if it was changed since; None outside its repository."""
    options: dict[str, Any] = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": True}
    try:
        # A package that is installed within another project's folder is not of that project.
        subprocess.run(["git", "ls-files", "--error-unmatch", Path(__file__).name], **options)
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def runs(folder: str) -> None:
    """Lists the runs in a folder and below it, with their best metric.

    Args:
        folder: Folder of runs, such as `logs`.

    Raises:
        FileNotFoundError: There is no such folder, or no run in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the one that your runs are in, such as logs")
    found = sorted({path.parent for name in ("run.json", "config.yaml") for path in root.rglob(name)}, key=natural)
    if not found:
        raise FileNotFoundError(f"no runs in {folder}: give the folder that your runs are in, such as logs")
    rows = [("run", "started", "state", "epochs", "steps", "best", "test")]
    for path in found:
        name = path.relative_to(root).as_posix().encode(errors="replace").decode()
        try:
            rows.append(row(name, read_record(path)))
        except (TypeError, ValueError, KeyError, AttributeError):  # somebody has edited it
            rows.append((name, "-", "not recorded", "-", "-", "-", "-"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def row(name: str, record: dict[str, Any]) -> tuple[str, ...]:
    """One row of the table."""
    state, best, metrics = str(record.get("state", "not recorded")), record.get("best"), record.get("metrics", {})
    monitored = f"test/{best['metric'].rpartition('/')[2]}" if best else ""
    tests = [tag for tag in (monitored, *metrics) if tag in metrics and tag.startswith("test/") and tag != "test/loss"]
    return (
        name,
        str(record.get("started", "-")),
        "training or killed" if state == "training" else state,
        str(record.get("epoch", "-")),
        str(record.get("step", "-")),
        f"{best['metric']} {float(best['value']):.4f}" if best else "-",
        f"{tests[0]} {float(metrics[tests[0]]):.4f}" if tests else "-",
    )


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key: `version_10` after `version_9`."""
    return [(int(part.rpartition("_")[2]) if part.rpartition("_")[2].isdigit() else -1, part) for part in path.parts]
