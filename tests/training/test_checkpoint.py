"""Checkpoints that are written while the process is killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from lit_models.training.checkpoint import AtomicCheckpointIO, read_checkpoint

WRITER = """
import torch
from lit_models.training.checkpoint import AtomicCheckpointIO
number = 1
while True:
    AtomicCheckpointIO().save_checkpoint({"number": number, "weights": torch.ones(50_000_000)}, "last.ckpt")
    print(number, flush=True)
    number += 1
"""


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_previous_checkpoint(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    written = int(process.stdout.readline())
    partial = tmp_path / "last.ckpt.partial"
    for _ in range(60_000):  # it is seen within a few, unless it is never there
        assert process.poll() is None
        with contextlib.suppress(FileNotFoundError):
            if 0 < partial.stat().st_size < 150_000_000:
                break
        time.sleep(0.001)
    else:
        pytest.fail("nothing is written beside last.ckpt")
    process.send_signal(signal.SIGKILL)
    process.wait()
    written += len(process.stdout.read().split())
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["number"] in (written, written + 1)  # it may have been renamed, and not said yet
    assert content["weights"].sum() == 50_000_000


def test_what_is_left_of_a_killed_one_is_overwritten(tmp_path):
    (tmp_path / "last.ckpt.partial").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.slow
def test_no_flipped_bit_changes_what_is_read(tmp_path):
    content = {"state_dict": {"weight": torch.arange(10.0)}, "pytorch-lightning_version": "2.6.6"}
    torch.save(content, tmp_path / "whole.ckpt")
    whole, refused = (tmp_path / "whole.ckpt").read_bytes(), 0
    # The archive's directory at the end, where a bit may say that a part is compressed, a folder, or elsewhere.
    for bit in range(8 * (len(whole) - 900), 8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "flipped.ckpt").write_bytes(flipped)
        try:
            read = read_checkpoint(tmp_path / "flipped.ckpt")
        except ValueError:
            refused += 1
        else:
            assert torch.equal(read["state_dict"]["weight"], content["state_dict"]["weight"])
    assert refused > 1000
