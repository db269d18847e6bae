"""What holds on a GPU. `--on-cpu` runs the same tests on a CPU, as far as they go, to keep them working."""

import math
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from conftest import ROOT
from drawn import noise_people
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from test_resume import HOOKS, PAIRS, RECIPE, Kept, trained
from workers import RandomImages

import lit_models
from benchmarks.resume import alike, end
from datamodules import FaceDataModule, ImageFolderDataModule, MNISTDataModule, TimeSeriesDataModule
from lit_models import CNN, RNN, FaceEmbedder, Net, RNNClassifier
from lit_models.cli import main as cli
from rl import DQN, ReplayBuffer

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
ACCELERATOR = "gpu" if CUDA else "cpu"
needs_cuda = pytest.mark.skipif(not CUDA, reason="there is nothing of the kind on a CPU")
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
FEW = {"limit_train_batches": 4, "limit_val_batches": 2, "limit_test_batches": 2, "num_sanity_val_steps": 0}
AGENT = {"num_envs": 4, "learning_starts": 64, "steps_per_epoch": 64, "eval_episodes": 2, "test_episodes": 2}


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    torch.use_deterministic_algorithms(False)  # which a Trainer that is not asked for it leaves as it is


def faces(folder):
    people = noise_people(folder / "people", people=8, pictures=12)
    return FaceDataModule(str(people), image_size=32, identities_per_batch=4, images_per_identity=2)


# Without dropout, augmentation and exploration, whose draws are others on another device.
MODELS = {
    "Net": lambda _: (Net(conv_dropout=0.0, dropout=0.0), RandomImages(16)),
    "CNN": lambda _: (CNN(1, image_size=48, batch_norm=True), RandomImages(16)),
    "CNN_28": lambda _: (CNN(1), RandomImages(16)),
    "RNNClassifier": lambda _: (RNNClassifier(hidden_dim=32), RandomImages(16)),
    "permuted": lambda _: (RNNClassifier(hidden_dim=8, scan_order="permuted_pixel"), RandomImages(4)),
    "RNN": lambda _: (RNN(hidden_dim=8, residual=True), TimeSeriesDataModule(length=1000)),
    "LSTM": lambda _: (RNN(hidden_dim=8, cell="lstm", num_layers=2), TimeSeriesDataModule(length=1000)),
    "FaceEmbedder": lambda folder: (FaceEmbedder(image_size=32, dropout=0.0), faces(folder)),
    "DQN": lambda _: (DQN(**AGENT, epsilon_end=1.0, double=True, dueling=True, ema_decay=0.9), None),
}
TRAINED = [name for name in MODELS if name != "DQN"]


def trainer(callbacks=(), **options):
    return Trainer(callbacks=list(callbacks), **QUIET | FEW | {"max_epochs": 1, "devices": 1} | options)


class Gradients(Callback):
    """Those of the first step."""

    def __init__(self):
        self.found = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = {name: weight.grad for name, weight in pl_module.named_parameters() if weight.grad is not None}
        self.found = self.found or {name: gradient.detach().double().cpu() for name, gradient in named.items()}


@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward_are_those_of_the_cpu(name, tmp_path, monkeypatch):
    # Convolutions and recurrent layers would else compute with 10 of fp32's 23 bits, off by a thousandth.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = []
    for accelerator in ("cpu", ACCELERATOR):
        seed_everything(0)
        model, data = MODELS[name](tmp_path / str(len(found)))
        gradients = Gradients()
        trained = trainer([gradients], accelerator=accelerator, limit_train_batches=1)
        trained.fit(model, datamodule=data)
        model.to("cpu" if accelerator == "cpu" else DEVICE)
        example = model.example_input_array
        draw = torch.Generator().manual_seed(0)
        example = (
            torch.randn((5, *example.shape[1:]), generator=draw)
            if example.is_floating_point()
            else torch.randint(0, 256, (5, *example.shape[1:]), generator=draw, dtype=torch.uint8)
        )
        # Discriminants of a few images are those of rounding errors, in most of their directions.
        network = (lambda x, m=model: m.network(m.normalize(x))) if name == "FaceEmbedder" else model
        model.eval()
        with torch.no_grad():
            outputs = network(example.to(model.device))
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs
        found.append(gradients.found | {"outputs": outputs.double().cpu()})
    cpu, gpu = found
    assert cpu.keys() == gpu.keys()
    for key, value in cpu.items():
        # The same fp32 products, added up in another order: about 1e-6 of a tensor's length in one layer, more where
        # differences are small beside what they are of (batch normalisation), or a kernel transforms its input first
        # (Winograd). A wrong operator is off by 1e-2 or more.
        assert (gpu[key] - value).norm() <= 1e-3 * value.norm() + 1e-7, key


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", pytest.param("16-mixed", marks=needs_cuda)])
@pytest.mark.parametrize("name", MODELS)
def test_every_precision_trains(name, precision, tmp_path):
    seed_everything(0)
    model, data = MODELS[name](tmp_path)
    before = {key: value.clone() for key, value in model.named_parameters()}
    # The scale of 16-mixed begins too large for the first steps, which are left out.
    fitted = trainer(
        precision=precision, accelerator=ACCELERATOR, limit_train_batches=10 if precision == "16-mixed" else 4
    )
    fitted.fit(model, datamodule=data)
    metrics = dict(fitted.callback_metrics)
    fitted.test(model, datamodule=data, verbose=False)
    metrics |= fitted.callback_metrics
    assert "train/loss" in metrics
    assert all(math.isfinite(value) for value in metrics.values())
    after = dict(model.named_parameters())
    assert all(value.isfinite().all() for value in after.values())
    moved = [not torch.equal(value.to(after[key].dtype), after[key].cpu()) for key, value in before.items()]
    assert any(moved)  # by more than the rounding to 16 bits


class Batches(Callback):
    """The first batches that training sees, and where they lie."""

    def __init__(self):
        self.found, self.devices = [], set()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.devices |= {part.device.type for part in batch}
        self.found.append([part.cpu() for part in batch])


@pytest.mark.parametrize("name", ["MNIST", "RNN", "folder"])
def test_resident_data_give_the_batches_of_the_cpu(name, tmp_path, pets):
    found = []
    for accelerator, resident in (("cpu", False), (ACCELERATOR, True), (ACCELERATOR, False)):
        seed_everything(0)
        pairs = {
            "MNIST": lambda: (Net(), MNISTDataModule()),
            "RNN": lambda: MODELS["RNN"](tmp_path),
            "folder": lambda: (CNN(num_classes=2), ImageFolderDataModule(str(pets), image_size=32, batch_size=4)),
        }
        model, data = pairs[name]()
        data.hparams.cache_on_device = resident
        batches = Batches()
        fitted = trainer([batches], accelerator=accelerator)
        fitted.fit(model, datamodule=data)
        first, _ = next(iter(fitted.train_dataloader))
        if accelerator == "gpu":
            assert first.is_cuda if resident else first.is_pinned()
        assert batches.devices == {"cpu" if accelerator == "cpu" else DEVICE}
        found.append(batches.found)
    assert len(found[0]) == 4
    assert alike(found[1], found[0])
    assert alike(found[2], found[0])


class Strict(Callback):
    """Makes an error of waiting for the GPU, from the second batch on: in the model's own step, or anywhere in a step.

    Lightning's loops, its closures, precision and logging are a part of the latter alone.
    """

    def __init__(self, everywhere):
        self.everywhere = everywhere

    def on_fit_start(self, trainer, pl_module):
        step, augment = pl_module.training_step, getattr(trainer.datamodule, "on_after_batch_transfer", None)
        if not self.everywhere:
            pl_module.training_step = self.watched(step, lambda batch, batch_idx: batch_idx > 0)
            if augment is not None:
                trainer.datamodule.on_after_batch_transfer = self.watched(augment, lambda *_: trainer.global_step > 0)

    def watched(self, call, strict):
        def watched(*args):
            torch.cuda.set_sync_debug_mode("error" if strict(*args) else "default")
            try:
                return call(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return watched

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.everywhere:
            torch.cuda.set_sync_debug_mode("error" if batch_idx else "default")

    def on_train_epoch_end(self, trainer, pl_module):
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize(
    ("name", "everywhere"),
    # An agent's playing needs its actions on the host, in every step.
    [*((name, False) for name in MODELS), *((name, True) for name in TRAINED)],
)
def test_a_training_step_never_waits_for_the_gpu(name, everywhere, tmp_path):
    model, data = MODELS[name](tmp_path)
    if name == "Net":
        data = MNISTDataModule(batch_size=16, rotation=10, shift=2, scale=0.1)
    if data is not None:
        data.hparams.cache_on_device = True
    try:
        trainer([Strict(everywhere)], accelerator="gpu", limit_val_batches=0).fit(model, datamodule=data)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", MODELS)
def test_checkpoints_go_to_a_cpu_and_back(name, tmp_path):
    seed_everything(0)
    model, data = MODELS[name](tmp_path)
    path, steps = tmp_path / "model.ckpt", []
    for number, accelerator in enumerate((ACCELERATOR, "cpu", ACCELERATOR), start=1):
        fitted = trainer(max_epochs=number, accelerator=accelerator, limit_train_batches=2, limit_val_batches=1)
        fitted.fit(model, datamodule=data, ckpt_path=path if path.exists() else None, weights_only=True)
        fitted.save_checkpoint(path)
        steps.append(fitted.global_step)
        loaded, model = lit_models.load(path), model.cpu().eval()
        assert loaded.device.type == "cpu"
        assert alike(loaded.state_dict(), model.state_dict())
        model.train()
    assert steps == [steps[0], 2 * steps[0], 3 * steps[0]]


@pytest.mark.parametrize("pair", [name for name in PAIRS if name != "workers"])
def test_a_deterministic_run_goes_on_to_the_bit(pair, tmp_path, monkeypatch):
    # cuDNN keeps the state of its dropout between recurrent layers to itself.
    single = partial(RNNClassifier, dropout=0.5, **RECIPE)
    monkeypatch.setitem(PAIRS, "RNNClassifier", lambda: (single(), MNISTDataModule(batch_size=8)))
    path, options = tmp_path / "kept.ckpt", {"accelerator": ACCELERATOR, "deterministic": True}
    model, optimizer = trained(pair, [Kept(*HOOKS["in the middle"], path)], tmp_path, **options)
    torch.manual_seed(1)  # whatever happens in between
    resumed, resumed_optimizer = trained(pair, [], tmp_path, path, **options)
    assert alike(resumed.cpu().state_dict(), model.cpu().state_dict())
    assert alike(resumed_optimizer, optimizer)


CONFIG = f"--config={ROOT / 'configs' / 'mnist.yaml'}"
RUN = [f"--trainer.accelerator={ACCELERATOR}", "--trainer.devices=1", "--trainer.max_epochs=2"]
RUN += ["--trainer.limit_train_batches=40", "--trainer.limit_val_batches=2", "--checkpoint_every_n_steps=7"]


def whole(logs, *flags):
    assert cli.main(["fit", CONFIG, *RUN, f"--trainer.default_root_dir={logs}", *flags]) == 0
    return end(logs / "mnist")


def killed(logs, *flags):
    """How a run ends that was killed once it had written a checkpoint, and went on."""
    # One thread, as in this process: sums over several are added up in another order.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_models", "fit", CONFIG, *RUN, f"--trainer.default_root_dir={logs}", *flags]
    last, said = logs / "mnist" / "version_0" / "checkpoints" / "last.ckpt", logs.with_suffix(".txt")
    with said.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        for _ in range(60_000):  # more than a minute
            if process.poll() is not None or last.exists():
                break
            time.sleep(0.001)
        process.kill()
    assert process.wait() == -signal.SIGKILL, said.read_text()
    assert last.exists(), said.read_text()
    assert 0 < torch.load(last, weights_only=True)["global_step"] < 80
    return whole(logs, *flags, "--ckpt_path=last")


def test_a_killed_deterministic_run_ends_as_if_it_had_not_been(tmp_path):
    flags = ["--trainer.deterministic=true"]
    assert alike(killed(tmp_path / "killed", *flags), whole(tmp_path / "whole", *flags))


def test_a_killed_run_ends_within_the_spread_of_runs(tmp_path, record_property):
    weights = [
        torch.cat([value.double().flatten() for value in run["state_dict"].values()])
        for run in (whole(tmp_path / "first"), whole(tmp_path / "second"), killed(tmp_path / "killed"))
    ]
    spread, off = ((weights[0] - other).norm().item() for other in weights[1:])
    record_property("distance of two runs' weights", spread)
    record_property("distance of a killed run's weights", off)
    # What an atomic addition rounds off grows by chance: in some runs ten times as much as in others, or not at all.
    assert off <= max(10 * spread, 1e-3 * weights[0].norm().item())


LEARNT = 0.3  # a reward is 1, so values rise at once; those of a network that does not learn stay about 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", pytest.param("16-mixed", marks=needs_cuda)])
def test_an_agent_learns(precision):
    seed_everything(0)
    options = {"max_grad_norm": 1.0, "ema_decay": 0.9, "prioritized": True, "n_steps": 3}
    agent = DQN(**AGENT | {"steps_per_epoch": 160} | options)
    fitted = trainer(max_epochs=2, precision=precision, accelerator=ACCELERATOR, limit_train_batches=1.0)
    fitted.fit(agent)
    assert all(weight.isfinite().all() for weight in agent.parameters())
    assert fitted.callback_metrics["train/q_mean"] > LEARNT
    fitted.test(agent, verbose=False)


def test_a_replay_buffer_in_the_devices_memory():
    buffer = ReplayBuffer(100, (3,), num_envs=2, n_steps=2, prioritized=True, device=DEVICE)
    no = torch.zeros(2, dtype=torch.bool, device=DEVICE)
    for _ in range(5):
        seen = torch.rand(2, 3, device=DEVICE)
        buffer.add(seen, torch.zeros(2, device=DEVICE), torch.ones(2, device=DEVICE), seen, no, no)
    batch = buffer.sample(4, 8)
    buffer.update(batch.index, batch.reward)
    assert {part.device.type for part in batch} == {DEVICE}


class Saved(Callback):
    """Saves a checkpoint while the strategy still holds the model."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("name", "strategy"),
    # An agent plays outside of its training step, with weights that fsdp would have taken apart.
    [*((name, "ddp") for name in MODELS), *(pytest.param(name, "fsdp", marks=needs_cuda) for name in TRAINED)],
)
def test_strategies_of_several_devices_train_on_one(name, strategy, tmp_path):
    seed_everything(0)
    model, data = MODELS[name](tmp_path)
    path, before = tmp_path / "model.ckpt", {key: value.clone() for key, value in model.named_parameters()}
    try:
        fitted = trainer([Saved(path)], strategy=strategy, accelerator=ACCELERATOR)
        fitted.fit(model, datamodule=data)
        assert all(math.isfinite(value) for value in fitted.callback_metrics.values())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    after = dict(lit_models.load(path).named_parameters())
    assert any(not torch.equal(after[key], value) for key, value in before.items())
