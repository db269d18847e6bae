"""Learning-rate schedules: peaks that are the optimizer's, and those that look at a metric."""

import math
from functools import partial

import pytest
import torch
import yaml
from conftest import ROOT, fails
from lightning import Trainer, seed_everything
from registry import MODELS

from lit_models import Net
from lit_models.cli import main as cli
from lit_models.training.schedule import OneCycleLR, ReduceLROnPlateau

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
NEVER_BETTER = {"patience": 0, "factor": 0.1, "threshold": 0.99}
SHORT = ["--trainer.max_epochs=3", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]


def rates(row, schedule):
    """The learning rate before and after three epochs."""
    seed_everything(0)
    model = row.make(optimizer=partial(torch.optim.Adam, lr=1e-3), lr_scheduler=schedule)
    trainer = Trainer(accelerator="cpu", max_epochs=3, limit_train_batches=1, limit_val_batches=1, **QUIET)
    trainer.fit(model, datamodule=row.data())
    (group,) = trainer.optimizers[0].param_groups
    return 1e-3, group["lr"]


@pytest.mark.parametrize("name", [name for name, row in MODELS.items() if row.kind.task != "reinforcement learning"])
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


def test_an_agents_cycle_lasts_for_all_steps_of_the_optimizer():
    model = MODELS["DQN"].make(lr_scheduler=OneCycleLR)
    trainer = Trainer(accelerator="cpu", max_epochs=20, max_steps=10, limit_val_batches=0, **QUIET)
    trainer.fit(model)
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert schedule.total_steps == schedule.last_epoch == 12 == 3 * model.hparams.gradient_steps  # whole training steps


@pytest.mark.parametrize("name", ["Net", "DQN"])
def test_a_plateau_waits_for_sparse_validations(name):
    watched = {"monitor": "val/loss"}
    if name == "DQN":  # a return may double by chance
        watched = {"monitor": "eval/return", "mode": "max", "threshold": 1000.0}
    plateau = partial(ReduceLROnPlateau, **NEVER_BETTER | watched)
    model = MODELS[name].make(optimizer=partial(torch.optim.Adam, lr=1e-3), lr_scheduler=plateau)
    options = {"max_epochs": 6, "check_val_every_n_epoch": 2, "limit_train_batches": 1, "limit_val_batches": 1}
    trainer = Trainer(accelerator="cpu", **options, **QUIET)
    trainer.fit(model, datamodule=MODELS[name].data())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.1**2)  # at the second and the third


def flags(tmp_path):
    config = f"--config={ROOT / 'configs' / 'mnist.yaml'}"
    return ["fit", config, *SHORT, f"--trainer.default_root_dir={tmp_path}"]


NAMES = ["ReduceLROnPlateau", "torch.optim.lr_scheduler.ReduceLROnPlateau", "lightning.pytorch.cli.ReduceLROnPlateau"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("where", ["command", "file"])
def test_a_plateau_by_its_names_from_the_command_line_and_a_file(name, where, tmp_path, capsys):
    options = {"monitor": "train/loss", **NEVER_BETTER}
    given = [f"--model.lr_scheduler={name}", *(f"--model.lr_scheduler.{key}={options[key]}" for key in options)]
    if where == "file":
        content = {"model": {"init_args": {"lr_scheduler": {"class_path": name, "init_args": options}}}}
        (tmp_path / "plateau.yaml").write_text(yaml.safe_dump(content))
        given = [f"--config={tmp_path / 'plateau.yaml'}"]
    command = cli.CLI([*flags(tmp_path), *given])
    assert command.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)
    message = fails(capsys, *flags(tmp_path), *given, "--model.lr_scheduler.monitor=train/los")
    assert "ReduceLROnPlateau watches train/los, which is not logged; did you mean 'train/loss'?" in message


def peaks(optimizer, **options):
    """The greatest learning rate, and the greatest and least momentum, of ten steps of a cycle."""
    optimizing = optimizer([torch.nn.Parameter(torch.zeros(1))])
    schedule, found = OneCycleLR(optimizing, total_steps=10, **options), []
    for _ in range(10):
        (group,) = optimizing.param_groups
        found.append((group["lr"], group["betas"][0] if "betas" in group else group["momentum"]))
        optimizing.step()
        schedule.step() if len(found) < 10 else None
    rates, momenta = zip(*found, strict=True)
    return max(rates), max(momenta), min(momenta)


SGD = partial(torch.optim.SGD, lr=0.2)


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        (partial(SGD, momentum=0.9), {}, (0.2, 0.9, 0.85)),
        (partial(SGD, momentum=0.9), {"cycle_momentum": False}, (0.2, 0.9, 0.9)),
        (partial(SGD, momentum=0.9), {"max_lr": 0.1, "max_momentum": 0.95}, (0.1, 0.95, 0.85)),
        (partial(SGD, momentum=0.5), {}, (0.2, 0.5, 0.5)),
        (SGD, {}, (0.2, 0.0, 0.0)),
        (partial(torch.optim.Adam, lr=0.01, betas=(0.95, 0.99)), {"base_momentum": 0.7}, (0.01, 0.95, 0.7)),
    ],
)
def test_peaks_of_a_cycle_are_the_optimizers(optimizer, options, expected):
    assert peaks(optimizer, **options) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(("steps", "share"), [(10, 0.1), (5, 0.2), (2, 0.5)])
def test_a_cycle_may_rise_in_a_single_step(steps, share):
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], momentum=0.9)
    schedule = OneCycleLR(optimizer, total_steps=steps, pct_start=share)
    rates = []
    for _ in range(steps - 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(math.isfinite(rate) for rate in rates)


def test_a_cycle_of_a_momentum_that_is_not_there_is_one_line(tmp_path, capsys):
    message = fails(capsys, *flags(tmp_path), "--model.optimizer=Adagrad")
    assert "Adagrad has no momentum: set cycle_momentum of OneCycleLR to false" in message


def test_pytorchs_own_cycle_takes_the_optimizers_rate(tmp_path):
    model = Net(optimizer=SGD, lr_scheduler=partial(torch.optim.lr_scheduler.OneCycleLR, pct_start=0.1))
    trainer = Trainer(accelerator="cpu", max_epochs=3, limit_train_batches=1, limit_val_batches=0, **QUIET)
    trainer.fit(model, datamodule=MODELS["Net"].data())
    assert trainer.optimizers[0].param_groups[0]["max_lr"] == 0.2


def test_pytorchs_own_cycle_may_be_told_its_epochs(tmp_path):
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, epochs=5, steps_per_epoch=4)
    trainer = Trainer(accelerator="cpu", max_epochs=3, limit_train_batches=1, limit_val_batches=0, **QUIET)
    trainer.fit(Net(optimizer=SGD, lr_scheduler=cycle), datamodule=MODELS["Net"].data())
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert (schedule.total_steps, schedule.last_epoch) == (20, 3)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        (partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=5), "OneCycleLR over 5 epochs"),
        (partial(torch.optim.lr_scheduler.StepLR, step_size=2), "StepLR, stepped every epoch"),
    ],
)
def test_whether_a_schedule_is_of_steps_or_epochs_is_said(schedule, said, caplog):
    trainer = Trainer(accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=0, **QUIET)
    with caplog.at_level("INFO", logger="lit_models"):
        trainer.fit(Net(optimizer=SGD, lr_scheduler=schedule), datamodule=MODELS["Net"].data())
    assert said in caplog.text


def test_another_optimizer_learns_with_its_own_rate(tmp_path):
    rate = ["--model.optimizer=Adam", "--model.optimizer.lr=1e-3", "--trainer.limit_train_batches=100"]
    command = cli.CLI([*flags(tmp_path), *rate, "--trainer.limit_val_batches=5"])
    assert command.trainer.callback_metrics["val/accuracy"] > 0.85
