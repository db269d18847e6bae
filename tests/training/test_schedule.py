"""Learning-rate schedules that look at a metric."""

from functools import partial

import pytest
import torch
from conftest import ROOT, fails
from lightning import Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from registry import MODELS

from lit_models.cli import main as cli

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
NEVER_BETTER = {"patience": 0, "factor": 0.1, "threshold": 0.99}
SHORT = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]


def rates(row, schedule):
    """The learning rate before and after three epochs."""
    model = row.make(optimizer=partial(torch.optim.Adam, lr=1e-3), lr_scheduler=schedule)
    trainer = Trainer(accelerator="cpu", max_epochs=3, limit_train_batches=1, limit_val_batches=1, **QUIET)
    trainer.fit(model, datamodule=row.data())
    (group,) = trainer.optimizers[0].param_groups
    return 1e-3, group["lr"]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "DQN"])
def test_a_plateau_of_the_loss_lowers_the_learning_rate(name):
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    if name == "FaceEmbedder":  # which compares people in validation, and has no loss there
        plateau = partial(ReduceLROnPlateau, monitor="train/loss")
    before, after = rates(MODELS[name], partial(plateau, **NEVER_BETTER))
    assert after == pytest.approx(before * 0.1**2)  # the first epoch is the best so far


def test_a_plateau_of_an_agents_return_lowers_its_learning_rate():
    before, after = rates(MODELS["DQN"], partial(ReduceLROnPlateau, monitor="eval/return", mode="max", **NEVER_BETTER))
    assert after < before
    with pytest.raises(ValueError, match=r"watches val/loss, which is not logged: set .*monitor to one of .*return"):
        rates(MODELS["DQN"], torch.optim.lr_scheduler.ReduceLROnPlateau)


def test_from_the_command_line(tmp_path, capsys):
    config = f"--config={ROOT / 'configs' / 'mnist.yaml'}"
    flags = ["fit", config, *SHORT, f"--trainer.default_root_dir={tmp_path}"]
    options = [f"--model.lr_scheduler.{name}={value}" for name, value in NEVER_BETTER.items()]
    plateau = "--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau"
    command = cli.CLI([*flags, plateau, "--model.lr_scheduler.monitor=train/loss", *options])
    assert command.trainer.optimizers[0].param_groups[0]["lr"] < 0.05
    assert "conditioned on metric val/los which is not" in fails(
        capsys, *flags, plateau, "--model.lr_scheduler.monitor=val/los"
    )
    message = fails(capsys, *flags, "--model.lr_scheduler=ReduceLROnPlateau")
    assert "several classes ReduceLROnPlateau: give one of torch.optim.lr_scheduler.Reduce" in message
