"""Starts programs of several processes, and waits for them."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ROOT

CONFIG = ROOT / "configs" / "mnist.yaml"
TWO = ["--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--data.batch_size=64"]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(command, folder, **variables):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"} | variables
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), cwd=folder, env=environment, start_new_session=True, **pipes)


def finished(process, timeout=300):
    """What a process has printed, once it and those that it has started have ended."""
    try:
        return process.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs: {process.communicate()[0]}")


def fit(folder, *flags, config=CONFIG, **variables):
    return start([sys.executable, "-m", "lit_models", "fit", f"--config={config}", *flags], folder, **variables)
