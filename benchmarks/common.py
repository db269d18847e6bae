"""What the benchmarks share: their options, training as the command line does, timing, and the results files."""

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
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


def options_parser(name: str, description: str, threads: int = 1) -> argparse.ArgumentParser:
    """The options that every benchmark has.

    Args:
        name: Of the benchmark, and of its results file.
        description: The benchmark's docstring, whose first line is shown.
        threads: Threads of PyTorch, if none are given.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=description.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, default=threads, help=f"threads of PyTorch (default: {threads})")
    default = f"benchmarks/results/{name}.json"
    parser.add_argument("--output", type=Path, default=ROOT / default, help=f"results file (default: {default})")
    parser.add_argument("--note", help="what else the figures depend on, such as 'the other core busy'")
    return parser


def parse(parser: argparse.ArgumentParser, *libraries: str) -> argparse.Namespace:
    """The options of a benchmark that begins now, with `measured`: what its figures will hold for.

    Args:
        parser: From `options_parser`, with the benchmark's own options.
        libraries: Packages that the figures depend on, where installed, beside those of every benchmark.
    """
    options = parser.parse_args()
    try:
        read_results(options.output)
    except ValueError as error:
        parser.error(str(error))
    options.measured = provenance(typed(parser.prog, sys.argv[1:]), options.threads, options.note, *libraries)
    prepare(options.threads)
    return options


def provenance(command: str, threads: int, note: str | None, *libraries: str) -> dict[str, Any]:
    """What figures that are measured now will hold for; see `parse`."""
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "versions": versions("torch", "torchvision", "lightning", *libraries),
        "note": note,
    }


def typed(program: str, arguments: Sequence[str]) -> str:
    """The command as typed, but for where it writes and its note; of a path on this machine only the last part."""
    aside = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    aside.add_argument("--output")
    aside.add_argument("--note")
    rest = [re.sub(r"(^|=)(/|~).*/(?=[^/])", r"\1", argument) for argument in aside.parse_known_args(arguments)[1]]
    return " ".join([program, *map(shlex.quote, rest)])


def versions(*libraries: str) -> dict[str, str]:
    """Those of Python and of packages, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in libraries:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit() -> str:
    """The commit of the code, with `-dirty` if it was changed since; results and pages are not code."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    unchanged = [*git, "diff", "--quiet", "HEAD", "--", ".", ":!benchmarks/results", ":!*.md"]
    return head if subprocess.run(unchanged, capture_output=True).returncode == 0 else f"{head}-dirty"


def processor() -> str:
    """The processor's name, where Linux tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or platform.machine()


def read_results(path: Path) -> dict[str, Any]:
    """The parts of a results file, none if there is no such file.

    Raises:
        ValueError: The file holds something else.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = None
    parts = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(part, dict) and part.keys() == {"measured", "figures"} for part in parts):
        raise ValueError(f"{path} is not a results file: remove it, or give another one with --output")
    return content


def write_results(options: argparse.Namespace, **parts: dict[str, Any]) -> None:
    """Replaces parts of the results file, each with what its figures hold for, and keeps the others.

    Args:
        options: From `parse`.
        parts: The figures of each part by name: a list with a value for every seed or pair, or a single number.
    """
    content = {name: {"measured": options.measured, "figures": figures} for name, figures in parts.items()}
    exact = json.dumps(content, default=float)  # of NumPy and PyTorch too
    # Six digits are more than any clock or test set has.
    rounded = json.loads(exact, parse_float=lambda text: float(f"{float(text):.6g}"))
    write_json(options.output, read_results(options.output) | rounded)
    print(
        f"{', '.join(parts)}: written to {options.output}; python -m benchmarks.report makes tables of it", flush=True
    )


def prepare(threads: int) -> None:
    """Pins the threads, keeps the output to the figures, and says what they are measured with."""
    torch.set_num_threads(threads)
    cli.configure_messages()
    for name in ("lightning", "lightning.fabric", "lightning.pytorch", "lit_models"):
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


def accuracy(config: str, seeds: int, folder: Path, *flags: str) -> dict[str, Any]:
    """Test accuracy and training seconds of a config, over several seeds."""
    figures: dict[str, Any] = {"seeds": list(range(seeds)), "test_accuracy": [], "seconds": []}
    for seed in range(seeds):
        timer = Timer()
        command = train(config, seed, folder, [timer], *flags)
        figures["parameters"] = parameters(command.model)
        figures["test_accuracy"].append(test(command)["test/accuracy"])
        figures["seconds"].append(timer.time_elapsed("train"))
        print(f"  seed {seed}: {figures['test_accuracy'][-1]:.2%} in {figures['seconds'][-1]:.0f} s", flush=True)
    return figures


def parameters(model: torch.nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


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
    text = json.dumps(content, indent=2)
    lists_in_a_line = re.sub(r"\[\n[^][{}]*\]", lambda found: re.sub(r"\s*\n\s*", " ", found[0]), text)
    partial.write_text(lists_in_a_line.replace("[ ", "[").replace(" ]", "]") + "\n")
    partial.replace(path)


def median(values: Sequence[float], digits: int = 3) -> str:
    """Median, least and greatest, as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
