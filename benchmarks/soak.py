"""Whether memory or file handles grow: as many training steps as two hours bring, of small batches to save time.

`configs/mnist.yaml` takes about 85 steps a second on one core, with everything on, and `configs/dqn_cartpole.yaml` 38
training steps of 16 gradient steps; so 610,000 and 270,000 of them are two hours' worth. Epochs are as short as there,
or shorter, since most of what might be left behind is made once an epoch: pictures, checkpoints, loaders.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.common import prepare, train

NET = ["--data.batch_size=4", "--trainer.limit_train_batches=430", "--trainer.limit_val_batches=2"]
DQN = ["--model.gradient_steps=1", "--model.batch_size=8", "--model.eval_episodes=2", "--model.steps_per_epoch=30000"]


class Watch(Callback):
    """Notes the memory and the open files of this process, every thousand training steps."""

    def __init__(self) -> None:
        self.process, self.steps = psutil.Process(), 0
        self.samples: list[tuple[int, float, int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes them."""
        self.steps += 1
        if self.steps % 1000 == 0:
            self.samples.append((self.steps, self.process.memory_info().rss / 2**20, self.process.num_fds()))


def main() -> None:
    """Runs both, and prints what grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--net-steps", type=int, default=610_000, help="training steps of Net (default: 610,000)")
    parser.add_argument("--dqn-steps", type=int, default=270_000, help="training steps of DQN (default: 270,000)")
    options = parser.parse_args()
    prepare(threads=1)
    for config, flags, steps, an_epoch in (
        ("mnist.yaml", NET, options.net_steps, 430),
        ("dqn_cartpole.yaml", DQN, options.dqn_steps, 30_000 // (2 * 96)),
    ):
        start, watch = time.monotonic(), Watch()
        with tempfile.TemporaryDirectory() as name:
            train(config, 0, Path(name), [watch], f"--trainer.max_epochs={max(1, steps // an_epoch)}", *flags)
        report(config, watch.samples, time.monotonic() - start)


def report(config: str, samples: Sequence[tuple[int, float, int]], seconds: float) -> None:
    """Prints the slope of the memory after the first tenth of the steps, by least squares, and the file handles."""
    settled = samples[len(samples) // 10 :]
    steps, memory, files = zip(*settled, strict=True)
    slope = statistics.linear_regression(steps, memory).slope * 100_000
    print(
        f"{config:<20}{samples[-1][0]:>8,} steps in {seconds / 60:.0f} min: memory {memory[0]:.0f} MiB, at the end "
        f"{memory[-1]:.0f} MiB, slope {slope:+.2f} MiB in 100,000 steps; open files {min(files)} to {max(files)}, "
        f"at the end {files[-1]}",
        flush=True,
    )


if __name__ == "__main__":
    main()
