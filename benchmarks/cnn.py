"""The article's CNN on MNIST, and on CIFAR-10 where its files are at hand; and whether loading pictures holds it up.

Every run is one of the command line with everything on; the test images are looked at once, after the last epoch.
Times are those of training and of what belongs to it (validation, pictures, checkpoints).
"""

import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.common import accuracy, loading, options_parser, parse, train, write_results


def photographs(folder: Path, count: int = 256) -> None:
    """Writes two classes of JPEG files of the size of a small photograph."""
    for number in range(count):
        path = folder / ("noise" if number % 2 else "gradient") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (640, 480)
        picture = Image.effect_noise(size, 80) if number % 2 else Image.linear_gradient("L").resize(size)
        picture.convert("RGB").save(path)


def main() -> None:
    """Runs, and writes benchmarks/results/cnn.json."""
    parser = options_parser("cnn", __doc__, threads=2)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--only", choices=("accuracy", "loading"), help="one part, instead of both")
    parser.add_argument("--precision", default="32-true", help="of the Trainer (default: 32-true)")
    parser.add_argument("--cifar10", help="the folder that holds cifar-10-batches-py; left out, if not given")
    options = parse(parser)
    precision = f"--trainer.precision={options.precision}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "accuracy"):
            write_results(options, cnn_mnist=accuracy("cnn_mnist.yaml", options.seeds, folder, precision))
            if options.cifar10:
                flags = [f"--data.data_dir={options.cifar10}", "--data.download=false", precision]
                write_results(options, cnn_cifar10=accuracy("cnn_cifar10.yaml", options.seeds, folder, *flags))
        if options.only in (None, "loading"):
            photographs(folder / "pictures")
            own = [f"--data.root={folder / 'pictures'}", "--model.num_classes=2"]
            short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
            runs = {"cnn_mnist": train("cnn_mnist.yaml", 0, folder, [], *short)}
            runs["cnn_folder"] = train("cnn_folder.yaml", 0, folder, [], *short, *own)
            write_results(options, loading={config: loading(run) for config, run in runs.items()})


if __name__ == "__main__":
    main()
