"""Runs of two processes, on the CPU with gloo."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, fails
from launch import CONFIG, TWO, finished, fit, free_port, start
from lightning import Trainer

from benchmarks.resume import alike, end
from lit_models.training.processes import Watch

SHORT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=20", "--trainer.limit_val_batches=3"]
LONG = ["--trainer.max_epochs=100", *TWO, "--checkpoint_every_n_steps=5"]
SLOW = pytest.mark.slow  # each starts several processes


@SLOW
def test_two_processes_with_half_the_batch_do_what_one_does(tmp_path):
    ends = []
    for devices, batch_size in ((1, 128), (2, 64)):
        path = tmp_path / f"{devices}.pt"
        process = start([sys.executable, ROOT / "tests" / "workers.py", path, devices, batch_size], tmp_path)
        text = finished(process)
        assert process.returncode == 0, text
        ends.append(torch.load(path, weights_only=True))
    one, two = ends
    torch.testing.assert_close(two["gradients"], one["gradients"], atol=1e-6, rtol=0)
    assert one["gradients"].abs().max() > 1e-3
    assert two["seen"] == one["seen"] == [2 * 1_001, 10_001]
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-6)
    right = 10_001 * two["metrics"]["test/accuracy"]
    assert right == pytest.approx(round(right), abs=1e-2)  # an image more or less would make it no whole number


@SLOW
@pytest.mark.parametrize("launcher", ["Lightning", "torchrun", "two nodes"])
def test_processes_train_alike_whoever_starts_them_and_the_first_alone_speaks(launcher, tmp_path):
    if launcher == "two nodes":
        flags = [*SHORT, *TWO, "--trainer.num_nodes=2", "--trainer.devices=1"]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        second = fit(tmp_path, *flags, NODE_RANK="1", **meeting)
        process = fit(tmp_path, *flags, NODE_RANK="0", **meeting)
        text = finished(process)
        assert finished(second) == ""
        assert second.returncode == 0
    else:
        run = ["-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "lit_models"]
        command = [sys.executable, *(run if launcher == "torchrun" else ["-m", "lit_models"])]
        process = start([*command, "fit", f"--config={CONFIG}", *SHORT, *TWO, "--trainer.devices=2"], tmp_path)
        text = finished(process)
    assert process.returncode == 0, text
    assert text.count("To test it:") == 1
    assert text.count("Trainable params") == 1
    (run,) = (tmp_path / "logs" / "mnist").iterdir()
    names = sorted(path.name.partition(".")[0] for path in run.iterdir())
    assert names == ["checkpoints", "config", "events", "hparams", "run"]


@SLOW
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("mnist", ["--trainer.max_epochs=2", *SHORT[1:], *TWO, "--checkpoint_every_n_steps=7"]),
        (
            "dqn_cartpole",
            ["--trainer.max_epochs=4", *TWO[:2], "--model.eval_episodes=2", "--checkpoint_every_n_steps=40"],
        ),
    ],
)
def test_a_killed_run_of_two_processes_ends_as_if_it_had_not_been(name, flags, tmp_path):
    def start(logs, *more):
        own = ["--trainer.devices=2", f"--trainer.default_root_dir={logs}", *more]
        return fit(tmp_path, *flags, *own, config=ROOT / "configs" / f"{name}.yaml")

    whole = start("whole")
    text = finished(whole)
    assert whole.returncode == 0, text
    killed = start("killed")
    last = tmp_path / "killed" / name / "version_0" / "checkpoints" / "last.ckpt"
    while killed.poll() is None and not last.exists():
        time.sleep(0.001)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    resumed = start("killed", "--ckpt_path=last")
    text = finished(resumed)
    assert resumed.returncode == 0, text
    assert alike(end(tmp_path / "killed" / name), end(tmp_path / "whole" / name))


def wait_for_steps(process, folder):
    """Until a run of two processes trains; the number of the second one, which the first has started."""
    last = folder / "logs" / "mnist" / "version_0" / "checkpoints" / "last.ckpt"
    while process.poll() is None and not last.exists():
        time.sleep(0.05)
    (child,) = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    return int(child)


@SLOW
@pytest.mark.parametrize("dying", ["the first", "the second"])
def test_a_process_that_dies_ends_the_run_with_a_message(dying, tmp_path):
    process = fit(tmp_path, *LONG, "--trainer.devices=2")
    child = wait_for_steps(process, tmp_path)
    os.kill(process.pid if dying == "the first" else child, signal.SIGKILL)
    text = finished(process, timeout=60)  # it reads what the processes print until the last of them has ended
    where = " in process 1" if dying == "the first" else ""
    errors = [line for line in text.splitlines() if "error" in line]
    assert errors == [
        f"error{where}: another process of this run has ended or cannot be reached: see what it says of itself, then "
        "go on with --ckpt_path last"
    ]
    assert process.returncode != 0


@SLOW
def test_a_process_that_is_frozen_ends_the_run_with_a_message(tmp_path):
    process = fit(tmp_path, *LONG, "--trainer.devices=2", "--process_timeout=15")
    child = wait_for_steps(process, tmp_path)
    os.kill(child, signal.SIGSTOP)
    text = finished(process, timeout=60)  # the frozen one is ended, too: else this would wait for what it prints
    (error,) = (line for line in text.splitlines() if "error" in line)
    assert error.startswith("error: no sign of life for 15 seconds from process 1 on ")
    assert process.returncode == 1


@SLOW
def test_processes_wait_for_one_that_is_busy(tmp_path):
    (tmp_path / "busy.py").write_text(
        "import time\n"
        "from lightning.pytorch.callbacks import Callback\n\n"
        "class Busy(Callback):\n"
        "    def on_train_epoch_end(self, trainer, pl_module):\n"
        "        time.sleep(0 if trainer.global_rank else 30)\n"
    )
    flags = ["--modules=busy", "--trainer.callbacks+=busy.Busy", "--process_timeout=15"]
    process = fit(tmp_path, *SHORT, *TWO, "--trainer.devices=2", *flags, PYTHONPATH=f"{ROOT}:{tmp_path}")
    text = finished(process)
    assert process.returncode == 0, text


@SLOW
def test_sigterm_ends_both_processes_after_a_step(tmp_path):
    process = fit(tmp_path, *LONG, "--trainer.devices=2")
    wait_for_steps(process, tmp_path)
    os.killpg(process.pid, signal.SIGTERM)  # both get it, and the second one from the first again
    text = finished(process, timeout=60)
    assert process.returncode == 143, text
    assert "error" not in text


def test_signals_of_forked_processes_are_their_own():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    handler = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with Watch(trainer, 5, report=print) as watch:
            if not (child := os.fork()):
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            os.waitpid(child, 0)
            assert signal.SIGTERM not in watch._received()
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_the_second_sigterm_ends_a_process_at_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\n"
        "from lightning import Trainer\n"
        "from lit_models.training.processes import Watch\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "with Watch(Trainer(accelerator='cpu', logger=False, enable_checkpointing=False), 5, print):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(600)\n"
    )
    process = start([sys.executable, script], tmp_path)
    finished(process, timeout=60)
    assert process.returncode == 143


def test_a_timeout_is_at_least_five_seconds(capsys):
    assert "process_timeout is 1: it must be at least 5 seconds" in fails(
        capsys, "fit", f"--config={CONFIG}", "--process_timeout=1"
    )


def test_more_devices_than_there_are(capsys):
    assert "trainer.devices is 4096, but this machine has" in fails(
        capsys, "fit", f"--config={CONFIG}", "--trainer.devices=4096"
    )
