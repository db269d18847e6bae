"""The Vision Transformer on MNIST, and beside the CNN on real colour pictures, both trained for the same time.

- *mnist*: `vit_mnist.yaml`; test images are looked at once, after the last epoch.
- *pictures*: `vit_folder.yaml` and `cnn_folder.yaml` on a folder with a part `train` and a part `test` (`--pictures`),
  for as many minutes each. A first epoch, whose model is thrown away, says how many epochs that is, and the schedule of
  the learning rate is as long. Test pictures are looked at once, after the last epoch.
"""

import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Timer

from benchmarks.common import accuracy, options_parser, parameters, parse, test, train, write_results

SIZES = {  # of pictures of 32x32, and a model for them: the CNN scales them up to what it leaves 4x4 of
    "vit_folder": ["--data.image_size=32", "--model.image_size=32", "--model.patch_size=4"],
    "cnn_folder": ["--data.image_size=32", "--model.image_size=48", "--model.dropout=0.3"],
}


def pictures(root: Path, minutes: float, seeds: int, folder: Path) -> dict[str, Any]:
    """Test accuracy of both, in turn for each seed."""
    classes = sum(path.is_dir() for path in (root / "train").iterdir())
    own = [f"--data.root={root}", f"--model.num_classes={classes}", "--data.batch_size=64"]
    figures: dict[str, Any] = {
        name: {"seeds": list(range(seeds)), "test_accuracy": [], "seconds": [], "epochs": []} for name in SIZES
    }
    for seed in range(seeds):
        for name, found in figures.items():
            flags, timer = [*own, *SIZES[name]], Timer()
            train(f"{name}.yaml", seed, folder, [timer], *flags, "--trainer.max_epochs=1")
            epochs = max(1, round(60 * minutes / timer.time_elapsed("train")))
            timer = Timer()
            command = train(f"{name}.yaml", seed, folder, [timer], *flags, f"--trainer.max_epochs={epochs}")
            found["parameters"] = parameters(command.model)
            found["test_accuracy"].append(test(command)["test/accuracy"])
            found["seconds"].append(timer.time_elapsed("train"))
            found["epochs"].append(epochs)
            said = f"{found['test_accuracy'][-1]:.2%} in {found['seconds'][-1]:.0f} s, {epochs} epochs"
            print(f"  seed {seed}: {name} {said}", flush=True)
    return figures


def main() -> None:
    """Runs, and writes benchmarks/results/vit.json."""
    parser = options_parser("vit", __doc__)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    parser.add_argument("--only", choices=("mnist", "pictures"), help="one part, instead of both")
    parser.add_argument(
        "--pictures", type=Path, help="a folder with train/CLASS and test/CLASS; left out, if not given"
    )
    parser.add_argument("--minutes", type=float, default=20, help="for each model on the pictures (default: 20)")
    options = parse(parser)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.only in (None, "mnist"):
            write_results(options, mnist=accuracy("vit_mnist.yaml", options.seeds, folder))
        if options.only in (None, "pictures") and options.pictures:
            found = pictures(options.pictures, options.minutes, options.seeds, folder)
            write_results(options, pictures={"minutes": options.minutes} | found)


if __name__ == "__main__":
    main()
