import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _few_threads():
    torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path):
    """Runs the command line as a user does, in an empty folder, and returns the finished process."""

    def run(*args, **options):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "lit_models", *map(str, args)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **options)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A run of a few steps from the command line: its folder, with `version_0` below."""
    from lit_models.cli import CLI

    folder = tmp_path_factory.mktemp("trained")
    flags = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=60", "--trainer.limit_val_batches=4"]
    CLI(["fit", f"--config={ROOT / 'configs/mnist.yaml'}", *flags, f"--trainer.default_root_dir={folder}"])
    return folder / "mnist"


@pytest.fixture
def last(trained):
    return trained / "version_0" / "checkpoints" / "last.ckpt"
