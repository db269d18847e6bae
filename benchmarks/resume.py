"""Runs that are killed, and checkpoints that are damaged.

*Kills*: a config trains for a few epochs; then it does so again, is killed (SIGKILL) at a random moment between the
making of its folder and its last checkpoint, is started again with `--ckpt_path auto`, and must end with the same
weights and optimizer, to the bit, and with the same curves. The configs take turns; LunarLander is left out, whose
state lies in a library.

*Damages*: a checkpoint is damaged in ten ways. Given by its name it must be refused in one line; as the newest one of
a run it must be refused too, or passed over for the one before.
"""

import contextlib
import io
import logging
import math
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.common import ROOT, options_parser, parse, write_results
from lit_models.cli import main as cli

SHORT = ["--trainer.max_epochs=3", "--trainer.limit_val_batches=2", "--checkpoint_every_n_steps=7"]
PICTURES = ["--data=ImageFolderDataModule", "--data.root=pets", "--model.num_classes=2", "--data.batch_size=4"]
PEOPLE = ["--data.train_images=40", "--data.identities_per_batch=2", "--data.images_per_identity=4"]
PLAYED = [*SHORT[:2], "--checkpoint_every_n_steps=40", "--model.steps_per_epoch=2000", "--model.eval_episodes=2"]
FEW = "--trainer.limit_train_batches=20"
RUNS = {
    "mnist": [*SHORT, "--trainer.limit_train_batches=100"],
    "mnist_article": [*SHORT, "--trainer.limit_train_batches=100"],
    "cnn_mnist": [*SHORT, FEW, "--data.batch_size=8"],
    "cnn_cifar10": [*SHORT, FEW, *PICTURES],
    "cnn_folder": [*SHORT, *PICTURES],
    "rnn_mackey_glass": [*SHORT, FEW, "--data.length=2000"],
    "rnn_csv": [*SHORT, "--data.path=series.csv"],
    "rnn_mnist": [*SHORT, FEW],
    "rnn_mnist_pixels": [*SHORT, "--trainer.limit_train_batches=8", "--data.batch_size=4"],
    "face_orl": [*SHORT[:1], "--checkpoint_every_n_steps=2", "--data.root=pets", "--data.split_by=image", *PEOPLE],
    "dqn_cartpole": PLAYED,
    "dqn_cartpole_article": [*PLAYED, "--model.steps_per_epoch=500"],
    "dqn_acrobot": [*PLAYED, "--model.env_options={max_episode_steps: 100}"],
    "dqn_mountaincar": PLAYED,
}


def main() -> None:
    """Runs both, and writes benchmarks/results/resume.json."""
    parser = options_parser("resume", __doc__)
    parser.add_argument("--kills", type=int, default=20, help="runs to kill (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    options = parse(parser, "gymnasium")
    options.measured["threads"] = 1  # of the processes that are killed, see `run_in`
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder)
        equal = kills(folder, options.kills, random.Random(options.seed))
        write_results(options, kills={"killed": options.kills, "configs": len(RUNS), "equal": equal})
        write_results(options, damages={"damaged": 10, "clear": damages(folder)})


def make_data(folder: Path) -> None:
    """Small pictures of two classes, and a series, for the configs whose data are their user's own."""
    draw = random.Random(0)
    for kind in ("cat", "dog"):
        (folder / "pets" / kind).mkdir(parents=True)
        for number in range(60):
            picture = Image.frombytes("RGB", (48, 48), draw.randbytes(48 * 48 * 3))
            picture.save(folder / "pets" / kind / f"{number}.png")
    rows = [f"{math.sin(hour / 4) + draw.random():.3f}" for hour in range(900)]
    (folder / "series.csv").write_text("\n".join(["value", *rows]))


def kills(folder: Path, count: int, draw: random.Random, names: Sequence[str] = tuple(RUNS)) -> int:
    """How many killed runs end as those that were not; the configs take turns."""
    ends: dict[str, tuple[float, dict[str, Any]]] = {}
    equal = 0
    print(f"{'config':<22}{'killed after':>14}{'went on from step':>20}  ends equal")
    for number in range(count):
        name = names[number % len(names)]
        if name not in ends:
            process, start = begun(name, folder, "whole"), time.time()
            process.join()
            # Not after the last checkpoint, from when on there is nothing to lose.
            (last,) = (folder / "whole" / name).rglob("last.ckpt")
            ends[name] = last.stat().st_mtime - start, end(folder / "whole" / name)
        seconds, whole = ends[name]
        logs, moment = f"killed_{number}", draw.uniform(0, seconds)
        process = begun(name, folder, logs)
        process.join(timeout=moment)
        process.kill()
        process.join()
        left = sorted((folder / logs).rglob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
        step = torch.load(left[-1], weights_only=True)["global_step"] if left else 0
        fit(name, folder, logs, "--ckpt_path=auto").join()
        same = alike(end(folder / logs / name), whole)
        equal += same
        print(f"{name:<22}{moment:>10.1f} of {seconds:.1f} s{step:>12}  {'yes' if same else 'NO'}", flush=True)
    return equal


def begun(name: str, folder: Path, logs: str) -> BaseProcess:
    """A run that has made its folder."""
    process = fit(name, folder, logs)
    while process.is_alive() and not (folder / logs).exists():
        time.sleep(0.01)
    return process


def fit(name: str, folder: Path, logs: str, *flags: str) -> BaseProcess:
    """Starts a run, in a process forked from one that has imported everything, which is most of a short run's time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lit_models.cli.main"])
    args = ["fit", f"--config={ROOT / 'configs' / name}.yaml", *RUNS[name], f"--trainer.default_root_dir={logs}"]
    process = context.Process(target=run_in, args=(folder, [*args, *flags]))
    process.start()
    return process


def run_in(folder: Path, args: list[str]) -> None:
    """Runs the command line in a folder, without its output."""
    os.chdir(folder)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        sys.exit(cli.main(args))


def end(runs: Path) -> dict[str, Any]:
    """How the newest of a config's runs has ended: weights, optimizer and curves, without those of speed."""
    run = max(runs.glob("version_*"), key=lambda path: int(path.name.removeprefix("version_")))
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    board = EventAccumulator(str(run)).Reload()
    tags = [tag for tag in board.Tags()["scalars"] if not tag.startswith("throughput")]
    curves = {tag: [(point.step, point.value) for point in board.Scalars(tag)] for tag in tags}
    kept = ("global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return {name: content[name] for name in kept} | {"curves": curves}


def alike(first: Any, second: Any) -> bool:
    """Whether two ends are the same, to the bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(alike(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(alike, first, second))
    return first == second


class Code:
    """What a checkpoint must not run.

    Args:
        folder: What it would make.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def damages(folder: Path) -> int:
    """How many damaged checkpoints are dealt with in a clear line."""
    config = f"--config={ROOT / 'configs' / 'mnist.yaml'}"
    flags = [config, "--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1"]
    called("fit", *flags, f"--trainer.default_root_dir={folder / 'good'}")
    good = folder / "good" / "mnist" / "version_0" / "checkpoints" / "last.ckpt"
    clear = 0
    print()
    for number, (damage, content) in enumerate(damaged(good, folder / "ran")):
        logs = folder / f"damaged_{number}"
        shutil.copytree(folder / "good", logs)
        last = logs / good.relative_to(folder / "good")
        last.write_bytes(content)
        place = f"--trainer.default_root_dir={logs}"
        by_name, said = called("validate", f"--ckpt_path={last}", place, *flags)
        newest, said_of_newest = called("fit", "--ckpt_path=last", place, *flags)
        lines = [line.replace(str(logs), "logs") for line in (*said, *said_of_newest)]
        passed = any("passed over" in line for line in said_of_newest)
        fine = by_name != 0 and len(said) == 1 and len(said_of_newest) == 1 and (newest != 0) is not passed
        fine = fine and not (folder / "ran").exists()
        clear += fine
        print(f"{damage}: {'clear' if fine else 'NOT CLEAR'}", *lines, sep="\n    ", flush=True)
    return clear


def damaged(path: Path, ran: Path) -> Iterator[tuple[str, bytes]]:
    """Ten ways to damage a checkpoint: a name, and what is in the file then."""
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        parts = {entry.rpartition("/")[2]: file.read(entry) for entry in file.namelist()}
    content = torch.load(path, weights_only=True)
    longest = max(parts.values(), key=len)

    def flipped(part: bytes) -> bytes:
        at = whole.index(part) + len(part) // 2
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    def saved(value: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(value, stream)
        return stream.getvalue()

    yield "empty", b""
    yield "cut in half", whole[: len(whole) // 2]
    yield "its last byte missing", whole[:-1]
    yield "a bit flipped among the weights", flipped(longest)
    yield "a bit flipped in the index", flipped(parts["data.pkl"])
    yield "its second half zeros", whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    yield "a text", b"model: Net\n"
    yield "another class", saved({**content, "model_class": "lit_models.CNN", "hyper_parameters": {}, "config": {}})
    yield "code inside", saved(content | {"extra": Code(ran)})
    yield "weights that nothing says the place of", saved({"weights": torch.ones(3)})


def called(*args: str) -> tuple[int, list[str]]:
    """Runs the command line in this process: its exit status, and what it says of errors and checkpoints."""
    text = io.StringIO()
    with (
        contextlib.redirect_stdout(text),
        contextlib.redirect_stderr(text),
        warnings.catch_warnings(record=True) as caught,
    ):
        try:
            status = cli.main(list(args))
        except SystemExit as stop:
            status = int(stop.code or 0)
    lines = [line for line in text.getvalue().splitlines() if "error" in line.lower()]
    return status, [*lines, *(str(warning.message) for warning in caught if "passed over" in str(warning.message))]


if __name__ == "__main__":
    main()
