"""The record of a run, and the list of runs."""

import json

import torch
import yaml
from conftest import ROOT, fails

from lit_models.cli import main as cli

CONFIG = ROOT / "configs" / "mnist.yaml"
SHORT = ["--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]


def read(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_is_recorded_and_so_are_its_tests(tmp_path, monkeypatch):
    fit = ["fit", f"--config={CONFIG}", "--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path}", *SHORT]
    monkeypatch.setattr("sys.argv", ["lit_models", *fit])
    assert cli.main() == 0
    folder = tmp_path / "mnist" / "version_0"
    record = read(folder)
    (command,) = record["commands"]
    assert command == " ".join(["python -m lit_models", *fit])
    assert (record["state"], record["epoch"], record["step"], record["seed"]) == ("finished", 2, 6, 0)
    assert record["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert (record["environment"]["device"], record["environment"]["processes"]) == ("cpu", 1)
    assert len((record["environment"]["commit"] or "0" * 40).removesuffix("-dirty")) == 40
    keeper = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = (state for name, state in keeper.items() if name.startswith("RunCheckpoint"))
    assert record["best"]["value"] == state["best_model_score"].item()
    assert (folder / "checkpoints" / record["best"]["checkpoint"]).exists()
    assert record["best"]["metric"] == "val/accuracy"
    assert {"train/loss", "val/loss"} <= record["metrics"].keys()

    test = ["test", f"--config={CONFIG}", "--ckpt_path=last", f"--trainer.default_root_dir={tmp_path}", *SHORT]
    monkeypatch.setattr("sys.argv", ["lit_models", *test])
    assert cli.main() == 0
    tested = read(folder)
    assert tested["commands"] == [command, " ".join(["python -m lit_models", *test])]
    new = {tag: value for tag, value in tested["metrics"].items() if tag.startswith("test/")}
    assert tested["metrics"] == record["metrics"] | new
    assert {"test/accuracy", "test/balanced_accuracy", "test/accuracy/9", "test/loss"} <= new.keys()


def test_the_record_and_the_config_run_it_again(tmp_path):
    fit = ["fit", f"--config={CONFIG}", "--model.dropout=0.3", "--trainer.max_epochs=1", *SHORT]
    assert cli.main([*fit, f"--trainer.default_root_dir={tmp_path / 'first'}"]) == 0
    folder = tmp_path / "first" / "mnist" / "version_0"
    config = folder / "config.yaml"
    assert yaml.safe_load(config.read_text())["model"]["init_args"]["dropout"] == 0.3
    assert cli.main(["fit", f"--config={config}", f"--trainer.default_root_dir={tmp_path / 'second'}"]) == 0
    again = read(tmp_path / "second" / "mnist" / "version_0")["metrics"]
    speed = "throughput/samples_per_second"
    assert again | {speed: 0} == read(folder)["metrics"] | {speed: 0}


def test_a_run_that_fails_is_recorded_as_stopped(tmp_path, monkeypatch, capsys):
    def fail(self, batch, batch_idx):
        raise OSError("the disk is gone")

    monkeypatch.setattr("lit_models.Net.training_step", fail)
    where = f"--trainer.default_root_dir={tmp_path}"
    assert "the disk is gone" in fails(capsys, "fit", f"--config={CONFIG}", where, *SHORT)
    assert read(tmp_path / "mnist" / "version_0")["state"] == "stopped"


def test_no_record_where_there_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["fit", f"--config={CONFIG}", "--trainer.fast_dev_run=true"]) == 0
    assert list(tmp_path.rglob("run.json")) == []


def test_runs_are_listed_with_their_best_metric(tmp_path, capsys):
    records = {
        "net/version_10": {"started": "2026-01-02 03:04:05", "state": "finished", "epoch": 8, "step": 3440},
        "net/version_9": {"state": "training", "epoch": 1, "step": 430},
        "agent/version_0": {"metrics": {"test/return": 499.5}},
    }
    records["net/version_10"] |= {"best": {"metric": "val/accuracy", "value": 0.98765, "mode": "max"}}
    records["net/version_10"] |= {"metrics": {"test/accuracy": 0.9876, "test/loss": "nan"}}
    for name, record in records.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    for number, odd in enumerate(("[1]", "null", '{"best": 3}', '{"metrics": null}', "[" * 100_000)):
        (tmp_path / f"odd_{number}").mkdir()
        (tmp_path / f"odd_{number}" / "run.json").write_text(odd)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").touch()
    (tmp_path / "old" / "run.json").write_text("{")
    assert cli.main(["runs", str(tmp_path)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "started", "state", "epochs", "steps", "best", "test"]
    names = ["agent/version_0", "net/version_9", "net/version_10", *(f"odd_{number}" for number in range(5)), "old"]
    assert sorted(row.split()[0] for row in rows) == sorted(names)
    assert [row.split()[0] for row in rows if "net" in row] == ["net/version_9", "net/version_10"]
    rows = {row.split()[0]: row for row in rows}
    assert rows["net/version_10"].split()[1:] == [
        *("2026-01-02", "03:04:05", "finished", "8", "3440", "val/accuracy", "0.9877", "test/accuracy", "0.9876")
    ]
    assert "499.5" in rows["agent/version_0"]
    assert all("not recorded" in rows[name] for name in names[3:])


def test_folders_without_runs_are_one_line(tmp_path, capsys):
    assert "no folder" in fails(capsys, "runs", tmp_path / "nowhere")
    assert "no runs in" in fails(capsys, "runs", tmp_path)
    assert "there is no value for folder" in fails(capsys, "runs")
