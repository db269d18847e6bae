"""The article's CNN on MNIST, and on CIFAR-10 where its files are at hand; and whether loading pictures holds it up.

Every run is one of the command line with everything on; the test images are looked at once, after the last epoch.
Times are those of training and of what belongs to it (validation, pictures, checkpoints).
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.common import accuracy, loading, median, prepare, train


def photographs(folder: Path, count: int = 256) -> None:
    """Writes two classes of JPEG files of the size of a small photograph."""
    for number in range(count):
        path = folder / ("noise" if number % 2 else "gradient") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (640, 480)
        picture = Image.effect_noise(size, 80) if number % 2 else Image.linear_gradient("L").resize(size)
        picture.convert("RGB").save(path)


def main() -> None:
    """Runs, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cnn", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    parser.add_argument("--precision", default="32-true", help="of the Trainer (default: 32-true)")
    parser.add_argument("--cifar10", help="the folder that holds cifar-10-batches-py; left out, if not given")
    options = parser.parse_args()
    prepare(options.threads)
    precision = f"--trainer.precision={options.precision}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = [accuracy("cnn_mnist.yaml", options.seeds, folder, precision)]
        if options.cifar10:
            flags = [f"--data.data_dir={options.cifar10}", "--data.download=false", precision]
            lines.append(accuracy("cnn_cifar10.yaml", options.seeds, folder, *flags))
        photographs(folder / "pictures")
        own = [f"--data.root={folder / 'pictures'}", "--model.num_classes=2"]
        short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
        for config, flags in (("cnn_mnist.yaml", []), ("cnn_folder.yaml", own)):
            shares = loading(train(config, 0, folder, [], *short, *flags))
            lines.append(f"{config:<18}speed with the loader / on a batch in memory: median {median(shares)}")
    print("\n".join(["", *lines]))


if __name__ == "__main__":
    main()
