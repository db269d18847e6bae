"""Whether everything is right on this machine's GPU, and how fast: one command, under eight minutes.

The parts run one after the other, each in a process of its own with a time limit, so that one that hangs or fails is
reported and the others still run. The results file is written after every part, with what a part had measured before it
was stopped. Without a GPU the same parts run at a toy size on the CPU, whose figures mean nothing.

The parts, whose code is `benchmarks.gpu_parts`:

- *right*: the tests marked `gpu`.
- *net*: `Net` on MNIST from the command line, everything on, data on the device: `mnist.yaml` as it stands,
  `mnist_gpu.yaml` with larger batches, and `mnist.yaml` with `--compile true`. Beside each of the first two a plain
  loop over tensors on the device, with the same model, augmentation and optimizer, and that loop as a CUDA graph: the
  floor. The test images are looked at after every epoch, with the clock stopped.
- *cnn*: `cnn_mnist.yaml` in bf16 the same way, and how long the GPU waits for the host; `cnn_cifar10.yaml` on made-up
  pixels, for its speed alone.
- *rnn*: the first three epochs of `rnn_mnist_pixels.yaml`, in order and permuted.
- *dqn*: the first epochs of `dqn_cartpole.yaml` on the CPU and on the GPU.
- *trainer*: what the parts of a training step cost (`benchmarks.trainer`).
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision

from benchmarks.common import ROOT, commit, median, processor, read_results, write_json

GPU = torch.cuda.is_available()
# Of the time, for each part; what one leaves goes to those after it.
SHARES = {"right": 0.35, "net": 0.18, "cnn": 0.18, "rnn": 0.13, "dqn": 0.10, "trainer": 0.06}
REFERENCES = {
    "tuomaso/train_mnist_fast, as published": "99.04% in 0.76 s on a laptop's GPU",
    "the article's script": read_results(ROOT / "benchmarks" / "results" / "mnist.json").get("article"),
}


def run_part(command: list[str], seconds: float) -> tuple[str, list[str]]:
    """Runs a command: `done`, `failed` or `stopped` after so many seconds with all it has started; its last lines."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # what is stopped has said all by then
    if not GPU:  # a compiler takes longer than all the rest, and `--compile` has tests of its own
        environment |= {"TORCH_COMPILE_DISABLE": "1"}
    with tempfile.TemporaryFile() as output:
        options: dict[str, Any] = {"cwd": ROOT, "env": environment, "stdout": output, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, start_new_session=True, **options)
        try:
            state = "failed" if process.wait(timeout=seconds) else "done"
        except subprocess.TimeoutExpired:
            state = "stopped"
        finally:
            with contextlib.suppress(ProcessLookupError):  # what it has started may outlive it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    return state, lines[-100:]


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    return {
        "gpu": torch.cuda.get_device_name() if GPU else None,
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if GPU else None,
        "torchvision": torchvision.__version__,
        "lightning": lightning.__version__,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def table(results: dict[str, Any]) -> Iterator[str]:
    """The lines of a table of all results."""
    for name, part in results["parts"].items():
        yield f"\n{name}: {part['state']}, {part['seconds']:.0f} s"
        yield from (f"  | {line}" for line in part.get("said", [])[-20:])
        for what, figures in part["figures"].items():
            yield f"  {what}"
            for figure, values in figures.items():
                if values and not isinstance(values[0], str):
                    yield f"    {figure:<42}{median(values, 0 if max(values) >= 1000 else 3)}"
                else:
                    yield f"    {figure:<42}{len(values)}"
                    yield from (f"      {value}" for value in values if figure in ("failed", "running", "kernels"))


def main() -> int:
    """Runs the parts, prints a table, and returns the exit status: 0 if all of them are done."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8, help="for all of it, at most (default: 8)")
    default = "benchmarks/results/gpu.json, or without a GPU logs/gpu_toy.json"
    parser.add_argument("--output", type=Path, help=f"the results file (default: {default})")
    options = parser.parse_args()
    if not 0 < options.minutes <= 1440:
        parser.error(f"--minutes is {options.minutes}: it must be above 0, and 1440, a day, at most")
    output = options.output or ROOT / ("benchmarks/results/gpu.json" if GPU else "logs/gpu_toy.json")
    if output.is_dir():
        parser.error(f"--output {output} is a folder: give a file")
    command = " ".join(["python -m benchmarks.gpu", *sys.argv[1:]])
    results: dict[str, Any] = {"command": command, "toy": not GPU, "machine": machine(), "references": REFERENCES}
    results["parts"] = {}
    print(f"{results['machine']['gpu'] or 'No GPU here: all parts at a toy size on the CPU, to see that they work'}")
    end = time.monotonic() + 60 * options.minutes
    weights = dict(SHARES)
    with tempfile.TemporaryDirectory() as folder:
        for name in SHARES:
            start = time.monotonic()
            seconds = max(1.0, (end - start) * weights[name] / sum(weights.values()))
            del weights[name]
            print(f"{name}: at most {seconds:.0f} s ...", end=" ", flush=True)
            found = Path(folder) / f"{name}.json"
            part = [sys.executable, "-m", "benchmarks.gpu_parts", name, f"--output={found}"]
            state, said = run_part([*part, f"--seconds={seconds}"], seconds)
            figures = json.loads(found.read_text()) if found.exists() else {}
            took = time.monotonic() - start
            results["parts"][name] = {"state": state, "seconds": took, "figures": figures}
            if state != "done":
                results["parts"][name]["said"] = said
            write_json(output, results)
            print(f"{state} in {took:.0f} s", flush=True)
    print("\n".join(table(results)))
    print(f"\n{'' if GPU else 'A toy size on a CPU: these figures mean nothing. '}Written to {output}")
    return int(any(part["state"] != "done" for part in results["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
