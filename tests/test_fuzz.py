"""A short run of the benchmark that draws wrong input, and whether it notices what it is for."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("hypothesis", reason="needs the extra bench")

from benchmarks import fuzz, fuzz_data
from datamodules import ImageFolderDataModule, TimeSeriesDataModule

PLAIN = {"kind": "", "options": {"columns": "x", "context_length": 6, "horizon": 3}, "later": None}
PLAIN |= {"content": ("when,x\n" + "".join(f"2024-01-{day:02},{day}\n" for day in range(1, 32))).encode()}
FOLDER = {"classes": {"ant": 5, "bee": 6}, "parts": None, "ending": ".png", "mode": "RGB", "fault": None}


def test_series_and_folders_end_as_they_should():
    for inputs, check in (
        (fuzz_data.series(), fuzz_data.series_is_right),
        (fuzz_data.folders(), fuzz_data.pictures_are_right),
    ):
        found = fuzz.fuzz(40, 100, inputs, check)
        assert found["faults"] == 0
        assert found["success"] > 3
        assert found["refused"] > 3


def test_a_misreading_of_series_is_noticed(monkeypatch):
    values = list(map(float, range(1, 32)))
    assert fuzz_data.series_is_right(PLAIN | {"values": values}) == "success"
    assert fuzz_data.series_is_right(PLAIN | {"values": values[::-1]}).startswith("misread: [1.0")
    assert fuzz_data.series_is_right(PLAIN | {"values": None}).startswith("misread: what has no reading")
    assert fuzz_data.series_is_right(PLAIN | {"values": values, "later": ["2024-02-02"]}).startswith("misread: goes on")
    assert fuzz_data.series_is_right(PLAIN | {"content": b"", "values": values}) == "refused"
    monkeypatch.setattr(TimeSeriesDataModule, "setup", lambda self, stage: {}["x"])
    assert fuzz_data.series_is_right(PLAIN | {"values": values}).startswith("an error of another kind: KeyError")


def test_a_misreading_of_folders_is_noticed(monkeypatch):
    assert fuzz_data.pictures_are_right(FOLDER) == "success"
    assert fuzz_data.pictures_are_right(FOLDER | {"fault": "one class"}) == "refused"
    load = ImageFolderDataModule._load

    def swapped(self, parts):
        load(self, {name: [(path, 1 - label) for path, label in files] for name, files in parts.items()})

    monkeypatch.setattr(ImageFolderDataModule, "_load", swapped)
    assert fuzz_data.pictures_are_right(FOLDER).startswith("misread: a picture of")


@pytest.mark.parametrize(
    ("end", "fault"),
    [
        ((0, "", ""), None),
        ((2, "", "error: there is no option"), None),
        ((None, "", ""), "it hangs"),
        ((1, "", "Traceback (most recent call last):"), "a traceback"),
        ((-11, "", ""), "status -11"),
        ((1, "", ""), "0 lines of error"),
        ((1, "", "error: one\nerror: two"), "2 lines of error"),
        ((0, "", "error: yet it goes on"), "an error with status 0"),
    ],
)
def test_how_a_command_ends(end, fault):
    assert fuzz.fault_of(*end) == fault


@pytest.mark.slow
def test_commands_end_as_they_should(tmp_path):
    few = ["--commands=25", "--series=0", "--folders=0", "--seed=100", f"--output={tmp_path / 'fuzz.json'}"]
    command = [sys.executable, "-m", "benchmarks.fuzz", *few]  # it forks, which a process of tests should not
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads((tmp_path / "fuzz.json").read_text())["commands"]["figures"]["faults"] == 0
