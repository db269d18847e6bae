"""The command line, run as a user runs it."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import AGENTS, ROOT, fails, skip_without_extra
from lightning import Trainer

from datamodules import MNISTDataModule
from lit_models import Net
from lit_models.cli import main as cli
from lit_models.cli.errors import format_error

CONFIG = ROOT / "configs" / "mnist.yaml"
SHORT = ["--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1"]


# One of each kind of model and data; the others are slow tests.
QUICK = {
    "mnist",
    "cnn_mnist",
    "cnn_folder",
    "cnn_cifar10",
    "rnn_mnist",
    "rnn_csv",
    "face_orl",
    "dqn_cartpole",
    "sac_pendulum",
    "transformer_text",
}
CONFIGS = [
    pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow)
    for path in sorted((ROOT / "configs").glob("*.yaml"))
]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config_fits_two_steps_tests_and_reloads(config, own_data, tmp_path, capsys):
    agent = config.stem.startswith(AGENTS)
    skip_without_extra(config.stem)
    if config.stem == "face_olivetti":
        pytest.importorskip("sklearn", reason="needs the extra face-data")
    flags = [
        "--trainer.max_steps=2",
        "--trainer.limit_val_batches=1",
        f"--trainer.default_root_dir={tmp_path / 'logs'}",
    ]
    assert cli.main(["fit", f"--config={config}", *flags, *own_data.get(config.stem, [])]) == 0
    command = capsys.readouterr().out.splitlines()[-1].split()
    assert command[:5] == ["python", "-m", "lit_models", "test", "--ckpt_path"]
    assert cli.main([*command[3:], "--trainer.limit_test_batches=2"]) == 0
    expected = "test/return_min" if agent else "test/eer" if config.stem.startswith("face") else "test/loss"
    assert expected in capsys.readouterr().out
    saved = yaml.safe_load((tmp_path / "logs" / config.stem / "version_0" / "config.yaml").read_text())
    assert saved["name"] == config.stem
    asked = yaml.safe_load(config.read_text())["model"]["class_path"]
    package = "rl" if agent else "lit_models"
    assert (saved["model"]["class_path"], saved["ckpt_path"]) == (f"{package}.{asked}", None)
    few = ["--trainer.limit_predict_batches=2", f"--output={tmp_path / 'predicted.csv'}"]
    assert cli.main(["predict", *command[4:], *few]) == 0
    assert (tmp_path / "predicted.csv").read_text().count("\n") > 2


@pytest.mark.slow
def test_fit_then_the_command_it_prints(run, tmp_path):
    fitted = run("fit", "--config", CONFIG, "--trainer.max_epochs=1", *SHORT)
    assert fitted.returncode == 0, fitted.stderr
    assert "Traceback" not in fitted.stderr
    command = fitted.stdout.strip().splitlines()[-1].split()
    tested = run(*command[3:])
    assert tested.returncode == 0, tested.stderr
    assert "test/accuracy" in tested.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--model", "Nett"], "no class 'Nett'; did you mean 'Net'?"),
        (["fit", "--model", "Net", "--model.droput", "0.1"], "'droput'; did you mean 'dropout'?"),
        (["fit", f"--config={CONFIG}", "--model.optimizer", "SDG"], "no class 'SDG'; did you mean 'SGD'?"),
        (["fit", f"--config={CONFIG}", "--model.optimizer.lrr", "1"], "'lrr'; did you mean 'lr'?"),
        (["fit", f"--config={CONFIG}", "--trainer.max_epoch", "1"], "did you mean '--trainer.max_epochs'?"),
        (["fit", f"--config={CONFIG}", "--trainer.max_epochs", "x"], "trainer.max_epochs: 'x' is not int or null"),
        (["fit", f"--config={CONFIG}", "--data.variant", "KMNST"], "did you mean 'KMNIST'?"),
        (["fit", f"--conf={CONFIG}"], "'--conf'; did you mean '--config'?"),
        (["fit", f"--config={ROOT / 'configs' / 'minst.yaml'}"], "did you mean 'mnist.yaml'?"),
        (["fti"], "no command 'fti'; did you mean 'fit'?"),
        (["fit"], "no model: name one with"),
        (["test", f"--config={CONFIG}"], "test needs a trained model"),
        (["test", "--ckpt_path=nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["fit", f"--model={CONFIG}"], "mnist.yaml is the config of a whole run, not of --model alone: give it with"),
        (["fit", f"--config={CONFIG}", f"--trainer.logger={CONFIG}"], "names no class: give class_path"),
        (["fit", f"--config={CONFIG}", f"--data={ROOT}"], "is a file or folder, not a class: name the class"),
        (["fit", f"--config={CONFIG}", "--model.optimizer.lr=fast"], "lr: 'fast' is not float"),
        (["fit", f"--config={CONFIG}", "--model.mean=grey"], "mean: 'grey' is not float or list"),
        (
            ["fit", f"--config={CONFIG}", "--trainer.callbacks+=ProgressBar"],
            "there are several classes ProgressBar: give",
        ),
    ],
)
def test_mistakes_in_the_command_are_one_line_with_the_nearest_name(args, message, capsys):
    assert message in fails(capsys, *args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {class_path: Net, init_args: {droput: 0.1}}", "'droput'; did you mean 'dropout'?"),
        ("model: {class_path: lit_models.Nett}", "no lit_models.Nett; did you mean 'Net'?"),
        ("model: {class_path: nowhere.Net}", "no module nowhere"),
        ("modle: {class_path: Net}", "'modle.class_path'; did you mean 'model'?"),
        ("trainer: {max_epoch: 3}", "max_epoch'; did you mean"),
        ("model: [", "parsing config"),
        (
            "model:\n  class_path: Net\n  dropout: 0.1",
            "line 3: dropout stands beside class_path: it belongs below init_args",
        ),
        ("model:\n  class_path: Net\n  init_args:\n  dropout: 0.1", "line 4: dropout stands beside class_path"),
        ("model:\n  class_path: Net\n  init_args: 3", "line 3: init_args is 3: it must hold options by name"),
        ("model:\n  class_path: Net\ninit_args:\n  dropout: 0.1", "init_args stands by itself: indent it below model"),
        ("model:\n  Net:\n    dropout: 0.1", "Net stands as an option: a class is named by class_path"),
        ("trainer: {callbacks: {class_path: EarlyStopping, monitor: val/loss}}", "line 1: monitor stands beside"),
        ("model: Net\ntrainer:\n  max_epochs: 1\n  max_epochs: 3", "line 4: max_epochs stands a second time"),
        ("model: Net\noptimizer: {class_path: Adam}", "'optimizer.class_path'; did you mean '--model.optimizer'?"),
        ("optimizer: Adam", "no option 'optimizer'; did you mean '--model.optimizer'?"),
    ],
)
def test_mistakes_in_yaml_are_one_line_with_the_nearest_name(text, message, tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text(text)
    assert message in fails(capsys, "fit", "--config", tmp_path / "wrong.yaml")


def test_wrong_data_are_one_line(tmp_path, capsys):
    fit = ["fit", f"--config={CONFIG}", f"--trainer.default_root_dir={tmp_path / 'logs'}"]
    assert "set model.num_classes to 10" in fails(capsys, *fit, "--model.num_classes=5")
    assert "no train-images-idx3-ubyte" in fails(capsys, *fit, f"--data.data_dir={tmp_path}")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9]))
    assert "train-images-idx3-ubyte is" in fails(capsys, *fit, f"--data.data_dir={tmp_path}")
    empty = f"--data.data_dir={tmp_path / 'empty'}"
    assert "set download to true" in fails(capsys, *fit, "--data.variant=KMNIST", empty)


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        ("cnn_folder", ["--data.image_size=20"], "20x20 pixels, but CNN takes 28 or more"),
        ("cnn_folder", ["--data.grayscale=true"], "1 channel(s), but in_channels of CNN is 3"),
        (
            "cnn_folder",
            ["--model.num_classes=10"],
            "has 2 classes, but num_classes of CNN is 10: to train on them, set",
        ),
        ("cnn_folder", ["--data.root=nowhere"], "no folder nowhere: set data.root"),
        ("cnn_mnist", ["--model.in_channels=3"], "set model.in_channels to 1"),
        ("cnn_mnist", ["--model.num_classes=7"], "has 10 classes, but num_classes of CNN is 7"),
        ("mnist", ["--model.num_classes=11"], "set model.num_classes to 10"),
        (
            "rnn_mnist",
            ["--model.image_size=32"],
            "28x28 pixels, but RNNClassifier takes 32 along each side, or set model.image_size",
        ),
        ("rnn_csv", ["--data.context_length=60", "--data.horizon=80"], "has 72 rows, and one window takes 80"),
        ("rnn_csv", ["--data.columns=temprature"], "its columns are hour, temperature, constant"),
        ("rnn_csv", ["--data.columns=constant"], "column 'constant' is constant over the 336 training rows"),
        ("rnn_csv", ["--data.columns=[hour,temperature]"], "2 column(s), but input_dim is 1"),
        ("rnn_csv", ["--data.path=nowhere.csv"], "no file nowhere.csv"),
        ("rnn_csv", ["--model.cell=gur"], "did you mean 'gru'?"),
        ("rnn_csv", ["--data.context_length=0"], "error: context_length is 0: it must be at least 1"),
        ("rnn_csv", ["--model.std=0"], "error: std is 0.0: it must be above 0"),
        ("cnn_mnist", ["--model.image_size=20"], "error: image_size is 20: it must be at least 28"),
        ("mnist", ["--data.batch_size=0"], "error: batch_size is 0: it must be at least 1"),
        (
            "face_orl",
            ["--model=CNN", "--model.in_channels=1"],
            "FaceDataModule is for face recognition, but CNN for classification: choose other data",
        ),
        (
            "mnist",
            ["--model=FaceEmbedder"],
            "the images are 28x28 pixels, but FaceEmbedder takes 48",
        ),
        ("mnist", ["--model=RNN"], "or --model CNN, Net, RNNClassifier or ViT"),
        (
            "rnn_csv",
            ["--model=CNN"],
            "TimeSeriesDataModule is for forecasting, but CNN for classification: choose other data, or --model RNN or "
            "TransformerForecaster",
        ),
    ],
)
def test_data_that_do_not_fit_the_model_are_one_line(config, flags, message, own_data, tmp_path, capsys):
    fit = ["fit", f"--config={ROOT / 'configs' / config}.yaml", f"--trainer.default_root_dir={tmp_path / 'logs'}"]
    assert message in fails(capsys, *fit, *own_data.get(config, []), *flags)


def test_gaps_in_a_file_are_one_line(series, tmp_path, capsys):
    fit = ["fit", f"--config={ROOT / 'configs' / 'rnn_csv.yaml'}", f"--data.path={series}"]
    lines = series.read_text().splitlines()
    for cell, message in (("", "the value is missing"), ("warm", "'warm' is not a number")):
        series.write_text("\n".join([*lines[:9], f"8,{cell},7", *lines[10:]]))
        assert f"row 10, column 'temperature': {message}" in fails(capsys, *fit, "--data.columns=temperature")


def test_a_runs_own_config_resumes_it(series, tmp_path):
    flags = [f"--data.path={series}", "--data.columns=temperature", f"--trainer.default_root_dir={tmp_path / 'logs'}"]
    assert cli.main(["fit", f"--config={ROOT / 'configs' / 'rnn_csv.yaml'}", *flags, "--trainer.max_epochs=1"]) == 0
    run = tmp_path / "logs" / "rnn_csv" / "version_0"
    last = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    assert cli.main(["fit", f"--config={run / 'config.yaml'}", last]) == 0


def test_own_pictures_and_series_must_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for config, message in (
        ("cnn_folder", "no folder pictures: set data.root"),
        ("rnn_csv", "no file series.csv: set"),
    ):
        assert message in fails(capsys, "fit", f"--config={ROOT / 'configs' / config}.yaml")
    message = fails(capsys, "fit", "--model=CNN", "--data=ImageFolderDataModule")
    assert "root has no value: give one with --data.root" in message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--lr", "--model.optimizer.lr"),
        ("--optimizer", "--model.optimizer"),
        ("--epochs", "--trainer.max_epochs"),
        ("--max_epochs", "--trainer.max_epochs"),
        ("--batch_size", "--data.batch_size"),
        ("--root", "--data.root"),
        ("--dropout", "--model.dropout"),
        ("--gamma", "--model.gamma"),
        ("--device", "--trainer.accelerator"),
        ("--num-workers", "--data.num_workers"),
        ("--weight_decay", "--model.optimizer.weight_decay"),
    ],
)
def test_options_without_their_section_are_found(typed, meant, capsys):
    message = fails(capsys, "fit", "--model=Net", "--data=MNISTDataModule", typed, "3")
    assert f"there is no option '{typed}'; did you mean '{meant}'?" in message


def test_what_is_typed_for_something_else_is_told(last, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("day,v\n1,2\n")
    for args, message in (
        (["train", "--model=Net"], "there is no command 'train'; did you mean 'fit'?"),
        (["fit", "--model=cnn"], "model: there is no class 'cnn'; did you mean 'CNN'?"),
        (["fit", "--model=Net", "--data=MNIST"], "data: there is no class 'MNIST'; did you mean 'MNISTDataModule'?"),
        (["fit", "--model=RNN", "--data", "a.csv"], "--data a.csv is a file, not a class: name the class"),
        (["fit", "--model=Net", "--checkpoint", "last"], "no file last: .* or --ckpt_path to go on from a checkpoint"),
        (["fit", "-model", "Net"], "there is no option '-model'; did you mean '--model'?"),
        (["fit", "--model=Net", "my", "pictures"], "my stands by itself: name its option before it, or quote names"),
        (["predict", f"--ckpt_path={last}", "a.png"], r"a\.png stands by itself: .* \(pictures: --images\)"),
        (["test", f"--ckpt_path={last.parent.parent}"], f"version_0 is a folder: give {last}"),
        (["fit", "--model=Net"], "no data: name them with --data MNISTDataModule"),
    ):
        assert re.search(message, fails(capsys, *args)), args


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/acuracy"], "EarlyStopping watches"),
        (["--checkpoint.monitor=val_accuracy"], "RunCheckpoint watches val_accuracy"),
        (
            ["--model.lr_scheduler=ReduceLROnPlateau", "--model.lr_scheduler.monitor=train/los"],
            "ReduceLROnPlateau watches",
        ),
    ],
    ids=["callback", "checkpoint", "schedule"],
)
def test_a_metric_that_is_not_logged_is_known_before_training(options, message, tmp_path, capsys):
    args = ["fit", "--model=Net", "--data=MNISTDataModule", f"--trainer.default_root_dir={tmp_path}", *SHORT]
    line = fails(capsys, *args, *options)
    assert message in line
    assert "; did you mean '" in line
    assert "; logged are train/accuracy, train/loss, train/loss_step, train/lr, val/accuracy, " in line
    assert not list(tmp_path.glob("Net/version_0/checkpoints/*"))


def test_metrics_of_validation_and_training_can_be_watched(tmp_path):
    args = ["fit", "--model=Net", "--data=MNISTDataModule", f"--trainer.default_root_dir={tmp_path}", *SHORT]
    args += ["--trainer.max_epochs=1"]
    for monitor in ("val/accuracy", "train/loss"):
        assert cli.main([*args, "--trainer.callbacks+=EarlyStopping", f"--trainer.callbacks.monitor={monitor}"]) == 0


def test_the_worst_taken_for_the_best_is_warned_of(tmp_path, recwarn):
    args = ["fit", "--model=Net", "--data=MNISTDataModule", f"--trainer.default_root_dir={tmp_path}", *SHORT]
    args += ["--trainer.max_epochs=1", "--checkpoint.monitor=val/accuracy", "--checkpoint.mode=max"]
    monitor = "--trainer.callbacks.monitor=val/accuracy"
    assert cli.main([*args, "--trainer.callbacks+=EarlyStopping", monitor]) == 0
    (said,) = (str(warning.message) for warning in recwarn if "the worst" in str(warning.message))
    assert said == (
        "EarlyStopping watches val/accuracy with mode min, which takes the worst for the best: set its mode to max"
    )


def test_home_is_found_in_options_and_configs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    missing = f"no folder {tmp_path / 'nowhere'}"
    assert missing in fails(capsys, "fit", "--model=CNN", "--data=ImageFolderDataModule", "--data.root=~/nowhere")
    (tmp_path / "own.yaml").write_text(
        "model: CNN\ndata: {class_path: ImageFolderDataModule, init_args: {root: ~/nowhere}}\n"
    )
    assert missing in fails(capsys, "fit", "--config=~/own.yaml")


def test_help_of_the_trainer_stands_apart(capsys):
    helps = []
    for option in ("--help", "--help.trainer", "--help.checkpoint"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", option])
        assert stop.value.code == 0
        helps.append(capsys.readouterr().out)
    assert helps[0].count("\n") < 150
    assert "--model.help" in helps[0]
    assert "or auto, which starts afresh" in " ".join(helps[0].split())
    assert "--trainer.num_nodes" not in helps[0]
    assert "--trainer.num_nodes" in helps[1]
    assert "--checkpoint.monitor MONITOR" in helps[2]


def test_every_epoch_leaves_a_line_with_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    args = ["fit", f"--config={CONFIG}", f"--trainer.default_root_dir={tmp_path}", *SHORT, "--trainer.max_epochs=4"]
    assert cli.main([*args, "--trainer.check_val_every_n_epoch=2"]) == 0
    printed = capsys.readouterr()
    assert "smaller than the logging interval" not in printed.err
    assert "SGD, peak learning rate 0.1, OneCycleLR over 12 steps" in printed.err
    lines = [line for line in printed.out.splitlines() if line.startswith("Epoch") and "train loss" in line]
    train, val = (rf"{stage} loss \d\.\d{{4}} accuracy +\d+\.\d\d%" for stage in ("train", "val"))
    for epoch, line in enumerate(lines):
        assert re.fullmatch(rf"Epoch {epoch}/3  {train}" + (f"  {val}" if epoch % 2 else ""), line)
        assert len(line) <= 80
    assert len(lines) == 4
    assert re.search(r"Best checkpoint \(val/accuracy \d+\.\d\d%\)", printed.out)
    test = ["test", f"--config={CONFIG}", f"--trainer.default_root_dir={tmp_path}", "--ckpt_path=last"]
    assert cli.main([*test, "--trainer.limit_test_batches=1"]) == 0
    assert re.search(r"test/accuracy +\d+\.\d\d%\n", capsys.readouterr().out)


def test_several_pictures_and_folders_are_classified(last, pets, tmp_path):
    output = tmp_path / "predictions.csv"
    one, two = pets / "cat" / "03.png", pets / "dog" / "04.png"
    args = ["predict", f"--ckpt_path={last}", f"--output={output}", "--images", str(two), str(one), str(pets / "dog")]
    assert cli.main(args) == 0
    rows = list(csv.DictReader(output.open()))
    assert [row["file"] for row in rows] == [str(two), str(one), *map(str, sorted((pets / "dog").iterdir()))]


def test_a_config_file_by_itself_is_a_hint(capsys):
    assert "configs/mnist.yaml stands by itself: give a config file with --config configs/mnist.yaml" in fails(
        capsys, "fit", "configs/mnist.yaml"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model:\n\tclass_path: Net\n", ", line 2: found character '\\t' that cannot start any token: indent with"),
        (b"model:\n  class_path: Net\n  init_args:\n    dropout: 0\n   mean: 0\n", ", line 5: expected <block end>"),
        (b"", " is empty: it must have sections such as model and data"),
        (b"- model\n", " holds a list: it must have sections"),
        (b"\xff\xfe", " is not UTF-8 text (invalid start byte at byte 0)"),
    ],
)
def test_faults_of_a_config_file_name_it_and_the_line(content, message, tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_bytes(content)
    assert f"{tmp_path / 'wrong.yaml'}{message}" in fails(capsys, "fit", f"--config={tmp_path / 'wrong.yaml'}")


@pytest.mark.parametrize(
    "where",
    [
        ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=mylogs"],
        ["--trainer.logger=TensorBoardLogger", "--trainer.logger.save_dir=mylogs", "--trainer.logger.name=mine"],
        ["--checkpoint.dirpath=ckpts"],
        ["--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.dirpath=own"],
    ],
    ids=["csv", "tensorboard", "folder", "callback"],
)
def test_last_and_auto_look_where_the_run_keeps_its_checkpoints(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--model=Net", "--data=MNISTDataModule", *SHORT, *where]
    assert cli.CLI([*fit, "--ckpt_path=auto", "--trainer.max_epochs=1"]).trainer.global_step == 3
    for number, path in enumerate(("last", "auto"), 2):
        resumed = cli.CLI([*fit, f"--ckpt_path={path}", f"--trainer.max_epochs={number}"]).trainer
        assert resumed.global_step == 3 * number
    test = ["test", "--model=Net", "--data=MNISTDataModule", "--trainer.limit_test_batches=1", "--ckpt_path=last"]
    assert cli.main([*test, *where]) == 0


def test_last_is_found_whatever_a_test_logs_to(last, tmp_path):
    args = ["test", "--config", str(CONFIG), f"--trainer.default_root_dir={last.parents[3]}", "--ckpt_path=last"]
    args += ["--trainer.limit_test_batches=1"]
    assert cli.main([*args, "--trainer.logger=false"]) == 0
    assert cli.main([*args, "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}"]) == 0


def test_last_and_auto_are_refused_where_they_cannot_be_known(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    logger = "--trainer.logger=lightning.pytorch.loggers.logger.DummyLogger"
    message = fails(capsys, "fit", "--model=Net", "--data=MNISTDataModule", logger, "--ckpt_path=auto")
    assert "where a run with DummyLogger keeps its checkpoints is not known: name one" in message


def test_no_command_lists_all(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    listed = capsys.readouterr().out
    assert all(verb in listed for verb in ("fit", "predict", "export", "identify"))


def test_a_class_may_come_after_its_options(pets, capsys):
    options = ["--data.root", str(pets), "--data", "ImageFolderDataModule", "--model.num_classes=2", "--model=CNN"]
    few = ["--trainer.fast_dev_run=true"]
    assert cli.main(["fit", *options, *few]) == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model.optimizer=AdamW"], {"lr": 3e-3, "betas": [0.9, 0.999], "weight_decay": 0.01}),
        (["--model.optimizer=AdamW", "--model.optimizer.weight_decay=0"], {"weight_decay": 0}),
        (["--model.optimizer=pytorch_optimizer.SOAP"], {"betas": [0.95, 0.95]}),
        (["--model.optimizer.lr=0.5", "--model.optimizer=SGD"], {"lr": 0.5, "momentum": 0}),
        (["--model.optimizer.eps=1e-5"], {"lr": 3e-3, "eps": 1e-5, "weight_decay": 0}),
    ],
)
def test_another_optimizer_has_its_own_defaults(flags, expected, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["fit", "--model=RNN", "--data=TimeSeriesDataModule", *flags, "--print_config"])
    options = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]["init_args"]
    assert {name: options[name] for name in expected} == expected


def test_a_single_picture_is_predicted(last, pets, tmp_path):
    picture = next(pets.rglob("*.png"))
    assert cli.main(["predict", f"--ckpt_path={last}", f"--images={picture}", f"--output={tmp_path / 'one.csv'}"]) == 0
    with open(tmp_path / "one.csv", newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [str(picture)]


def test_log_directory_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    message = fails(capsys, "fit", f"--config={CONFIG}", f"--trainer.default_root_dir={tmp_path / 'file'}")
    assert "cannot write to" in message
    assert "--trainer.default_root_dir" in message


def test_checkpoints_that_are_refused(last, tmp_path, capsys):
    cut = tmp_path / "cut.ckpt"
    for size in (0, 100, last.stat().st_size // 2, last.stat().st_size - 1):
        cut.write_bytes(last.read_bytes()[:size])
        assert "cut short" in fails(capsys, "test", "--ckpt_path", cut)

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "run"),))

    content = torch.load(last, weights_only=True)
    for value, kind in (
        (Evil(), "posix.mkdir"),
        (np.float64(1), "numpy._core.multiarray.scalar"),
        (np.zeros(2), "numpy.ndarray"),
        ([{"a": Path("x")}], "pathlib.PosixPath"),
        (type("Made", (), {"__module__": "builtins", "__reduce__": lambda self: (eval, ("1",))})(), "__builtin__.eval"),
    ):
        torch.save(content | {"hyper_parameters": {"a": 1, "mean": value}}, tmp_path / "evil.ckpt")
        message = fails(capsys, "test", "--ckpt_path", tmp_path / "evil.ckpt")
        assert "contains code" in message
        assert f"hyper_parameters.mean{'.0.a' if isinstance(value, list) else ''} is a {kind}" in message
    assert not (tmp_path / "run").exists()
    torch.save({"weights": torch.ones(1)}, tmp_path / "other.ckpt")
    assert "not a Lightning checkpoint" in fails(capsys, "test", "--ckpt_path", tmp_path / "other.ckpt")


def test_another_class_and_a_changed_run_are_refused(last, capsys):
    other = "lightning.pytorch.demos.boring_classes.BoringModel"
    for verb in ("fit", "test"):
        assert "holds lit_models.Net" in fails(capsys, verb, "--ckpt_path", last, "--model", other)
    resume = ["fit", f"--config={CONFIG}", f"--ckpt_path={last}"]
    assert "model.dropout: 0.0 -> 0.3" in fails(capsys, *resume, "--model.dropout=0.3")
    assert "model.optimizer.lr: 0.1 -> 0.2" in fails(capsys, *resume, "--model.optimizer.lr=0.2")
    assert "data.batch_size: 128 -> 3" in fails(capsys, *resume, "--data.batch_size=3")
    assert "seed_everything: 0 -> 1" in fails(capsys, *resume, "--seed_everything=1")
    assert "ends after 120 steps" in fails(
        capsys, *resume, "--trainer.max_epochs=3", "--trainer.limit_train_batches=60"
    )


def test_a_network_that_the_checkpoint_does_not_fit_is_refused(last, capsys):
    message = fails(capsys, "test", f"--ckpt_path={last}", "--model.hidden_features=20")
    assert "does not fit the model" in message
    assert "classifier.1.weight" in message


def test_a_checkpoint_in_a_config_file_is_not_passed_over(last, tmp_path, capsys):
    (tmp_path / "resume.yaml").write_text(f"ckpt_path: {last}")
    message = fails(capsys, "fit", f"--config={CONFIG}", f"--config={tmp_path / 'resume.yaml'}")
    assert f"give --ckpt_path {last}" in message


@pytest.mark.parametrize("option", ["--config=", "-c"])
def test_flags_win_over_the_checkpoint_and_the_checkpoint_over_files(option, last, tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text(
        "model: {class_path: Net, init_args: {dropout: 0.9, mean: 0.9}}\ndata: {class_path: MNISTDataModule}"
    )
    flags = ["--model.mean=0.5", "--data.batch_size=1000", "--trainer.limit_test_batches=1"]
    command = cli.CLI(["test", f"{option}{file}", f"--ckpt_path={last}", *flags])
    assert (command.model.hparams.dropout, command.model.hparams.mean) == (0.0, 0.5)
    assert (command.datamodule.hparams.batch_size, command.datamodule.hparams.rotation) == (1000, 10)


def test_checkpoint_of_a_python_trainer_tests_alone(tmp_path, capsys):
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=1, default_root_dir=tmp_path, limit_val_batches=0, **options)
    trainer.fit(Net(hidden_features=20), datamodule=MNISTDataModule(batch_size=16))
    trainer.save_checkpoint(tmp_path / "python.ckpt")
    flags = ["--trainer.limit_test_batches=1", f"--trainer.default_root_dir={tmp_path}"]
    command = cli.CLI(["test", f"--ckpt_path={tmp_path / 'python.ckpt'}", *flags])
    assert command.model.hparams.hidden_features == 20
    assert command.datamodule.hparams.batch_size == 16


def test_last_and_auto(tmp_path, capsys):
    config = f"--config={ROOT / 'configs' / 'mnist_article.yaml'}"
    fit = ["fit", config, f"--trainer.default_root_dir={tmp_path}", *SHORT]
    assert "there is no" in fails(capsys, *fit, "--ckpt_path=last")
    for epochs in (1, 2):
        assert cli.main([*fit, "--ckpt_path=auto", f"--trainer.max_epochs={epochs}"]) == 0
        content = torch.load(tmp_path / "mnist_article/version_0/checkpoints/last.ckpt", weights_only=True)
        assert content["global_step"] == 3 * epochs
    assert [path.name for path in (tmp_path / "mnist_article").iterdir()] == ["version_0"]
    flags = [f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_test_batches=1"]
    assert cli.main(["test", config, "--ckpt_path=last", *flags]) == 0


def test_defaults_step_aside(tmp_path):
    flags = [f"--config={CONFIG}", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1", *SHORT]
    off = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
    assert cli.main(["fit", *flags, *off]) == 0
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["fit", *flags, "--trainer.fast_dev_run=true"]) == 0
    assert list(tmp_path.rglob("*.ckpt")) == []
    own = tmp_path / "own.yaml"
    own.write_text("trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {save_top_k: 0}}]}")
    command = cli.CLI(["fit", *flags, f"--config={own}"])
    assert [type(callback).__name__ for callback in command.trainer.checkpoint_callbacks] == ["ModelCheckpoint"]


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
@pytest.mark.slow
def test_stopped_runs_leave_a_checkpoint_that_goes_on(stop, status, run, tmp_path):
    flags = ["fit", "--config", CONFIG, "--trainer.max_epochs=1", "--trainer.limit_val_batches=1"]
    flags += ["--data.batch_size=16"]  # many steps, so that it is not over before it is stopped
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    often = ["--checkpoint.monitor=null", "--checkpoint.every_n_train_steps=10"]
    command = [sys.executable, "-m", "lit_models", *map(str, flags), *often]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, and inherited so, where tests run in background
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    signal.signal(signal.SIGINT, handler)
    checkpoint = tmp_path / "logs" / "mnist" / "version_0" / "checkpoints" / "last.ckpt"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.05)  # until training is under way
    process.send_signal(stop)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < 3438
    assert f"Stopped after step {step}" in errors.decode()
    resumed = run("fit", "--ckpt_path", checkpoint)
    assert resumed.returncode == 0, resumed.stderr
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3438
    assert len(list(checkpoint.parent.iterdir())) == 2  # the best and the last: none is left behind


def test_exception_leaves_a_checkpoint(tmp_path, monkeypatch, capsys):
    def fail(self, batch, batch_idx):
        if batch_idx == 2:
            raise OSError("the disk is gone")
        return step(self, batch, batch_idx)

    step = Net.training_step
    monkeypatch.setattr(Net, "training_step", fail)
    assert "the disk is gone" in fails(capsys, "fit", f"--config={CONFIG}", f"--trainer.default_root_dir={tmp_path}")
    content = torch.load(tmp_path / "mnist/version_0/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 2


def test_predict_without_images_is_the_test_set(last, tmp_path):
    output = tmp_path / "new" / "F.csv"
    assert cli.main(["predict", f"--ckpt_path={last}", f"--output={output}"]) == 0
    with output.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == [str(index) for index in range(10_000)]
    data = MNISTDataModule()
    data.setup("test")
    model = Net.load_from_checkpoint(last, weights_only=True).cpu().eval()
    with torch.no_grad():
        truth = model(data.test_set.images[:500]).softmax(1)
    for row, probabilities in zip(rows, truth, strict=False):
        assert row["label"] == str(int(probabilities.argmax()))
        assert [float(row[str(digit)]) for digit in range(10)] == pytest.approx(probabilities.tolist(), abs=1e-4)


@pytest.mark.slow
def test_mnist_config_learns(tmp_path):
    command = cli.CLI(["fit", f"--config={CONFIG}", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=3"])
    result = command.trainer.test(command.model, datamodule=command.datamodule)
    assert result[0]["test/accuracy"] >= 0.988


def test_predictions_that_are_no_rows_are_one_line(last, tmp_path, monkeypatch, capsys):
    output = tmp_path / "predictions.csv"
    for wrong, kind in ((None, "NoneType"), ("cat", "str"), ((torch.zeros(2), torch.zeros(3)), "tuple")):
        monkeypatch.setattr(Net, "predict_step", lambda self, batch, batch_idx, wrong=wrong: wrong)
        message = fails(capsys, "predict", f"--ckpt_path={last}", f"--output={output}")
        assert f"predict_step of Net returns {kind}: to be written to a file, it must be a list of rows" in message
        assert list(tmp_path.iterdir()) == []


def test_tensors_of_a_predict_step_of_ones_own_are_written(last, tmp_path, monkeypatch):
    few, output = ["--trainer.limit_predict_batches=2", "--data.batch_size=3"], tmp_path / "predictions.csv"
    results = {
        "logits": lambda logits: logits.bfloat16(),
        "label": lambda logits: logits.argmax(1),
        "both": lambda logits: {"name": ["a", "b", "c"], "logits": logits, "image": logits[:, :4].view(3, 2, 2)},
    }
    rows = {}
    for name, result in results.items():
        monkeypatch.setattr(Net, "predict_step", lambda self, batch, batch_idx, result=result: result(self(batch[0])))
        assert cli.main(["predict", f"--ckpt_path={last}", f"--output={output}", *few]) == 0
        rows[name] = list(csv.DictReader(output.open()))
        assert [row["index"] for row in rows[name]] == [str(number) for number in range(6)]
    logits = [[float(row[f"logits_{digit}"]) for digit in range(10)] for row in rows["both"]]
    assert [[float(row[f"prediction_{digit}"]) for digit in range(10)] for row in rows["logits"]] == [
        pytest.approx(row, rel=0.01) for row in logits
    ]
    assert [int(row["prediction"]) for row in rows["label"]] == [int(np.argmax(row)) for row in logits]
    assert [row["name"] for row in rows["both"]] == list("abcabc")
    assert [float(rows["both"][4][f"image_{pixel}"]) for pixel in range(4)] == logits[4][:4]


def test_an_error_of_another_process_is_its_last_line():
    def fail(rank, reason):
        raise ValueError(reason)

    with pytest.raises(torch.multiprocessing.ProcessRaisedException) as raised:
        torch.multiprocessing.start_processes(fail, ("no such thing: mend it",), start_method="fork")
    assert format_error(str(raised.value)) == "no such thing: mend it"


def test_the_best_checkpoint_of_the_newest_run_is_found(tmp_path, capsys):
    config = [f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    few = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
    frozen = ["--model.optimizer.lr=0", "--model.optimizer.weight_decay=0"]  # the first epoch stays the best
    assert cli.main(["fit", *config, *few, *frozen]) == 0
    for name, epoch in (("best", "epoch=0-step=2.ckpt"), ("last", "last.ckpt")):
        command = cli.CLI(["validate", *config, f"--ckpt_path={name}", "--trainer.limit_val_batches=1"])
        assert Path(command.config.validate.ckpt_path).name == epoch
    said = fails(capsys, "fit", *config, "--ckpt_path=best")
    assert said.endswith("--ckpt_path best is to evaluate and to predict with: training goes on from last")
    next(tmp_path.rglob("epoch=0*.ckpt")).unlink()
    assert "epoch=0-step=2.ckpt is gone: take last instead" in fails(capsys, "test", *config, "--ckpt_path=best")
    assert cli.main(["fit", *config, *few[:2], "--checkpoint.monitor=null", "--trainer.max_epochs=1"]) == 0
    assert "has none, since nothing is watched: take last instead" in fails(capsys, "test", *config, "--ckpt_path=best")
