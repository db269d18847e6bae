"""What a run has written, read back with TensorBoard's own reader."""

import pytest
from conftest import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_models.cli import main as cli


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A run that was trained, validated and tested."""
    folder = tmp_path_factory.mktemp("board")
    config = f"--config={ROOT / 'configs' / 'mnist.yaml'}"
    flags = [
        f"--trainer.default_root_dir={folder}",
        "--trainer.limit_train_batches=60",
        "--trainer.limit_val_batches=4",
    ]
    assert cli.main(["fit", config, *flags, "--trainer.max_epochs=2"]) == 0
    last = f"--ckpt_path={folder / 'mnist' / 'version_0' / 'checkpoints' / 'last.ckpt'}"
    for verb in ("validate", "test"):
        assert cli.main([verb, last, "--trainer.limit_val_batches=4", "--trainer.limit_test_batches=4"]) == 0
    events = EventAccumulator(str(folder / "mnist" / "version_0"), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def test_curves(board):
    tags = {"train/loss", "train/loss_step", "train/accuracy", "train/lr", "throughput/samples_per_second"}
    tags |= {f"{stage}/{name}" for stage in ("val", "test") for name in ("loss", "accuracy")}
    assert tags <= set(board.Tags()["scalars"])
    assert "hp_metric" not in board.Tags()["scalars"]
    assert [event.step for event in board.Scalars("train/accuracy")] == [59, 119]
    assert [event.step for event in board.Scalars("val/accuracy")] == [59, 119, 120]
    assert [event.step for event in board.Scalars("test/accuracy")] == [120]
    assert [event.value for event in board.Scalars("epoch")][-2:] == [1, 1]  # of validate and test: not back at 0
    assert board.Scalars("val/accuracy")[1].value == board.Scalars("val/accuracy")[2].value
    assert all(event.value > 0 for event in board.Scalars("throughput/samples_per_second"))


def test_pictures(board):
    evaluated = {f"{stage}/{name}" for stage in ("val", "test") for name in ("confusion", "mistakes")}
    assert set(board.Tags()["images"]) == evaluated | {"train/filters"}
    assert [event.step for event in board.Images("train/filters")] == [60, 120]
    assert [event.step for event in board.Images("test/mistakes")] == [120]
    assert all(event.width > 300 for event in board.Images("val/confusion"))


def test_pictures_of_forecasts(tmp_path):
    config = f"--config={ROOT / 'configs' / 'rnn_mackey_glass.yaml'}"
    flags = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=50", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(["fit", config, *flags, "--trainer.limit_val_batches=1"]) == 0
    last = next(tmp_path.rglob("last.ckpt"))
    assert cli.main(["test", f"--ckpt_path={last}", "--trainer.limit_test_batches=1"]) == 0
    events = EventAccumulator(str(tmp_path / "rnn_mackey_glass" / "version_0")).Reload()
    names = {f"{stage}/{name}" for stage in ("val", "test") for name in ("forecast", "horizon")}
    assert set(events.Tags()["images"]) == names
    tags = {"train/loss", "train/lr", "throughput/samples_per_second", "val/loss", "val/nrmse", "val/nrmse_free"}
    assert tags <= set(events.Tags()["scalars"])


def test_graph(board):
    assert board.Tags()["graph"]


def test_hyperparameters(board):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    contents = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    found = HParamsPluginData.FromString(contents).session_start_info.hparams
    assert found["model.optimizer"].string_value == "torch.optim.SGD"
    assert found["model.optimizer.lr"].number_value == pytest.approx(0.1)
    assert found["model.lr_scheduler"].string_value == "lit_models.training.schedule.OneCycleLR"
    assert found["data.rotation"].number_value == 10
