"""What the benchmarks share: training as the command line does, the speed of loading, and figures with their spread."""

import contextlib
import io
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Timer
from torch import Tensor

from lit_models.cli import main as cli

ROOT = Path(__file__).parent.parent


def prepare(threads: int) -> None:
    """Pins the threads, keeps the output to the figures, and says what they are measured with."""
    torch.set_num_threads(threads)
    cli.filter_warnings()
    for name in ("lightning", "lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    versions = f"torch {torch.__version__}, lightning {lightning.__version__}"
    print(f"{versions}, {platform.machine()}, threads: {threads}", flush=True)


def train(config: str, seed: int, folder: Path, callbacks: Sequence[Callback], *flags: str) -> cli.CLI:
    """Runs `fit` as the command line does, everything on, with callbacks beside its own."""

    class BenchmarkCLI(cli.CLI):
        def _instantiate_trainer(self, config: dict, own: list[Callback]) -> lightning.Trainer:
            return super()._instantiate_trainer(config, [*own, *callbacks])

    args = ["fit", f"--config={ROOT / 'configs' / config}", f"--seed_everything={seed}", *flags]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return BenchmarkCLI([*args, f"--trainer.default_root_dir={folder / 'logs'}"])


def test(command: cli.CLI) -> dict[str, float]:
    """The metrics of the test set, after the last epoch."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return command.trainer.test(command.model, datamodule=command.datamodule, verbose=False)[0]


def accuracy(config: str, seeds: int, folder: Path, *flags: str) -> str:
    """Test accuracy and time of a config, over several seeds."""
    accuracies, seconds = [], []
    for seed in range(seeds):
        timer = Timer()
        accuracies.append(100 * test(train(config, seed, folder, [timer], *flags))["test/accuracy"])
        seconds.append(timer.time_elapsed("train"))
        print(f"  seed {seed}: {accuracies[-1]:.2f}% in {seconds[-1]:.0f} s", flush=True)
    return f"{config:<18}test accuracy, % {spread(accuracies, 2)}   seconds {spread(seconds, 0)}"


def loading(command: cli.CLI, steps: int = 10, pairs: int = 9) -> list[float]:
    """How fast a run trains with its real loader, as a share of its speed on one batch held in memory.

    Args:
        command: A run; its model, optimizer and data module are used without a Trainer.
        steps: Steps in each of the two measurements of a pair.
        pairs: Pairs, one after the other, so that a share holds while the machine's speed drifts.

    Returns:
        A share for each pair.
    """
    model, data = command.model.train(), command.datamodule
    model.log = lambda *args, **options: None  # the step alone, without a Trainer's bookkeeping
    optimizer = model.optimizer(model.parameters())

    def step(batch: tuple[Tensor, Tensor]) -> None:
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for first, second in data.train_dataloader():
                yield (data.augment(first) if hasattr(data, "augment") else first), second

    stream = batches()
    held = next(stream)
    step(held)
    shares = []
    for _ in range(pairs):
        start = time.perf_counter()
        for _ in range(steps):
            step(held)
        middle = time.perf_counter()
        for _ in range(steps):
            step(next(stream))
        shares.append((middle - start) / (time.perf_counter() - middle))
    return shares


def synchronize() -> None:
    """Waits for what a GPU has still to do, if there is one, so that a clock can be read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def microseconds(call: Callable[[], object], rounds: int = 9, calls: int = 100) -> list[float]:
    """What a call takes, in each of several rounds; on a GPU, where host and device overlap, the slower of the two."""
    times = []
    for _ in range(rounds):
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return times


def write_json(path: Path, content: Any) -> None:
    """Writes a file beside its place and renames it, so that it is whole whenever this is stopped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean, least and greatest, as text."""
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def median(values: Sequence[float], digits: int = 3) -> str:
    """Median, least and greatest, as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
