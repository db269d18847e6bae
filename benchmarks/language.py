"""Language models on Tiny Shakespeare: nanoGPT's recipe for a CPU, the Transformer and the GRU one after the other.

The text is read as characters, of which the first 90% train; the loss is the mean over all of the rest, in nats per
character, each predicted once, after the last step. The recipes of the configs were chosen on seeds of 100 and more.

- *quick*: nanoGPT's 2,000 steps, `transformer_text.yaml` and `rnn_text.yaml`, all validated once, at the end.
- *long*: `transformer_shakespeare.yaml` and `rnn_shakespeare.yaml`.
- *trainer*: steps in the Trainer, over the same steps in a plain loop.
- *generation*: tokens a second that an untrained model of `transformer_text.yaml`, or of `rnn_text.yaml`, writes.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, Timer

from benchmarks import nanogpt
from benchmarks.common import ROOT, options_parser, parameters, parse, train, write_results
from datamodules import TextDataModule
from lit_models import LanguageModel, RNNLanguageModel, Transformer
from lit_models.cli.main import CLI

KINDS = 65  # of characters in this text
WRITTEN = 1000  # tokens


class Clock(Callback):
    """The seconds that the steps of an epoch take, but for its first ones."""

    def __init__(self, skipped: int) -> None:
        self.skipped, self.start, self.seconds = skipped, 0.0, 0.0

    def on_train_batch_start(self, trainer: Trainer, model: LanguageModel, batch: Any, batch_idx: int) -> None:
        """Starts."""
        if batch_idx == self.skipped:
            self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, model: LanguageModel, outputs: Any, batch: Any, index: int) -> None:
        """Stops."""
        self.seconds = time.perf_counter() - self.start


def characters(text: Path) -> list[str]:
    """The flags of the data."""
    return [f"--data.path={text}", "--data.tokens=characters", "--data.test_fraction=0", f"--model.vocab_size={KINDS}"]


def at_once(config: str) -> list[str]:
    """Flags that make one epoch of all steps of a config, so that it is validated once, at the end, as nanoGPT's is."""
    content = yaml.safe_load((ROOT / "configs" / f"{config}.yaml").read_text())
    windows = content["data"]["init_args"]["windows_per_epoch"] * content["trainer"]["max_epochs"]
    return ["--trainer.max_epochs=1", f"--data.windows_per_epoch={windows}"]


def run(config: str, seed: int, text: Path, callbacks: Sequence[Callback], *flags: str) -> CLI:
    """A run of a config on the text."""
    with tempfile.TemporaryDirectory() as folder:
        return train(f"{config}.yaml", seed, Path(folder), callbacks, *characters(text), *flags)


def run_nanogpt(seed: int, text: Path) -> tuple[float, float, int]:
    """The loss of nanoGPT's recipe, the seconds of its training, and its number of parameters."""
    data = TextDataModule(str(text), tokens="characters", context_length=nanogpt.CONTEXT, test_fraction=0.0)
    data.setup("fit")
    began = time.perf_counter()
    model = nanogpt.train(data.train_set.tokens, KINDS, seed)
    seconds, total = time.perf_counter() - began, 0.0
    with torch.no_grad():
        for tokens, targets in data.val_dataloader():
            total += F.cross_entropy(model(tokens).transpose(1, 2), targets, reduction="sum").item()
    return total / (len(data.val_set.tokens) - 1), seconds, parameters(model)


def losses(names: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Losses, seconds and sizes of several recipes, in turn for each seed."""
    seeds = list(range(options.first_seed, options.first_seed + options.seeds))
    figures: dict[str, Any] = {name: {"seeds": seeds, "loss": [], "seconds": []} for name in names}
    for seed in seeds:
        for name, found in figures.items():
            if name == "nanogpt":
                loss, seconds, found["parameters"] = run_nanogpt(seed, options.text)
            else:
                timer = Timer()
                command = run(name, seed, options.text, [timer], *at_once(name))
                loss, seconds = command.trainer.callback_metrics["val/loss"].item(), timer.time_elapsed("train")
                found["parameters"] = parameters(command.model)
            found["loss"].append(loss)
            found["seconds"].append(seconds)
            print(f"  seed {seed}: {name:<24}{loss:.4f} in {seconds:.0f} s", flush=True)
    return figures


def trainer_share(text: Path, pairs: int, warm_up: int = 20, steps: int = 100) -> dict[str, list[float]]:
    """The speed of training steps in the Trainer, over that of the same in a plain loop right after.

    The plain loop loads the same batches and takes the same steps with the same optimizer; it keeps and shows nothing.
    """
    shares: dict[str, list[float]] = {"transformer_text": [], "rnn_text": []}
    short = [
        "--trainer.max_epochs=1",
        "--trainer.limit_val_batches=1",
        f"--trainer.limit_train_batches={warm_up + steps}",
    ]
    for seed in range(pairs):
        for config, found in shares.items():
            clock = Clock(warm_up)
            command = run(config, seed, text, [clock], *short)
            model, batches = command.model.train(), iter(command.datamodule.train_dataloader())
            model.log = lambda *args, **options: None  # the step alone, without a Trainer's bookkeeping
            optimizer = model.configure_optimizers()["optimizer"]
            for step in range(warm_up + steps):
                if step == warm_up:
                    start = time.perf_counter()
                optimizer.zero_grad()
                model.training_step(next(batches), step).backward()
                optimizer.step()
            found.append((time.perf_counter() - start) / clock.seconds)
            print(f"  {config:<24}{found[-1]:.2f} of a plain loop's speed", flush=True)
    return shares


def generation(rounds: int) -> dict[str, list[float]]:
    """Tokens a second that untrained models like those of the configs write, after a round that warms up."""
    transformer = Transformer(KINDS, context_length=128, norm="layer").eval()
    models: list[LanguageModel] = [transformer, RNNLanguageModel(KINDS, context_length=128).eval()]
    draw, speeds = torch.Generator().manual_seed(0), {}
    for model in models:
        found = speeds[type(model).__name__] = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            for _ in model.generate(torch.tensor([1]), WRITTEN, 0.8, 50, draw):
                pass
            found.append(WRITTEN / (time.perf_counter() - start))
        print(f"  {type(model).__name__:<24}{found[1:]} tokens a second", flush=True)
        del found[0]
    return speeds


def main() -> None:
    """Runs, and writes benchmarks/results/language.json."""
    parser = options_parser("language", __doc__)
    parser.add_argument("--text", type=Path, required=True, help="Tiny Shakespeare's input.txt")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each recipe (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="of these (default: 0)")
    parser.add_argument("--pairs", type=int, default=5, help="of the other measurements (default: 5)")
    parts = {
        "quick": lambda: losses(["nanogpt", "transformer_text", "rnn_text"], options),
        "long": lambda: losses(["transformer_shakespeare", "rnn_shakespeare"], options),
        "trainer": lambda: trainer_share(options.text, options.pairs),
        "generation": lambda: generation(options.pairs),
    }
    parser.add_argument("--only", choices=parts, help="one part, instead of all")
    options = parse(parser)
    for name, part in parts.items():
        if options.only in (None, name):
            write_results(options, **{name: part()})


if __name__ == "__main__":
    main()
