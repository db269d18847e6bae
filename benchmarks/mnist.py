"""The article's script against this project, on the same machine and with the same number of threads.

Three things are run, one after the other, for every seed:

- *article*: the article's network and settings as a plain PyTorch loop over torchvision's MNIST, as people copy it;
- *Trainer*: `configs/mnist_article.yaml` from the command line, everything on, each epoch followed by one of a plain
  loop over tensors in memory with the same network (the *floor*), so that their ratio holds while the machine's speed
  drifts;
- *ours*: `configs/mnist.yaml` from the command line, everything on.

Times are those of training and of what belongs to it (validation, pictures, checkpoints); start-up and the test images,
which are looked at after every epoch to find out when 99% are right, are left out.
"""

import lzma
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.common import ROOT, options_parser, parameters, parse, synchronize, train, write_results
from datamodules import MNISTDataModule

TARGET = 0.99


@dataclass
class Run:
    """What one training run took, and reached after each epoch."""

    seconds: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    def to_target(self) -> float | None:
        """Seconds until the first epoch with 99% of the test images right."""
        total = 0.0
        for seconds, accuracy in zip(self.seconds, self.accuracies, strict=True):
            total += seconds
            if accuracy >= TARGET:
                return total
        return None


class ArticleNet(nn.Module):
    """The article's network, with its Dropout2d where it has an effect, as `lit_models.Net` has it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of `(batch, 1, 28, 28)` images."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc2(F.dropout(x, training=self.training))


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of the images that a model classifies right."""
    training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        right = sum(
            int((model(some.to(device)).argmax(1) == true.to(device)).sum())
            for some, true in zip(images.split(1000), labels.split(1000), strict=True)
        )
    model.train(training)
    return right / len(labels)


def article(seed: int, epochs: int, test: tuple[Tensor, Tensor], folder: Path) -> Run:
    """The article's script; its scheduler steps after the epoch, as PyTorch asks since 1.1."""
    torch.manual_seed(seed)
    data = datasets.MNIST(folder, train=True, transform=transforms.ToTensor())
    loader = DataLoader(data, batch_size=64, shuffle=True)
    model = ArticleNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)
    run = Run()
    for _ in range(epochs):
        start = time.perf_counter()
        for images, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        scheduler.step()
        run.seconds.append(time.perf_counter() - start)
        run.accuracies.append(accuracy(model, test[0].float() / 255, test[1]))
    return run


class Floor:
    """An epoch of the same network and settings in a plain loop, over tensors in memory, channels last."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels
        self.model = ArticleNet().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)

    def epoch(self) -> float:
        """Seconds for one."""
        start = time.perf_counter()
        for chosen in torch.randperm(len(self.labels)).split(64):
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.images[chosen].float() / 255), self.labels[chosen]).backward()
            self.optimizer.step()
        return time.perf_counter() - start


class Stopwatch(Callback):
    """Times the epochs of a Trainer; between them, with the clock stopped, tests the model and runs the floor."""

    def __init__(self, test: tuple[Tensor, Tensor], floor: Floor | None) -> None:
        self.test, self.floor = test, floor
        self.run, self.floor_seconds = Run(), []

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock at the first epoch; later ones start where the last one ended."""
        if not self.run.seconds:
            self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stops the clock, looks at the test images, and starts it again."""
        synchronize()
        self.run.seconds.append(time.perf_counter() - self.started)
        self.run.accuracies.append(accuracy(pl_module, *self.test))
        if self.floor:
            self.floor_seconds.append(self.floor.epoch())
        self.started = time.perf_counter()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Adds what came after the last epoch's end, such as its checkpoint."""
        self.run.seconds[-1] += time.perf_counter() - self.started


def main() -> None:
    """Runs, and writes benchmarks/results/mnist.json."""
    parser = options_parser("mnist", __doc__)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind (default: 1)")
    parser.add_argument("--article-epochs", type=int, default=20, help="epochs of the article (default: its 20)")
    parser.add_argument("--floor-epochs", type=int, default=6, help="epochs of Trainer and floor (default: 6)")
    options = parse(parser)
    bundled = MNISTDataModule(val_size=0)
    bundled.setup("fit")
    bundled.setup("test")
    train_set, test_set = bundled.train_set, bundled.test_set
    test = (test_set.images, test_set.labels)
    articles, ours, ratios = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for packed in (ROOT / "datamodules" / "files").glob("*.xz"):
            (raw / packed.stem).write_bytes(lzma.decompress(packed.read_bytes()))
        for seed in range(options.seeds):
            articles.append(article(seed, options.article_epochs, test, folder))
            print(f"seed {seed}: article  {describe(articles[-1])}", flush=True)
            watch = Stopwatch(test, Floor(train_set.images, train_set.labels))
            train("mnist_article.yaml", seed, folder, [watch], f"--trainer.max_epochs={options.floor_epochs}")
            # The first epoch also pays for the first call of everything.
            pairs = zip(watch.run.seconds[1:], watch.floor_seconds[1:], strict=True)
            ratios += [seconds / floor for seconds, floor in pairs]
            print(f"seed {seed}: Trainer  {describe(watch.run)}", flush=True)
            watch = Stopwatch(test, None)
            model = train("mnist.yaml", seed, folder, [watch]).model
            ours.append(watch.run)
            print(f"seed {seed}: ours     {describe(ours[-1])}", flush=True)
    share = [sum(mine.seconds) / sum(theirs.seconds) for mine, theirs in zip(ours, articles, strict=True)]
    write_results(
        options,
        article=figures(articles),
        ours=figures(ours) | {"seconds_over_article": share, "parameters": parameters(model)},
        trainer={"epoch_over_plain_loop": ratios},
    )


def describe(run: Run) -> str:
    """One line."""
    return (
        f"{len(run.seconds)} epochs, {statistics.median(run.seconds):.2f} s an epoch, {sum(run.seconds):.1f} s in all, "
        f"{run.accuracies[-1]:.2%} of the test images"
    )


def figures(runs: list[Run]) -> dict[str, list]:
    """Figures of every seed; `seconds_to_99` is null where a run never got there."""
    return {
        "seeds": list(range(len(runs))),
        "test_accuracy": [run.accuracies[-1] for run in runs],
        "seconds": [sum(run.seconds) for run in runs],
        "seconds_per_epoch": [statistics.median(run.seconds) for run in runs],
        "seconds_to_99": [run.to_target() for run in runs],
    }


if __name__ == "__main__":
    main()
