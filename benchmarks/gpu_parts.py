"""The parts of `benchmarks.gpu`, each run in a process of its own: `python -m benchmarks.gpu_parts net --output FILE`.

What they are is said there. Without a GPU they run at a toy size on the CPU, whose figures mean nothing.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from benchmarks import agents as agents_benchmark
from benchmarks.common import prepare, synchronize, train, write_json
from benchmarks.mnist import Run, Stopwatch
from benchmarks.trainer import parts_of_a_step
from datamodules import CIFAR10DataModule, MNISTDataModule
from lit_models.cli import main as cli

if TYPE_CHECKING:
    import pytest

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
SEEDS = 3 if GPU else 1
TEST_IMAGES = 10_000 if GPU else 100
RESIDENT = "--data.cache_on_device=true"


class Figures:
    """What a part measures, in a file that is written anew with each figure.

    Args:
        path: The file, JSON.
        seconds: How long the part may take.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.end = path, time.monotonic() + seconds
        self.found: dict[str, dict[str, Any]] = {}

    def note(self, what: str, **figures: Any) -> None:
        """Adds figures of something: a number of each seed to a list of them, anything else as it is."""
        found = self.found.setdefault(what, {})
        for name, value in figures.items():
            name = name.replace("_", " ")
            found[name] = [*found.get(name, []), value] if isinstance(value, int | float) else value
        write_json(self.path, self.found)


def toy(*flags: str) -> list[str]:
    """Flags that cut a run down to what a CPU does in a moment; none on a GPU."""
    short = ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    off = ["--trainer.logger=false", "--trainer.enable_model_summary=false"]
    return [] if GPU else [*short, *off, *flags]


class Recorder:
    """Notes how each test ends, as pytest's plugin."""

    def __init__(self, figures: Figures) -> None:
        self.figures, self.ends = figures, {"passed": [], "failed": [], "skipped": [], "running": []}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Notes which one is running, in case it never ends."""
        self.ends["running"] = [nodeid.rpartition("::")[2]]
        self.figures.note("tests", **self.ends)

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        """Takes a test down, and what it measured."""
        if report.when == "call" or report.outcome != "passed":
            name, crash = report.nodeid.rpartition("::")[2], getattr(report.longrepr, "reprcrash", None)
            where = f": {crash.path}:{crash.lineno}: {crash.message[:500]}" if crash else ""
            self.ends[report.outcome].append(f"{name}{where}")
            for measured, value in report.user_properties:
                self.figures.note(measured, value=value)

    def pytest_sessionfinish(self) -> None:
        """Notes that none is running any more."""
        self.ends["running"] = []
        self.figures.note("tests", **self.ends)


def right(figures: Figures) -> None:
    """The tests marked `gpu`."""
    try:
        import pytest
    except ImportError as error:
        raise SystemExit("the tests need the extra bench: pip install -e '.[bench]'") from error
    # On a CPU, where they mean little, without those that take long, and one variant of each model.
    few = " and not ".join(["not killed", "deterministic", "learns", "true", "CNN_28", "permuted", "LSTM"])
    where = [] if GPU else ["--on-cpu", "-k", few]
    options = ["-v", "-o", "faulthandler_timeout=60", "-p", "no:cacheprovider", "-m", "gpu"]
    if status := pytest.main([*options, "tests/training/test_gpu.py", *where], plugins=[Recorder(figures)]):
        raise SystemExit(int(status))


class PlainLoop:
    """Epochs of a run's model, augmentation and optimizer over tensors on the device, without a Trainer.

    Args:
        command: A run from the command line, whose model is trained on.
        precision: `bf16` for autocast; anything else is fp32.
    """

    def __init__(self, command: cli.CLI, precision: str = "32") -> None:
        self.data, self.size = command.datamodule, command.datamodule.batch_size
        self.model = command.model.to(DEVICE).train()
        self.images, self.labels = (
            part.to(DEVICE) for part in (self.data.train_set.images, self.data.train_set.labels)
        )
        if not GPU:
            self.images, self.labels = self.images[: 2 * self.size], self.labels[: 2 * self.size]
        self.optimizer = self.model.optimizer(self.model.parameters())
        self.autocast = precision == "bf16"

    def step(self, chosen: Tensor) -> None:
        """Trains on the images with these indices."""
        images, labels = self.data.augment(self.images[chosen]), self.labels[chosen]
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.autocast):
            loss = F.cross_entropy(self.model(images).float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def speed(self, step: Callable[[Tensor], None]) -> float:
        """Images per second over an epoch of whole batches."""
        batches = torch.randperm(len(self.labels), device=DEVICE).split(self.size)
        whole = [batch for batch in batches if len(batch) == self.size]
        synchronize()
        start = time.perf_counter()
        for chosen in whole:
            step(chosen)
        synchronize()
        return len(whole) * self.size / (time.perf_counter() - start)

    def graphed(self) -> Callable[[Tensor], None]:
        """A step as one CUDA graph; its learning rate is the first one."""
        place = torch.arange(self.size, device=DEVICE)
        self.optimizer = self.model.optimizer(self.model.parameters())
        for group in self.optimizer.param_groups:
            if "capturable" in group:  # Adam's, which then counts its steps on the device
                group["capturable"] = True
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(place)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(place)

        def step(chosen: Tensor) -> None:
            place.copy_(chosen)
            graph.replay()

        return step


def plain_speed(figures: Figures, what: str, command: cli.CLI, precision: str = "32") -> None:
    """Notes the speed of a run's training in the Trainer, and of the plain loop."""
    trainer = command.trainer.callback_metrics["throughput/samples_per_second"].item()
    loop = PlainLoop(command, precision)
    loop.speed(loop.step)  # the first one warms up
    plain = loop.speed(loop.step)
    figures.note(what, images_per_second=trainer, plain_loop=plain, share_of_the_plain_loop=trainer / plain)


def test_images() -> tuple[Tensor, Tensor]:
    """MNIST's, on the device."""
    data = MNISTDataModule()
    data.setup("test")
    return data.test_set.images[:TEST_IMAGES].to(DEVICE), data.test_set.labels[:TEST_IMAGES].to(DEVICE)


def note_run(figures: Figures, what: str, run: Run) -> None:
    """Notes what a training run took, and reached."""
    epochs = run.seconds[1:] or run.seconds
    figures.note(
        what,
        seconds_per_epoch=statistics.median(epochs),
        seconds_of_the_first_epoch=run.seconds[0],
        seconds_in_all=sum(run.seconds),
        test_accuracy_in_percent=100 * run.accuracies[-1],
    )
    if (seconds := run.to_target()) is not None:
        figures.note(what, seconds_to_99_percent=seconds)


def net(figures: Figures) -> None:
    """`Net` on MNIST in three ways, beside a plain loop and a CUDA graph."""
    test, commands = test_images(), {}
    ways = {
        "mnist.yaml, as it stands": ("mnist.yaml",),
        "mnist_gpu.yaml, with larger batches": ("mnist_gpu.yaml",),
        "mnist.yaml, with --compile true": ("mnist.yaml", "--compile=true"),
    }
    for what, (config, *flags) in ways.items():
        for seed in range(SEEDS):
            watch = Stopwatch(test, None)
            with tempfile.TemporaryDirectory() as folder:
                commands[what] = train(config, seed, Path(folder), [watch], RESIDENT, *flags, *toy())
            note_run(figures, what, watch.run)
            if not flags:
                plain_speed(figures, what, commands[what])
    # Last what could fail for reasons of its own.
    for what, (config, *flags) in ways.items():
        if GPU and not flags:
            loop = PlainLoop(commands[what])
            figures.note(what, plain_loop_as_a_CUDA_graph=loop.speed(loop.graphed()))
        waiting(figures, what, config, *flags)


class Profile(Callback):
    """Looks at what the GPU does in some batches of the second epoch."""

    def __init__(self, first: int = 10, last: int = 60) -> None:
        self.first, self.last = first, last

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts and stops."""
        if trainer.current_epoch == 1 and batch_idx == self.first:
            synchronize()
            # The host is not looked at, which would slow it down.
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profiler.start()
        elif trainer.current_epoch == 1 and batch_idx == self.last:
            synchronize()
            self.profiler.stop()


def waiting(figures: Figures, what: str, config: str, *flags: str) -> None:
    """Notes the share of the time in which the GPU waits for the host, in a short run, and its longest kernels."""
    if not GPU:
        return
    profile = Profile()
    short = ["--trainer.max_epochs=2", f"--trainer.limit_train_batches={profile.last + 1}"]
    with tempfile.TemporaryDirectory() as folder:
        train(config, 0, Path(folder), [profile], RESIDENT, *flags, *short)
    cuda = torch.autograd.DeviceType.CUDA
    events = [event for event in profile.profiler.events() if event.device_type == cuda]
    if not events:  # not every machine lets itself be looked at
        return
    totals: dict[str, float] = {}
    for event in events:
        totals[event.name] = totals.get(event.name, 0.0) + event.time_range.elapsed_us()
    longest = sorted(totals.items(), key=lambda item: -item[1])[:12]
    steps = profile.last - profile.first
    kernels = [f"{total / steps:7.1f} microseconds per step  {name[:90]}" for name, total in longest]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    figures.note(what, share_of_the_time_that_the_GPU_waits=share_of_gaps(spans), kernels=kernels)


def share_of_gaps(spans: list[tuple[float, float]]) -> float:
    """The share of the time from the first span's start to the last one's end that no span covers.

    Args:
        spans: Start and end of each, in the order of their starts.
    """
    gaps, reached = 0.0, spans[0][0]
    for start, end in spans:
        gaps += max(0.0, start - reached)
        reached = max(reached, end)
    return gaps / (reached - spans[0][0])


def cnn(figures: Figures) -> None:
    """`CNN` on made-up pixels of CIFAR-10's size, and on MNIST, in bf16."""
    small, bf16 = toy("--data.batch_size=8"), "--trainer.precision=bf16-mixed"
    load, CIFAR10DataModule.load = CIFAR10DataModule.load, made_up_pixels
    flags = ["--data.download=false", RESIDENT, bf16, *(["--trainer.max_epochs=2"] if GPU else small)]
    with tempfile.TemporaryDirectory() as folder:
        command = train("cnn_cifar10.yaml", 0, Path(folder), [], *flags)
    plain_speed(figures, "cnn_cifar10.yaml on made-up pixels, bf16-mixed", command, "bf16")
    CIFAR10DataModule.load = load
    test, what = test_images(), "cnn_mnist.yaml, bf16-mixed"
    for seed in range(SEEDS):
        watch = Stopwatch(test, None)
        with tempfile.TemporaryDirectory() as folder:
            command = train("cnn_mnist.yaml", seed, Path(folder), [watch], RESIDENT, bf16, *small)
        note_run(figures, what, watch.run)
        plain_speed(figures, what, command, "bf16")
        if seed == 0:
            waiting(figures, what, "cnn_mnist.yaml", bf16)


def made_up_pixels(data: CIFAR10DataModule, train: bool) -> tuple[Tensor, Tensor]:
    """Noise of CIFAR-10's size."""
    data.source = "Made-up pixels"
    data.class_names, data.num_classes = [str(label) for label in range(10)], 10
    draw, count = torch.Generator().manual_seed(0), (50_000 if train else 10_000)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=draw)
    return images, torch.randint(0, 10, (count,), generator=draw)


class Beginning(Callback):
    """Stops a run after some epochs, or when its time is over, and notes each epoch."""

    def __init__(self, figures: Figures, what: str, epochs: int, end: float) -> None:
        self.figures, self.what, self.epochs, self.end = figures, what, epochs, end

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops it."""
        synchronize()
        accuracy = 100 * trainer.callback_metrics["val/accuracy"].item()
        seconds = time.perf_counter() - self.started
        self.figures.note(self.what, seconds_per_epoch=seconds, validation_accuracy_in_percent=accuracy)
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs or time.monotonic() > self.end


def rnn(figures: Figures) -> None:
    """The beginning of `RNNClassifier`'s training by pixel, in order and permuted."""
    start = time.monotonic()
    for number, by in enumerate(("pixel", "permuted_pixel"), start=1):
        end = start + (figures.end - start) * number / 2.5  # an epoch that has begun takes its time
        what = f"rnn_mnist_pixels.yaml, by {by.replace('_', ' ')}, of its 50 epochs"
        with tempfile.TemporaryDirectory() as folder:
            flags = [RESIDENT, f"--model.scan_order={by}", *toy("--data.batch_size=4")]
            train("rnn_mnist_pixels.yaml", 0, Path(folder), [Beginning(figures, what, 3, end)], *flags)


def dqn(figures: Figures) -> None:
    """`DQN` on CartPole on the CPU, which its config asks for, and on the GPU."""
    epochs = 15 if GPU else 1
    flags = [f"--trainer.max_epochs={epochs}", *toy("--model.eval_episodes=2")]
    for seed in range(SEEDS):
        for accelerator in ("cpu", "gpu") if GPU else ("cpu",):
            watch = agents_benchmark.Stopwatch()
            with tempfile.TemporaryDirectory() as folder:
                train("dqn_cartpole.yaml", seed, Path(folder), [watch], f"--trainer.accelerator={accelerator}", *flags)
            figures.note(
                f"dqn_cartpole.yaml on the {accelerator.upper()}, {epochs} epochs",
                environment_steps_per_second=watch.run.env_steps / watch.run.seconds,
                gradient_steps_per_second=watch.run.gradient_steps / watch.run.seconds,
                seconds_with_evaluations=watch.run.wall,
                return_at_the_end=float(watch.run.evaluations[-1][1]),
            )


def trainer(figures: Figures) -> None:
    """What the parts of `Net`'s training step cost, in microseconds."""
    for config in ("mnist.yaml", "mnist_gpu.yaml") if GPU else ("mnist.yaml",):
        times = parts_of_a_step(config, RESIDENT, *toy(), rounds=5 if GPU else 1, calls=50 if GPU else 2)
        for name, values in times.items():
            for value in values:
                figures.note(f"{config}, microseconds per step", **{name: value})


PARTS = {"right": right, "net": net, "cnn": cnn, "rnn": rnn, "dqn": dqn, "trainer": trainer}


def main() -> None:
    """Runs a part."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_parts", description="Runs a part of benchmarks.gpu."
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True, help="the file for its figures")
    parser.add_argument("--seconds", type=float, default=60, help="how long it may take, at most (default: 60)")
    options = parser.parse_args()
    if options.part != "right":  # whose tests set what they need
        prepare(threads=1)
    PARTS[options.part](Figures(options.output, options.seconds))


if __name__ == "__main__":
    main()
