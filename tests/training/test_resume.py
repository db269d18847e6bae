"""Runs that go on as if they had never stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import cache, partial

import pytest
import torch
from conftest import ROOT, fails
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint
from pytorch_optimizer import SOAP
from registry import MODELS
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.resume import RUNS, alike, begun, damages, end, fit, kills, make_data
from datamodules import MNISTDataModule
from datamodules.common.samplers import EpochSampler, EvenBatches
from lit_models import Net
from lit_models.cli import main as cli
from lit_models.training import resume
from lit_models.training.checkpoint import AtomicCheckpointIO

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3)


def one_cycle(optimizer, total_steps=None):
    return OneCycleLR(optimizer, max_lr=1e-3, total_steps=total_steps)


RECIPE = {"optimizer": adam, "lr_scheduler": one_cycle}
# All that draws or remembers: dropout, augmentation, the order, batch statistics, moments and the schedule. Agents have
# a test of their own, which looks at more.
PAIRS = {
    name: lambda row=row: (row.make(**row.random, **RECIPE), row.data(**row.augmented))
    for name, row in MODELS.items()
    if row.data()
}
PAIRS["SOAP"] = lambda: (MODELS["RNN"].make(optimizer=partial(SOAP, precondition_1d=True)), MODELS["RNN"].data())
PAIRS["workers"] = lambda: (Net(**RECIPE), MNISTDataModule(batch_size=8, rotation=10, num_workers=2))
SLOW, LONG = pytest.mark.slow, ("RNNClassifier", "workers")
HOOKS = {
    "in the middle": ("on_train_batch_end", 1),
    "after a validation in the middle": ("on_validation_end", 2),
    "after the last step": ("on_train_batch_end", 5),
    "after the last validation": ("on_validation_end", 5),
    "at the end of the epoch": ("on_train_epoch_end", 5),
}


class Kept(Checkpoint):
    """Keeps a checkpoint of the second epoch, of a hook after a number of batches."""

    def __init__(self, hook, batch, path):
        self.place, self.path = (1, hook, batch), path

    def keep(self, trainer, hook):
        if (trainer.current_epoch, hook, trainer.fit_loop.epoch_loop.batch_idx) == self.place:
            trainer.save_checkpoint(self.path)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.keep(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer, pl_module):
        self.keep(trainer, "on_validation_end")

    def on_train_epoch_end(self, trainer, pl_module):
        self.keep(trainer, "on_train_epoch_end")


class Epochs(Checkpoint):
    """The training metrics at the end of each epoch."""

    def __init__(self):
        self.metrics = {}

    def on_train_epoch_end(self, trainer, pl_module):
        metrics = trainer.callback_metrics.items()
        self.metrics[trainer.current_epoch] = {k: v.item() for k, v in metrics if k in ("train/loss", "train/accuracy")}


def trained(pair, callbacks, folder, ckpt_path=None, **more):
    seed_everything(0)
    model, data = PAIRS[pair]()
    options = {"max_epochs": 3, "limit_train_batches": 6, "limit_val_batches": 1, "val_check_interval": 3} | more
    trainer = Trainer(callbacks=callbacks, default_root_dir=folder, num_sanity_val_steps=0, **QUIET | options)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return model, trainer.optimizers[0].state_dict()


@pytest.fixture(scope="session")
def never_stopped(tmp_path_factory):
    """A run, once for all moments: its model, optimizer, metrics, and folder of a checkpoint of each moment."""

    @cache
    def run(pair):
        folder, metrics = tmp_path_factory.mktemp("whole"), Epochs()
        kept = [Kept(*HOOKS[moment], folder / f"{moment}.ckpt") for moment in HOOKS]
        return *trained(pair, [*kept, metrics], folder), metrics, folder

    return run


@pytest.mark.parametrize("moment", HOOKS)
@pytest.mark.parametrize("pair", [pytest.param(name, marks=SLOW if name in LONG else ()) for name in PAIRS])
def test_a_resumed_run_ends_as_one_that_never_stopped(pair, moment, never_stopped, tmp_path):
    (model, optimizer, whole, folder), rest = never_stopped(pair), Epochs()
    torch.manual_seed(1)  # whatever happens in between
    resumed, resumed_optimizer = trained(pair, [rest], tmp_path, folder / f"{moment}.ckpt")
    assert alike(resumed.state_dict(), model.state_dict())
    assert alike(resumed_optimizer, optimizer)
    assert rest.metrics == {epoch: whole.metrics[epoch] for epoch in rest.metrics}
    assert 2 in rest.metrics
    assert 1 in rest.metrics or moment in ("after the last step", "at the end of the epoch")


@pytest.mark.parametrize("option", [{"accumulate_grad_batches": 4}, {"reload_dataloaders_every_n_epochs": 1}])
def test_gradients_in_the_middle_of_a_sum_and_new_loaders_are_exact_too(option, tmp_path):
    path = tmp_path / "kept.ckpt"
    model, optimizer = trained("Net", [Kept("on_validation_end", 2, path)], tmp_path, **option)
    resumed, resumed_optimizer = trained("Net", [], tmp_path, path, **option)
    assert alike(resumed.state_dict(), model.state_dict())
    assert alike(resumed_optimizer, optimizer)


def test_a_loader_that_somebody_else_asks_for_first(tmp_path):
    class Curious(Checkpoint):
        def on_fit_start(self, trainer, pl_module):
            next(iter(trainer.datamodule.train_dataloader()))

    path = tmp_path / "kept.ckpt"
    model, _ = trained("CNN", [Curious(), Kept("on_train_batch_end", 1, path)], tmp_path)
    resumed, _ = trained("CNN", [Curious()], tmp_path, path)
    assert alike(resumed.state_dict(), model.state_dict())


@pytest.mark.parametrize("pair", ["Net", "RNN"])
def test_a_checkpoint_that_does_not_say_where_its_processes_were_goes_on_all_the_same(pair, tmp_path):
    path = tmp_path / "kept.ckpt"
    trained(pair, [Kept("on_train_batch_end", 1, path)], tmp_path)
    torch.save(torch.load(path, weights_only=True) | {"processes": []}, path)
    rest = Epochs()
    trained(pair, [rest], tmp_path, path)
    assert rest.metrics[1]["train/loss"] > 0


def test_other_batches_in_the_middle_of_an_epoch_are_refused(tmp_path):
    path = tmp_path / "kept.ckpt"
    trained("Net", [Kept("on_train_batch_end", 1, path)], tmp_path)
    content = torch.load(path, weights_only=True)
    content["MNISTDataModule"]["batch_size"] = 16  # that of two processes
    torch.save(content, path)
    with pytest.raises(ValueError, match="with batches of 16 over all processes, not 8: go on with as many"):
        trained("Net", [], tmp_path, path)


def test_without_a_trainer(tmp_path):
    path = tmp_path / "kept.ckpt"
    trained("Net", [Kept("on_train_batch_end", 1, path)], tmp_path)
    data = MNISTDataModule.load_from_checkpoint(path, weights_only=True)
    assert data.hparams.batch_size == 8
    data.setup("fit")
    loader = data.train_dataloader()
    first, second = (next(iter(loader))[1] for _ in range(2))
    assert not torch.equal(first, second)  # another epoch


def test_each_fit_has_the_order_of_its_own_seed(tmp_path):
    orders, data = [], MNISTDataModule(batch_size=100)

    class Labels(Checkpoint):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            orders.append(batch[1])

    for seed in (0, 1, 0):
        seed_everything(seed)
        Trainer(max_steps=1, limit_val_batches=0, callbacks=[Labels()], default_root_dir=tmp_path, **QUIET).fit(
            Net(), datamodule=data
        )
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def test_best_checkpoints_are_written_beside_those_of_every_n_steps(tmp_path):
    fit = ["fit", f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    fit += ["--trainer.max_epochs=2", "--trainer.limit_train_batches=6", "--trainer.limit_val_batches=1"]
    fit += ["--trainer.val_check_interval=3", "--checkpoint.save_top_k=-1", "--checkpoint_every_n_steps=3"]
    assert cli.main(fit) == 0
    steps = {path.stem.partition("step=")[2] for path in tmp_path.rglob("epoch*.ckpt")}
    assert steps == {"3", "6", "9", "12"}


def test_steps_are_asked_for_where_no_last_checkpoint_is_written(tmp_path, capsys):
    fit = ["fit", f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    for flag in ("--checkpoint.save_last=false", "--trainer.enable_checkpointing=false"):
        assert "which this run does not write" in fails(capsys, *fit, "--checkpoint_every_n_steps=3", flag)


def test_the_order_is_that_of_the_epoch_and_goes_on_where_it_stopped():
    sampler = EpochSampler(range(100), seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(100))
    assert orders[0] != orders[1] != orders[2]
    assert list(EpochSampler(range(100), seed=4)) != orders[0]
    resumed = EpochSampler(range(100), seed=3, epoch=1, skip=30)
    assert list(resumed) == orders[1][30:]
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]


@pytest.mark.parametrize("count", [3, 5, 9, 100, 101, 10_001])
@pytest.mark.parametrize("batch_size", [1, 2, 50])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_every_item_once_in_as_many_batches(count, batch_size, world, monkeypatch):
    shares = []
    for rank in range(world):
        monkeypatch.setattr("datamodules.common.samplers.world_and_rank", lambda rank=rank: (world, rank))
        sampler = EvenBatches(range(count), batch_size)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
        assert max(map(len, shares[-1])) <= max(batch_size, 2)  # an odd item joins a batch, which would else be empty
        assert min(map(len, shares[-1])) > 0
    assert len({len(share) for share in shares}) == 1
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(count))


def test_fewer_items_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr("datamodules.common.samplers.world_and_rank", lambda: (3, 0))
    with pytest.raises(ValueError, match="2 items cannot be shared by 3 processes"):
        EvenBatches(range(2), 1)


def test_two_processes_train_on_what_one_does(monkeypatch):
    whole = list(EpochSampler(range(1000), seed=0))
    shares = []
    for rank in range(2):
        monkeypatch.setattr("datamodules.common.samplers.world_and_rank", lambda rank=rank: (2, rank))
        shares.append(list(EpochSampler(range(1000), seed=0)))
    for start in range(0, 1000, 100):
        both = [index for share in shares for index in share[start // 2 : start // 2 + 50]]
        assert sorted(both) == sorted(whole[start : start + 100])


@SLOW
@pytest.mark.parametrize("name", ["mnist", "dqn_cartpole", "rnn_csv"])
def test_a_run_killed_within_an_epoch_ends_as_if_it_had_not_been(name, tmp_path):
    make_data(tmp_path)
    fit(name, tmp_path, "whole").join()
    process = begun(name, tmp_path, "killed")
    last = tmp_path / "killed" / name / "version_0" / "checkpoints" / "last.ckpt"
    while process.is_alive() and not last.exists():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    whole = tmp_path / "whole" / name / "version_0" / "checkpoints" / "last.ckpt"
    steps = [torch.load(path, weights_only=True)["global_step"] for path in (last, whole)]
    assert 0 < steps[0] < steps[1]
    resumed = fit(name, tmp_path, "killed", "--ckpt_path=auto")
    resumed.join()
    assert resumed.exitcode == 0
    assert sorted(path.name for path in (tmp_path / "killed" / name).iterdir()) == ["version_0"]
    assert sorted(path.suffix for path in last.parent.iterdir()) == [".ckpt", ".ckpt"]  # the best and the last
    assert alike(end(tmp_path / "killed" / name), end(tmp_path / "whole" / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_at_a_random_moment_ends_as_if_it_had_not_been(name, tmp_path):
    make_data(tmp_path)
    assert kills(tmp_path, 1, random.Random(name), [name]) == 1


@pytest.mark.slow
def test_damaged_checkpoints_are_refused_or_passed_over(tmp_path, capsys):
    assert damages(tmp_path) == 10, capsys.readouterr().out


@pytest.mark.parametrize("monitor", [None, "step"])
def test_an_interrupt_while_a_best_checkpoint_is_written_leaves_no_other_behind(monitor, tmp_path):
    class Interrupting(AtomicCheckpointIO):
        def save_checkpoint(self, checkpoint, path, storage_options=None):
            super().save_checkpoint(checkpoint, path, storage_options)
            if "epoch=1" in str(path):
                signal.raise_signal(signal.SIGINT)

    saving = resume.RunCheckpoint(tmp_path, monitor=monitor, mode="max", save_last=True, save_on_train_epoch_end=True)
    options = {"max_epochs": 5, "limit_train_batches": 2, "limit_val_batches": 0, "plugins": [Interrupting()]}
    trainer = Trainer(callbacks=[saving], default_root_dir=tmp_path, **QUIET | options)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit):
            trainer.fit(Net(**RECIPE), datamodule=MNISTDataModule(batch_size=8))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert trainer.global_step == 4
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["epoch=1-step=4.ckpt", "last.ckpt"]


def test_a_kill_between_the_best_and_the_last_checkpoint(tmp_path):
    fit = ["fit", f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    fit += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=2"]
    assert cli.main([*fit, "--checkpoint.save_top_k=-1"]) == 0
    (last,) = tmp_path.rglob("last.ckpt")
    (first,) = last.parent.glob("epoch=0*.ckpt")
    (best,) = last.parent.glob("epoch=1*.ckpt")
    for left in (first.read_bytes(), best.read_bytes()[:1000]):  # behind, or damaged
        last.write_bytes(left)
        assert cli.main(["fit", f"--ckpt_path={best}"]) == 0
        assert last.read_bytes() == best.read_bytes()
    cli.main(["fit", f"--ckpt_path={first}", "--trainer.max_epochs=1"])  # an earlier one takes nothing away
    assert torch.load(last, weights_only=True)["global_step"] == 4


def test_where_all_checkpoints_are_damaged(tmp_path, capsys):
    fit = ["fit", f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    fit += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    assert cli.main(fit) == 0
    for path in tmp_path.rglob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:1000])
    assert "there is no usable" in fails(capsys, *fit, "--ckpt_path=last")
    assert cli.main([*fit, "--ckpt_path=auto"]) == 0
    assert (tmp_path / "mnist" / "version_1" / "checkpoints" / "last.ckpt").exists()


def test_what_only_looks_like_a_checkpoint_is_passed_over(tmp_path):
    fit = ["fit", f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    fit += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    assert cli.main(fit) == 0
    (last,) = tmp_path.rglob("last.ckpt")
    last.rename(last.with_name("kept.ckpt"))
    last.mkdir()
    (last.parent / "gone.ckpt").symlink_to("nowhere")
    assert cli.main(["validate", *fit[1:-1], "--ckpt_path=last"]) == 0


def test_a_refused_resume_leaves_the_record_of_the_run(tmp_path, capsys):
    fit = ["fit", f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    fit += ["--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.max_epochs=1"]
    assert cli.main(fit) == 0
    fails(capsys, *fit, "--ckpt_path=last", "--trainer.max_epochs=5")
    (record,) = tmp_path.rglob("run.json")
    content = json.loads(record.read_text())
    assert (content["state"], len(content["commands"])) == ("finished", 2)


def test_a_checkpoint_of_weights_alone_is_not_resumed(last, tmp_path, capsys):
    content = torch.load(last, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, tmp_path / "weights.ckpt")
    assert "holds only the weights" in fails(capsys, "fit", f"--ckpt_path={tmp_path / 'weights.ckpt'}")
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "state.ckpt")
    assert "has no pytorch-lightning_version" in fails(capsys, "test", f"--ckpt_path={tmp_path / 'state.ckpt'}")


FULL = """
import resource, torch
from lit_models.training.checkpoint import AtomicCheckpointIO
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(1_000_000)}, "last.ckpt")
"""


@SLOW
def test_where_no_more_can_be_written_the_previous_checkpoint_is_left(tmp_path):
    AtomicCheckpointIO().save_checkpoint({"number": 1}, tmp_path / "last.ckpt")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FULL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "OSError: cannot write last.ckpt" in done.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"number": 1}


@pytest.mark.parametrize(("seconds", "steps"), [(1e6, [2, 8]), (0.0, [2, 4, 6, 8])])
@pytest.mark.parametrize("top", [0, 1])
def test_the_last_checkpoint_is_left_out_where_it_costs_too_much(seconds, steps, top, tmp_path, monkeypatch):
    fit = ["fit", f"--config={ROOT / 'configs' / 'mnist_article.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    fit += ["--trainer.limit_train_batches=2", "--trainer.max_epochs=4", f"--checkpoint.save_top_k={top}"]
    written = []
    write = resume.RunCheckpoint._write_last

    def costly(self, trainer):
        write(self, trainer)
        written.append(trainer.global_step)
        self.seconds = seconds

    monkeypatch.setattr(resume.RunCheckpoint, "_write_last", costly)
    assert cli.main(fit) == 0
    assert written == steps  # the first, since nothing is known of its cost, and the end
