"""Callbacks: progress bar, throughput, frozen backbones."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from typing_extensions import override

from lit_models.common.messages import format_metric, suggest

VALIDATION = ("val", "eval")  # how names of metrics of a validation start


class ProgressBar(RichProgressBar):
    """RichProgressBar that leaves a line per epoch on the screen, and refreshes by the clock, not at every step.

    Args:
        interval: Seconds between refreshes.
    """

    def __init__(self, interval: float = 0.5) -> None:
        super().__init__()
        self.interval = interval
        self.drawn = 0.0
        self.ended: int | None = None  # the epoch whose line is still to be printed, once all of it is logged
        self.validated = False  # whether there was a validation in it

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        steps = {name: value for name, value in metrics.items() if name.endswith("_step")}  # the rest is in the lines
        return {name.rpartition("/")[2].removesuffix("_step"): value for name, value in steps.items()}

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_epoch(trainer)
        super().on_train_epoch_start(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self.validated = not trainer.sanity_checking

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.ended = trainer.current_epoch

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_epoch(trainer)

    def _print_epoch(self, trainer: Trainer) -> None:
        if self.ended is not None and self.progress is not None:
            last = f"/{trainer.max_epochs - 1}" if (trainer.max_epochs or -1) > 0 else ""
            line = epoch_line(trainer.progress_bar_metrics, self.validated)
            self.progress.console.print(f"Epoch {self.ended}{last}  {line}", highlight=False, soft_wrap=True)
        self.ended, self.validated = None, False

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if now - self.drawn >= self.interval or batch_idx + 1 == self.total_train_batches:
            self.drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def epoch_line(metrics: Mapping[str, float], validated: bool) -> str:
    """Metrics such as `train/loss` as `train loss 0.1234 accuracy 97.12%  val loss ...`, of what the epoch had."""
    stages: dict[str, list[str]] = {}
    for name, value in metrics.items():
        stage, _, short = name.rpartition("/")
        if not name.endswith("_step") and (validated or not name.startswith(VALIDATION)):
            stages.setdefault(stage, []).append(f"{short} {format_metric(short, value)}")
    ordered = sorted(stages, key=lambda stage: stage in VALIDATION)
    return "  ".join(" ".join([stage, *stages[stage]] if stage else stages[stage]) for stage in ordered)


class MonitorCheck(Callback):
    """Refuses, before training, that checkpoints, schedules or stopping watch a metric that the model does not log.

    Warns where they take the worst for the best.
    """

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        known = set(trainer.callback_metrics)
        ours = type(pl_module).__module__.partition(".")[0] in ("lit_models", "rl")
        if not ours or not any(name.startswith(VALIDATION) for name in known):  # what others log cannot be known
            return
        known |= {f"train/{name}" for name in (*pl_module.train_metrics, "loss_step", "lr")}
        watchers = [*trainer.callbacks, *(config.scheduler for config in trainer.lr_scheduler_configs)]
        for watcher in watchers:
            name = getattr(watcher, "monitor", None)
            if name and name not in known and name.partition("/")[0] not in ("episode", "throughput"):
                raise ValueError(
                    f"{type(watcher).__name__} watches {name}, which is not logged{suggest(name, known)}; logged are "
                    f"{', '.join(sorted(known))}"
                )
            kind = str(name).rpartition("/")[2]
            better = "max" if "accuracy" in kind or "return" in kind else "min" if "loss" in kind else None
            if better and getattr(watcher, "mode", better) != better:
                rank_zero_warn(
                    f"{type(watcher).__name__} watches {name} with mode {watcher.mode}, which takes the worst for the "
                    f"best: set its mode to {better}"
                )


class Throughput(Callback):
    """Logs training throughput per epoch, over all processes and without validation.

    The tag is `throughput/samples_per_second`; for a model with `throughput_counters`, such as `env_steps`,
    `throughput/env_steps_per_second`.
    """

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # left out where a run is resumed within an epoch

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.samples, self.seconds, self.started = 0, 0.0, time.perf_counter()
        self.counted = {name: getattr(pl_module, name) for name in getattr(pl_module, "throughput_counters", ())}

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.started is None:  # after a validation, and what other callbacks did then
            self.started = time.perf_counter()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.counted:
            self.samples += extract_batch_size(batch)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._stop_clock(pl_module.device)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.started is not None:
            self._stop_clock(pl_module.device)
        counts = {name: getattr(pl_module, name) - before for name, before in self.counted.items()}
        counts = counts or {"samples": self.samples * trainer.world_size}
        speeds = {f"throughput/{name}_per_second": count / self.seconds for name, count in counts.items()}
        pl_module.log_dict(speeds, sync_dist=True)

    def _stop_clock(self, device: torch.device) -> None:
        if device.type == "cuda":  # once it has finished its queue
            torch.cuda.synchronize(device)
        self.seconds += time.perf_counter() - self.started
        self.started = None


class FreezeBackbone(Callback):
    """Freezes submodules: no gradients, and eval mode.

    So dropout is off, and batch normalization uses and keeps its running statistics, unlike with Lightning's
    `BaseFinetuning.freeze`. The rest of a model in eval mode, as from `lit_models.load`, is put into training mode.
    Submodules stay frozen after training.

    Args:
        modules: Name of a submodule, or several: `features` of Net and CNN, `rnn` of RNN and RNNClassifier,
            `network` of FaceEmbedder.

    Raises:
        ValueError: The model has no such submodule, or nothing is left to train.
    """

    def __init__(self, modules: str | list[str] = "features") -> None:
        self.names = [modules] if isinstance(modules, str) else list(modules)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        there = dict(pl_module.named_modules())
        if unknown := [name for name in self.names if not name or name not in there]:
            children = [name for name, child in pl_module.named_children() if list(child.parameters())]
            raise ValueError(
                f"FreezeBackbone: {type(pl_module).__name__} has no submodule '{unknown[0]}', but {', '.join(children)}"
            )
        if not pl_module.training:
            pl_module.train()
        self.frozen = [there[name].requires_grad_(False).eval() for name in self.names]
        if not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise ValueError(f"FreezeBackbone: with {', '.join(self.names)} nothing is left to train: name fewer")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        for module in self.frozen:  # after something has put the whole model into training mode
            if module.training:
                module.eval()
