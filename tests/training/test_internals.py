"""Names that are private in other libraries, and must be there."""

import ast
import inspect

import pytest
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.core.mixins import HyperparametersMixin
from lightning.pytorch.plugins.precision import HalfPrecision

from lit_models.cli.main import CLI
from lit_models.training import internals
from lit_models.training.resume import RunCheckpoint


def private_names(kind):
    """The private attributes that a class's source uses or defines, but does not set itself."""
    tree = ast.parse(inspect.getsource(kind))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _own(node.value)}
    used |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {name for name in used if name.startswith("_") and not name.startswith("__")}


def _own(value):
    return isinstance(value, ast.Name) or (isinstance(value, ast.Call) and getattr(value.func, "id", "") == "super")


@pytest.mark.parametrize(
    ("kind", "base", "own"),
    [
        (RunCheckpoint, ModelCheckpoint(), {"_also_save_last", "_write_last"}),
        (CLI, LightningCLI, {"_last_checkpoint", "_logger", "_actions"}),
    ],
)
def test_what_is_overridden_or_called_is_there(kind, base, own):
    names = private_names(kind) - own
    assert len(names) > 3
    assert {name for name in names if not hasattr(base, name)} == set()


def test_a_trainer_tells_its_steps():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    internals.set_logged_step(trainer, 7, 2)
    assert internals.logged_step(trainer) == 7
    assert trainer.current_epoch == 2
    assert not internals.is_accumulating(trainer)
    assert callable(trainer.fit_loop.epoch_loop._should_accumulate)


def test_what_answers_sigterm_goes_by_that_name():
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert callable(trainer._signal_connector._sigterm_notifier_fn)
    assert callable(trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor)
    internals.agree_on_sigterm(trainer)
    trainer._signal_connector._sigterm_notifier_fn()
    assert trainer.received_sigterm


def test_hyperparameters_are_set_by_that_name():
    assert "_set_hparams" in vars(HyperparametersMixin)


def test_half_precision_converts_its_input_by_that_name():
    assert "convert_input" in vars(HalfPrecision)
