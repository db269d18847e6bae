"""Whether memory or file handles grow: as many training steps as two hours bring, of small batches to save time.

`configs/mnist.yaml` takes about 85 steps a second on one core, with everything on, and `configs/dqn_cartpole.yaml` 38
training steps of 16 gradient steps; so 610,000 and 270,000 of them are two hours' worth. Epochs are as short as there,
or shorter, since most of what might be left behind is made once an epoch: pictures, checkpoints, loaders.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from benchmarks.common import options_parser, parse, train, write_results

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
    """Runs both, and writes benchmarks/results/soak.json."""
    parser = options_parser("soak", __doc__)
    parser.add_argument("--net-steps", type=int, default=610_000, help="training steps of Net (default: 610,000)")
    parser.add_argument("--dqn-steps", type=int, default=270_000, help="training steps of DQN (default: 270,000)")
    options = parse(parser, "gymnasium")
    for config, flags, steps, an_epoch in (
        ("mnist", NET, options.net_steps, 430),
        ("dqn_cartpole", DQN, options.dqn_steps, 30_000 // (2 * 96)),
    ):
        start, watch = time.monotonic(), Watch()
        with tempfile.TemporaryDirectory() as name:
            train(f"{config}.yaml", 0, Path(name), [watch], f"--trainer.max_epochs={max(1, steps // an_epoch)}", *flags)
        write_results(options, **{config: growth(watch.samples) | {"seconds": time.monotonic() - start}})


def growth(samples: Sequence[tuple[int, float, int]]) -> dict[str, float]:
    """Memory and open files after the first tenth of the steps and at the end, and the slope of the memory."""
    settled = samples[len(samples) // 10 :]
    steps, memory, files = zip(*settled, strict=True)
    return {
        "steps": samples[-1][0],
        "mib": memory[0],
        "mib_at_the_end": memory[-1],
        "mib_per_100000_steps": statistics.linear_regression(steps, memory).slope * 100_000,  # least squares
        "open_files": files[0],
        "open_files_at_most": max(files),
        "open_files_at_the_end": files[-1],
    }


if __name__ == "__main__":
    main()
