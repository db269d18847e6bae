"""Runs of two machines: network namespaces with an address each, joined by a cable that can be cut."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from launch import CONFIG, TWO, finished, start

from benchmarks.resume import alike, end

pytestmark = pytest.mark.slow  # each starts several processes
ADDRESSES = ["10.77.0.1", "10.77.0.2"]
LONG = ["--trainer.max_epochs=100", "--trainer.limit_val_batches=3", "--checkpoint_every_n_steps=7"]
SHORT = ["--trainer.max_epochs=2", "--trainer.limit_train_batches=60", *LONG[1:]]


class Machines:
    def __init__(self, folder):
        self.folder, self.processes = folder, []
        self.names = [f"lit{os.getpid()}-{number}" for number in range(2)]

    def ip(self, command):
        made = subprocess.run(["ip", *command.split()], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")

    def connect(self):
        one, two = self.names
        self.ip(f"netns add {one}")
        self.ip(f"netns add {two}")
        self.ip(f"link add cable netns {one} type veth peer name cable netns {two}")
        for name, address in zip(self.names, ADDRESSES, strict=True):
            self.ip(f"-n {name} addr add {address}/24 dev cable")
            self.ip(f"-n {name} link set lo up")
            self.ip(f"-n {name} link set cable up")

    def fit(self, rank, *flags, logs="logs", **variables):
        at = ["ip", "netns", "exec", self.names[rank]]
        fit = [sys.executable, "-m", "lit_models", "fit", f"--config={CONFIG}", *TWO]
        flags = ["--trainer.num_nodes=2", "--trainer.devices=1", f"--trainer.default_root_dir={logs}", *flags]
        variables = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500", "NODE_RANK": str(rank)} | variables
        self.processes.append(start([*at, *fit, *flags], self.folder, **variables))
        return self.processes[-1]

    def fit_both(self, *flags, logs="logs", **variables):
        """Both processes, once they are in the middle of an epoch."""
        both = [self.fit(rank, *flags, logs=logs, **variables) for rank in range(2)]
        last = self.folder / logs / "mnist" / "version_0" / "checkpoints" / "last.ckpt"
        while all(process.poll() is None for process in both) and not last.exists():
            time.sleep(0.01)
        return both

    def clean(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.fixture
def machines(tmp_path):
    try:
        subprocess.run(["ip", "-V"], capture_output=True)
    except FileNotFoundError:
        pytest.skip("network namespaces need the command ip")
    made = Machines(tmp_path)
    try:
        made.connect()
        yield made
    finally:
        made.clean()


def errors(text):
    return [line for line in text.splitlines() if "error" in line]


def test_a_cable_that_is_cut_ends_both_and_the_run_goes_on_to_the_bit(machines):
    for process in machines.fit_both(*SHORT, logs="whole"):
        text = finished(process)
        assert process.returncode == 0, text
    both = machines.fit_both(*SHORT, "--process_timeout=15", logs="cut")
    machines.ip(f"-n {machines.names[0]} link set cable down")
    for other, process in zip((1, 0), both, strict=True):
        (error,) = errors(finished(process, timeout=60))
        assert f"no sign of life for 15 seconds from process {other} on " in error
        assert "go on with --ckpt_path last" in error
        assert process.returncode == 1
    machines.ip(f"-n {machines.names[0]} link set cable up")
    for process in machines.fit_both(*SHORT, "--ckpt_path=last", logs="cut"):
        text = finished(process)
        assert process.returncode == 0, text
    assert alike(end(machines.folder / "cut" / "mnist"), end(machines.folder / "whole" / "mnist"))


def test_sigterm_ends_a_process_that_waits_for_one_which_cannot_be_reached(machines):
    both = machines.fit_both(*LONG, "--process_timeout=600")
    machines.ip(f"-n {machines.names[0]} link set cable down")
    time.sleep(1)  # until each waits for the other
    for process in both:
        process.terminate()
    time.sleep(1)
    both[1].terminate()
    text = finished(both[1], timeout=5)
    assert both[1].returncode == 143, text
    (error,) = errors(finished(both[0], timeout=30))
    assert "stopped by SIGTERM" in error
    assert both[0].returncode == 143


def test_sigterm_on_one_machine_ends_both_after_the_same_step(machines):
    both = machines.fit_both(*LONG, "--process_timeout=600")
    both[1].terminate()
    for process in both:
        text = finished(process, timeout=60)
        assert process.returncode == 143, text
        assert errors(text) == []


def test_a_machine_that_is_frozen_ends_the_other_and_itself_when_it_wakes(machines):
    one, two = machines.fit_both(*LONG, "--process_timeout=15")
    two.send_signal(signal.SIGSTOP)
    (error,) = errors(finished(one, timeout=60))
    assert "from process 1 on " in error
    assert one.returncode == 1
    two.send_signal(signal.SIGCONT)
    (error,) = errors(finished(two, timeout=60))
    # Which of the two it sees first when it wakes is a matter of chance.
    assert "another process of this run has ended" in error or "no sign of life for 15 seconds from process 0" in error
    assert two.returncode == 1


def test_a_slow_cable_is_slower_and_not_wrong(machines):
    few = [*SHORT, "--trainer.max_epochs=1", "--trainer.limit_train_batches=10", "--process_timeout=15"]
    ends = zip(machines.names, ["10.78.0.1", "10.78.0.2"], strict=True)
    cable = start([sys.executable, ROOT / "tests" / "slow_cable.py", 0.2, *(part for end in ends for part in end)], "/")
    machines.processes.append(cable)
    if "joined" not in cable.stdout.readline():
        pytest.skip(f"a slow cable cannot be made here: {finished(cable)}")
    for logs, first in (("slow", "10.78.0.1"), ("fast", ADDRESSES[0])):
        for process in machines.fit_both(*few, logs=logs, MASTER_ADDR=first):
            text = finished(process)
            assert process.returncode == 0, text
    assert alike(end(machines.folder / "slow" / "mnist"), end(machines.folder / "fast" / "mnist"))


def test_processes_that_do_not_meet_say_where_and_why(machines):
    five = "--process_timeout=5"
    expected = [
        (machines.fit(0, five), "have not met at 10.77.0.1:29500 within 5 seconds: start one"),
        (machines.fit(1, five, MASTER_PORT="1"), "at 10.77.0.1:1 within 5 seconds (Connection refused)"),
        (machines.fit(1, five, MASTER_ADDR="10.77.0.9"), "at 10.77.0.9:29500 within 5 seconds ("),
        (machines.fit(1, five, MASTER_ADDR="x.invalid"), "(x.invalid is no known name)"),
    ]
    for process, message in expected:
        (error,) = errors(finished(process, timeout=120))
        assert message in error
        assert "--process_timeout" in error
        assert process.returncode == 1
