"""Whether wrong input of any kind ends with success and a right reading, or with one line and status 1 or 2.

Command lines are made from the options that there are, with values that are wrong, and run as a user runs them, each in
a process of its own. CSV files and folders of pictures are made with their faults, so that what is read is known.
"""

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.common import ROOT, options_parser, parse, write_results
from benchmarks.fuzz_data import folders, pictures_are_right, series, series_is_right
from lit_models.cli import main as cli
from lit_models.cli.errors import keywords

TIMEOUT = 120  # seconds after which a command counts as hanging
# Values that are wrong for most options, and right for some.
VALUES = [
    "",
    "x",
    "0",
    "-1",
    "1",
    "2.5",
    "1e400",
    "nan",
    "-inf",
    "null",
    "true",
    "None",
    "[]",
    "[1, x]",
    "[1",
    "{}",
    "{a: 1}",
]
VALUES += [
    "{class_path: Net}",
    "Net",
    "CNN",
    "Adam",
    "EarlyStopping",
    "auto",
    "last",
    "é",
    "a b",
    "a" * 300,
    "~",
    "'",
    "@",
]
VALUES += ["nowhere", "nowhere.yaml", "nowhere.ckpt", "picture.png", "notes.txt", "empty", "series.csv", "broken.yaml"]
VALUES += [
    "2",
    "3",
    "0.1",
    "false",
    "SGD",
    "OneCycleLR",
    "bf16-true",
    "64",
    "gru",
    "pictures",
    "picture.png",
    "net.ckpt",
]
# Models, each with data of the working folder that it can be trained on.
MODELS = {
    "Net": "--data=MNISTDataModule",
    "CNN": "--data=ImageFolderDataModule --data.root=pictures --model.num_classes=2",
    "RNNClassifier": "--data=MNISTDataModule",
    "RNN": "--data=TimeSeriesDataModule --data.path=series.csv --data.context_length=9 --data.horizon=5",
    "FaceEmbedder": "--data=FaceDataModule --data.root=pictures --data.split_by=image",
    "DQN": "--model.eval_episodes=1 --model.test_episodes=1",
}
# What would play, train or wait for as long as it says, take all memory, or fetch something.
LONG = {"trainer.fast_dev_run", "trainer.max_time", "data.download", "trainer.num_nodes", "trainer.devices"}
LONG |= {"trainer.max_epochs", "trainer.max_steps", "trainer.min_epochs", "trainer.min_steps"}
LONG |= {
    "model.buffer_size",
    "model.num_envs",
    "model.hidden_size",
    "model.embedding_dim",
    "model.num_layers",
    "data.length",
}
COMMANDS = ["fit", "test", "validate", "predict", "export", "runs", "enrol", "identify", "verify"]


def commands(options: dict[str, list[str]]) -> st.SearchStrategy[list[str]]:
    """Command lines: a command, mostly a model with data that may fit, and a few options with values of any kind."""
    value = st.sampled_from(VALUES)

    @st.composite
    def drawn(draw: Callable) -> list[str]:
        verb = draw(st.sampled_from(["fit"] * 8 + COMMANDS))
        args, names = [verb], list(options[verb])
        if verb in ("fit", "test", "validate", "predict"):
            kind = draw(st.sampled_from(sorted(MODELS)))
            data = re.findall(r"--data=(\w+)", MODELS[kind])
            if verb != "fit":
                args.append("--ckpt_path=net.ckpt")
            elif draw(st.integers(0, 3)):
                args += ["--model", kind, *MODELS[kind].split()]
            else:
                args += ["--config", str(draw(st.sampled_from(sorted((ROOT / "configs").glob("*.yaml")))))]
            own = [f"model.{name}" for name in keywords(f"{'rl' if kind == 'DQN' else 'lit_models'}.{kind}")]
            own += [f"data.{name}" for module in data for name in keywords(f"datamodules.{module}")]
            names = draw(st.sampled_from([own, names]))
        elif verb == "export":
            args += ["--ckpt_path=net.ckpt", "--format=safetensors", "--output=net.safetensors"]
        elif verb != "runs":
            args.append("picture.png")
        names = [name for name in names if name not in LONG]
        for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
            name = draw(st.sampled_from(names))
            if draw(st.integers(0, 9)) == 0:  # a slip of the finger
                name = name[:-1] or "x"
            args += draw(st.sampled_from([[f"--{name}={{}}"], [f"--{name}", "{}"], [f"--{name}"]]))
            args[-1] = args[-1].replace("{}", draw(value))
        if draw(st.integers(0, 9)) == 0:
            args.append(draw(value))
        if verb == "fit":
            args += ["--trainer.fast_dev_run=true"]
        elif verb in ("test", "validate", "predict"):
            args += [f"--trainer.limit_{verb.replace('validate', 'val')}_batches=2"]
        return args

    return drawn()


def documented_options() -> dict[str, list[str]]:
    """The options of every command, by its name, without dashes."""
    options: dict[str, list[str]] = {}
    parsers: dict[str, Any] = {}

    class Parsers(cli.CLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            parsers.update(self._subcommand_parsers)
            raise StopIteration

    for verb in ("fit", "test", "validate", "predict"):
        with contextlib.suppress(StopIteration):
            Parsers([verb])
    for verb, parser in parsers.items():
        options[verb] = [
            option[2:] for action in parser._actions for option in action.option_strings if option[:2] == "--"
        ]
    for verb, function in cli.COMMANDS.items():
        options[verb] = list(function.__annotations__)
    return {verb: [name for name in names if name not in ("help", "return")] for verb, names in options.items()}


def run(args: list[str], folder: Path) -> tuple[int | None, str, str]:
    """The exit status of a command, None if it hangs, and what it prints on both streams."""
    out, err = folder / "stdout", folder / "stderr"
    child = os.fork()  # with all that is imported, which takes 4 s
    if child == 0:
        status = 70
        try:
            os.setsid()
            os.chdir(folder)
            for stream, path in ((0, Path(os.devnull)), (1, out), (2, err)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), stream)
            sys.argv = ["lit_models", *args]
            sys.modules["__main__"].__spec__ = find_spec("lit_models.__main__")  # by which processes are started
            try:
                status = cli.main()
            except SystemExit as stop:
                status = stop.code or 0
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    status, deadline = None, time.monotonic() + TIMEOUT
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        if not done:
            time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    return status, out.read_text(errors="replace"), err.read_text(errors="replace")


def fault_of(status: int | None, out: str, err: str) -> str | None:
    """What is wrong with how a command ended; None if nothing is."""
    errors = [line for line in err.splitlines() if line.startswith("error")]
    if status is None:
        return "it hangs"
    if "Traceback" in out + err:
        return "a traceback"
    if status not in (0, 1, 2):
        return f"status {status}"
    if status and len(errors) != 1:
        return f"{len(errors)} lines of error"
    return "an error with status 0" if errors and not status else None


def fill(folder: Path, checkpoint: Path) -> None:
    """A working folder with files of several kinds, for options to name."""
    shutil.copy(checkpoint, folder / "net.ckpt")
    Image.new("L", (28, 28), 200).save(folder / "picture.png")
    for number in range(24):
        file = folder / "pictures" / f"class {number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (48, 48), 10 * number).save(file)
    (folder / "notes.txt").write_text("no picture\n")
    (folder / "series.csv").write_text("time,x\n" + "".join(f"{row},{row % 7}\n" for row in range(200)))
    (folder / "broken.yaml").write_text("model:\n\tclass_path: Net\n")
    (folder / "empty").mkdir()


def fuzz(number: int, start: int, inputs: st.SearchStrategy, check: Callable[[Any], str | None]) -> dict[str, Any]:
    """Tries inputs, and counts how they ended: read or refused, or by fault."""
    ends: Counter[str] = Counter()
    faults: list[str] = []

    @seed(start)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def each(drawn: Any) -> None:
        end = check(drawn)
        ends[end.partition(":")[0]] += 1
        if end not in ("success", "refused"):
            faults.append(end)
            print(f"  {end}: {drawn}", flush=True)
        if sum(ends.values()) % 100 == 0:
            print(f"  {sum(ends.values())} of {number}: {dict(ends)}", flush=True)

    each()
    return {"inputs": sum(ends.values()), "success": ends["success"], "refused": ends["refused"], "faults": len(faults)}


def main() -> None:
    """Runs, and writes benchmarks/results/fuzz.json; the exit status is 1 if there was a fault."""
    parser = options_parser("fuzz", __doc__)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--commands", type=int, default=2000, help="command lines (default: 2000)")
    parser.add_argument("--series", type=int, default=500, help="CSV files (default: 500)")
    parser.add_argument("--folders", type=int, default=500, help="folders of pictures (default: 500)")
    options = parse(parser, "hypothesis")
    work = Path(tempfile.mkdtemp())
    trained = ["fit", "--model=Net", "--data=MNISTDataModule", "--trainer.max_steps=1", "--trainer.limit_val_batches=1"]
    run([*trained, "--checkpoint.dirpath=."], work)

    def check_command(args: list[str]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            fill(Path(folder), work / "last.ckpt")
            status, out, err = run(args, Path(folder))
        fault = fault_of(status, out, err)
        return f"{fault}: {err[-2000:]}" if fault else "refused" if status else "success"

    parts = {
        "commands": (options.commands, lambda: commands(documented_options()), check_command),
        "series": (options.series, series, series_is_right),
        "folders": (options.folders, folders, pictures_are_right),
    }
    figures = {}
    for name, (number, inputs, check) in parts.items():
        if number:
            print(f"{name}, seed {options.seed}:", flush=True)
            figures[name] = {"seed": options.seed} | fuzz(number, options.seed, inputs(), check)
            print(f"  {figures[name]}", flush=True)
    write_results(options, **figures)
    sys.exit(any(part["faults"] for part in figures.values()))


if __name__ == "__main__":
    main()
