"""Precisions, devices and the compiler, for every model."""

import logging
import sys

import pytest
import torch
from conftest import ROOT, fails
from lightning import Trainer, seed_everything

from datamodules import ImageFolderDataModule, MNISTDataModule, TimeSeriesDataModule
from lit_models import CNN, RNN, Net, RNNClassifier
from lit_models.cli import main as cli
from lit_models.training.hardware import keep_freed_memory
from rl import DQN

CONFIG = ROOT / "configs" / "mnist.yaml"
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
FEW = {"limit_train_batches": 4, "limit_val_batches": 2, "limit_test_batches": 2, "num_sanity_val_steps": 0}
PAIRS = {
    "Net": lambda: (Net(), MNISTDataModule(batch_size=16, rotation=10)),
    "CNN": lambda: (CNN(1, image_size=48, batch_norm=True), MNISTDataModule(batch_size=4)),
    "RNNClassifier": lambda: (RNNClassifier(), MNISTDataModule(batch_size=16)),
    "RNN": lambda: (RNN(hidden_dim=8, residual=True), TimeSeriesDataModule(length=1000)),
    "DQN": lambda: (DQN(steps_per_epoch=200, learning_starts=100, eval_episodes=2, test_episodes=2), None),
}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trainer.precision=16-mixed"], "precision 16-mixed needs a GPU: set trainer.precision to bf16-mixed or 32"),
        (["--trainer.strategy=fsdp"], "strategy fsdp needs GPUs: set trainer.strategy to ddp"),
        (["--trainer.devices=4096"], "trainer.devices is 4096, but this machine has"),
        (["--trainer.precision=15"], "precision: '15' is not"),
        *((["--trainer.devices", value], "it is a number of processes") for value in ("0", "-1", "[0]", "1.5")),
        (["--checkpoint_every_n_steps=0"], "checkpoint_every_n_steps is 0: it must be at least 1"),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_before_anything_is_built(flags, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.CLI, "instantiate_classes", lambda self: pytest.fail("a model is built"))
    where = ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    assert message in fails(capsys, "fit", f"--config={CONFIG}", *where, *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "tpu"])
def test_an_accelerator_that_is_not_there(accelerator, capsys):
    message = fails(capsys, "fit", f"--config={CONFIG}", f"--trainer.accelerator={accelerator}")
    assert ("torch_xla" if accelerator == "tpu" else "set trainer.accelerator to auto") in message


def test_rows_far_from_zero_keep_their_digits_in_bf16():
    model = RNN(hidden_dim=8, residual=True, mean=1000.3, std=0.5).to(torch.bfloat16)
    x = 1000.3 + 0.5 * torch.randn(2, 5, 1, generator=torch.Generator().manual_seed(0))
    assert model.normalize(x).abs().max() < 4  # not the 4 or more that a rounded mean or rounded rows would be off by
    torch.testing.assert_close(model.normalize(x), (x - 1000.3) / 0.5, atol=1e-3, rtol=0)
    prediction, _ = model(x)
    assert (prediction - x).abs().max() < 2


@pytest.mark.slow
def test_net_in_bf16_mixed_is_as_good_as_in_fp32():
    accuracies = []
    for precision in ("32", "bf16-mixed"):
        seed_everything(0)
        command = ["fit", f"--config={CONFIG}", "--trainer.max_epochs=3", f"--trainer.precision={precision}"]
        off = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
        fitted = cli.CLI([*command, *off])
        accuracies.append(fitted.trainer.test(fitted.model, datamodule=fitted.datamodule)[0]["test/accuracy"])
    assert accuracies[0] > 0.985
    assert abs(accuracies[0] - accuracies[1]) < 0.003


SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_val_batches=1"]


@pytest.mark.slow
def test_a_compiled_model_is_the_same_and_its_checkpoint_too(tmp_path):
    ends = []
    for compile in ("true", "false"):
        logs = f"--trainer.default_root_dir={tmp_path / compile}"
        assert cli.main(["fit", f"--config={CONFIG}", *SHORT, f"--compile={compile}", logs]) == 0
        path = tmp_path / compile / "mnist" / "version_0" / "checkpoints" / "last.ckpt"
        ends.append(torch.load(path, weights_only=True)["state_dict"])
    torch.testing.assert_close(ends[0], ends[1], atol=1e-4, rtol=1e-3)


def test_an_agents_networks_are_compiled():
    agent = DQN(ema_decay=0.5)
    agent.compile(backend="eager")
    networks = (agent.network, agent.target, agent.ema_network)
    assert all(network._compiled_call_impl is not None for network in networks)
    observation = torch.randn(3, 4)
    torch.testing.assert_close(agent(observation), agent.ema_network.forward(observation))


@pytest.mark.slow
def test_without_a_compiler_a_run_goes_on_with_one_warning(run, tmp_path):
    variables = {"CXX": "no-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    fitted = run("fit", "--config", CONFIG, *SHORT, "--compile=true", variables=variables)
    assert fitted.returncode == 0, fitted.stderr
    assert fitted.stderr.count("not compiled, since the compiler does not work here") == 1
    assert "Traceback" not in fitted.stderr


@pytest.mark.parametrize("pair", ["Net", "RNN"])
def test_data_in_the_devices_memory_train_alike(pair):
    ends = []
    for resident in (True, False):
        seed_everything(0)
        model, data = PAIRS[pair]()
        data.hparams.cache_on_device = resident
        Trainer(max_epochs=1, accelerator="cpu", **FEW, **QUIET).fit(model, datamodule=data)
        ends.append(model.cpu().state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_data_that_workers_read_cannot_be_in_the_devices_memory(pets):
    for data in (
        MNISTDataModule(num_workers=1, cache_on_device=True),
        ImageFolderDataModule(str(pets), memory_limit=0, num_workers=1, cache_on_device=True),
    ):
        data.setup("fit")
        with pytest.raises(ValueError, match="set num_workers to 0, or leave cache_on_device out"):
            data.train_dataloader()


def test_lightnings_advice_about_a_gpus_digits_is_kept_out():
    cli.configure_messages()
    logger = logging.getLogger("lightning.fabric.utilities.rank_zero")
    said = "You should set `torch.set_float32_matmul_precision('medium' | 'high')`", "something else"
    records = [logging.makeLogRecord({"msg": message, "levelno": logging.INFO}) for message in said]
    assert [bool(logger.filter(record)) for record in records] == [False, True]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_step_reuses_the_memory_of_the_last_one():
    resource = pytest.importorskip("resource")
    keep_freed_memory()

    def step() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        layers = [torch.ones(5_000_000) for _ in range(8)]  # 20 MB each, and freed together
        del layers
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    step()
    # Of 400,000 pages, whose faults took longer than the steps; a few, where the heap still grows around what is kept.
    assert sum(step() for _ in range(10)) < 100_000
