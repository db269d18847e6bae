"""What the Trainer costs: start-up, the parts of a step, the last checkpoint, and what `--compile true` brings."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Timer

from benchmarks.common import ROOT, microseconds, options_parser, parse, train, write_results
from lit_models.training.resume import RunCheckpoint

IMPORTS = ["-c", "import torch, torchvision, lightning"]
COMPILED = {
    "mnist.yaml": ["--trainer.limit_train_batches=200"],
    "cnn_mnist.yaml": ["--trainer.limit_train_batches=15", "--data.batch_size=64"],
    "rnn_mnist.yaml": ["--trainer.limit_train_batches=100"],
    "rnn_mackey_glass.yaml": ["--trainer.limit_train_batches=100"],
    "dqn_cartpole.yaml": ["--model.eval_episodes=2"],
}


def main() -> None:
    """Runs what is asked for, and writes benchmarks/results/trainer.json."""
    parts = {"startup": startup, "step": step, "checkpoint": checkpoint, "compile": compiled}
    parser = options_parser("trainer", __doc__)
    parser.add_argument("--only", choices=parts, help="one (default: all)")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each (default: 5)")
    options = parse(parser, "gymnasium")
    for name, part in parts.items():
        if options.only in (None, name):
            write_results(options, **{name: part(options.pairs)})


def startup(pairs: int) -> dict[str, list[float]]:
    """`python -m lit_models --help` against the imports that nothing can do without."""
    ratios = [seconds(["-m", "lit_models", "--help"]) / seconds(IMPORTS) for _ in range(pairs)]
    return {"help_over_imports": ratios}


def seconds(arguments: list[str]) -> float:
    """How long Python takes for something."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def step(pairs: int) -> dict[str, dict[str, list[float]]]:
    """What the parts of a training step take by themselves, and what the Trainer adds."""
    return {"microseconds": parts_of_a_step("mnist.yaml", rounds=pairs)}


def parts_of_a_step(config: str, *flags: str, rounds: int = 5, calls: int = 50) -> dict[str, list[float]]:
    """Microseconds of each part of a config's training step, of the whole step in the Trainer, and of the rest.

    Args:
        config: The config of a classifier.
        flags: Further ones of the command line.
        rounds: Measurements of each part.
        calls: Calls in each of them, and a fifth of the Trainer's steps.
    """
    own = [f"--trainer.limit_train_batches={5 * calls}", "--trainer.limit_val_batches=1", "--trainer.max_epochs=2"]
    with tempfile.TemporaryDirectory() as folder:
        command = train(config, 0, Path(folder), [], *own, *flags)
    trainer, model, data = command.trainer, command.model.train(), command.datamodule
    speed = trainer.callback_metrics["throughput/samples_per_second"].item()
    device = trainer.strategy.root_device
    optimizer, loader = model.optimizer(model.to(device).parameters()), data.train_dataloader()
    batches = iter(loader)

    def fetch() -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal batches
        try:
            return next(batches)
        except StopIteration:
            batches = iter(loader)
            return next(batches)

    def move() -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(part.to(device, non_blocking=True) for part in fetched)

    def forward() -> torch.Tensor:
        with trainer.precision_plugin.train_step_context():
            return model.training_step(seen, 1)

    def backward() -> None:
        optimizer.zero_grad()
        forward().backward()

    fetched = fetch()
    images, labels = move()
    seen = data.augment(images), labels
    model.log = lambda *args, **options: None  # the parts alone, without the Trainer's bookkeeping
    backward()
    times = {
        "fetching a batch": microseconds(fetch, rounds, calls),
        "moving it to the device": microseconds(move, rounds, calls),
        "augmenting it": microseconds(lambda: data.augment(images), rounds, calls),
        "forward, loss and accuracy": microseconds(forward, rounds, calls),
        "with backward": microseconds(backward, rounds, calls),
        "the optimizer's step": microseconds(optimizer.step, rounds, calls),
    }
    forwards = statistics.median(times["forward, loss and accuracy"])
    times["backward"] = [both - forwards for both in times.pop("with backward")]
    whole = len(labels) / speed * 1e6
    parts = sum(map(statistics.median, times.values()))
    return times | {"a step in the Trainer": [whole], "the rest: the Trainer, logging, schedule": [whole - parts]}


def checkpoint(pairs: int) -> dict[str, list[float]]:
    """The share of a run that goes into `last.ckpt`."""
    shares: dict[str, list[float]] = {}
    write, taken = RunCheckpoint._save_last_checkpoint, []

    def timed(*args: object) -> None:
        start = time.perf_counter()
        write(*args)
        taken.append(time.perf_counter() - start)

    RunCheckpoint._save_last_checkpoint = timed
    for config, flags in (("mnist.yaml", ["--trainer.max_epochs=3"]), ("dqn_cartpole.yaml", [])):
        for seed in range(pairs):
            timer = Timer()
            taken.clear()
            with tempfile.TemporaryDirectory() as folder:
                train(config, seed, Path(folder), [timer], *flags)
            shares.setdefault(Path(config).stem, []).append(sum(taken) / timer.time_elapsed("train"))
        print(f"{config:<22}last.ckpt, share of the run: {shares[Path(config).stem]}", flush=True)
    RunCheckpoint._save_last_checkpoint = write
    return shares


def compiled(pairs: int) -> dict[str, list[float]]:
    """The speed of a compiled model, over that of the model as it is, in the second epoch."""
    ratios: dict[str, list[float]] = {}
    for config, flags in COMPILED.items():
        for seed in range(pairs):
            speeds = []
            for compile in ("true", "false"):
                with tempfile.TemporaryDirectory() as folder:
                    own = ["--trainer.max_epochs=3", "--trainer.limit_val_batches=1", f"--compile={compile}", *flags]
                    metrics = train(config, seed, Path(folder), [], *own).trainer.callback_metrics
                speeds.append(next(value.item() for name, value in metrics.items() if name.startswith("throughput")))
            ratios.setdefault(Path(config).stem, []).append(speeds[0] / speeds[1])
        print(f"{config:<22}compiled, over as it is: {ratios[Path(config).stem]}", flush=True)
    return ratios


if __name__ == "__main__":
    main()
