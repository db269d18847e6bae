"""`python -m benchmarks.gpu`, which must work the first time that a GPU is at hand."""

import importlib
import json
import os
import subprocess
import sys

import psutil
import pytest
import torch
from conftest import ROOT

from benchmarks import gpu, gpu_parts


@pytest.mark.slow
def test_every_part_runs_at_a_toy_size_without_a_gpu(tmp_path):
    output = tmp_path / "results" / "toy.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--minutes", "20", "--output", output]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    results = json.loads(output.read_text())
    parts = results["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(gpu.SHARES, "done"), done.stdout
    assert done.returncode == 0
    assert done.stdout.startswith("No GPU here")
    assert results["toy"] is True
    assert results["machine"]["torch"] == torch.__version__
    assert parts["right"]["figures"]["tests"]["failed"] == []
    assert len(parts["right"]["figures"]["tests"]["passed"]) > 20
    ways = list(parts["net"]["figures"].values())
    assert len(ways) == 3
    assert all(way["seconds per epoch"][0] > 0 for way in ways)
    assert all(way["plain loop"][0] > 0 for way in ways[:2])
    assert [len(part["figures"]) for part in parts.values()] == [1, 3, 2, 2, 1, 1]
    for name in parts:
        assert f"\n{name}: done" in done.stdout


def test_a_part_that_fails_or_hangs_is_reported_and_the_others_still_run(tmp_path, monkeypatch, capsys):
    output, run_part, seen = tmp_path / "out.json", gpu.run_part, []
    scripts = {
        "right": "import sys; print('one'); print('two'); sys.exit(3)",
        # What it has started must not outlive it, or hold it up.
        "net": "import subprocess, sys; "
        "begun = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(begun.pid); begun.wait()",
        "cnn": f"import os; assert ('TORCH_COMPILE_DISABLE' in os.environ) is not {gpu.GPU}",
    }

    def replaced(command, seconds):
        name = command[3]
        seen.append((name, seconds))
        if output.exists():  # written after every part
            assert list(json.loads(output.read_text())["parts"]) == [name for name, _ in seen[:-1]]
        figures = next(part for part in command if part.startswith("--output=")).removeprefix("--output=")
        gpu_parts.Figures(gpu.Path(figures), 1).note("something", speed=1.0)
        return run_part([sys.executable, "-c", scripts.get(name, "")], 3 if name == "net" else seconds)

    monkeypatch.setattr(gpu, "run_part", replaced)
    monkeypatch.setattr(sys, "argv", ["gpu", "--minutes", "2", "--output", str(output)])
    assert gpu.main() == 1
    results = json.loads(output.read_text())
    states = {name: part["state"] for name, part in results["parts"].items()}
    assert states == dict.fromkeys(gpu.SHARES, "done") | {"right": "failed", "net": "stopped"}
    assert results["parts"]["right"]["said"] == ["one", "two"]
    (begun,) = results["parts"]["net"]["said"]
    assert not psutil.pid_exists(int(begun)) or psutil.Process(int(begun)).status() == psutil.STATUS_ZOMBIE
    assert "TORCH_COMPILE_DISABLE" not in os.environ  # which other tests would see
    assert list(gpu.SHARES) == list(gpu_parts.PARTS)
    assert results["parts"]["net"]["figures"] == {"something": {"speed": [1.0]}}
    assert "right: failed" in capsys.readouterr().out
    limits = dict(seen)
    assert limits["right"] == pytest.approx(gpu.SHARES["right"] * 120, abs=2)
    # What the others have left goes to the last one.
    assert limits["trainer"] > 60


def test_without_pytest_only_the_tests_are_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytest", None)
    monkeypatch.delitem(sys.modules, "benchmarks.gpu_parts")
    parts = importlib.import_module("benchmarks.gpu_parts")
    with pytest.raises(SystemExit, match="the tests need the extra bench"):
        parts.right(None)


def test_the_time_that_a_gpu_waits():
    spans = [(0.0, 4.0), (1.0, 2.0), (6.0, 8.0), (7.0, 10.0)]  # it waits from 4 to 6
    assert gpu_parts.share_of_gaps(spans) == pytest.approx(0.2)
    assert gpu_parts.share_of_gaps([(3.0, 5.0)]) == 0


@pytest.mark.parametrize("arguments", [["--minutes=0"], ["--minutes=-1"], ["--minutes=nan"], ["--output=."]])
def test_wrong_arguments_are_refused(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2
    assert arguments[0].partition("=")[0] in capsys.readouterr().err.splitlines()[-1]
