"""The processes of a run: signs of life between them, and an end for one that would wait for ever."""

import contextlib
import functools
import math
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import NoReturn

import torch
from lightning import Trainer
from rich.console import Console
from typing_extensions import Self

from lit_models.common.messages import format_list
from lit_models.training.internals import agree_on_sigterm, launches_commands

BEAT = 1.0  # seconds between signs of life
GRACE = 8.0  # seconds after SIGTERM that a process of several may take to its next step
TOGETHER = 0.3  # seconds within which two SIGTERM are one: a group of processes gets it, and those it has started again
TERMINATED = 128 + signal.SIGTERM


class Watch:
    """Ends this process where it would wait for ever for another one, and where SIGTERM finds it waiting.

    A process that is stuck in a collective runs no Python, so two threads do this. One counts, in the store that the
    processes have met in, and reads how far the others have counted; it may get stuck, too. The other one never waits:
    it ends the process, with one line, if no news has come for too long. It knows of SIGTERM at once, from the C part
    of Python's signal handlers. How long the processes wait for each other in a collective does not matter, as long as
    each of them is alive: the first may download, draw or save for minutes.

    A process that has ended well says so in the store; of one that has failed, torch tells the others.

    Args:
        trainer: The Trainer that is about to run.
        timeout: Seconds without a sign of life, or without all having met, after which this process ends.
        report: Prints an error in one line, and returns the exit status.
    """

    def __init__(self, trainer: Trainer, timeout: float, report: Callable[[str], int]) -> None:
        self.trainer, self.timeout, self.report = trainer, timeout, report
        self.several = trainer.num_nodes * trainer.num_devices > 1 and launches_commands(trainer)
        self.beats = 0  # of this process, which stop with it: neither a frozen nor a suspended one blames the others
        self.heard: dict[int, float] = {}  # the beat at which each other process was last heard of
        self.names: dict[int, str] = {}  # of their machines
        self.over, self.ended_well = threading.Event(), False
        self.threads = [threading.Thread(target=self._watch, daemon=True)]
        if self.several:
            self.threads.append(threading.Thread(target=self._talk, daemon=True))

    def __enter__(self) -> Self:
        agree_on_sigterm(self.trainer)
        self.signals, self.wakeup = socket.socketpair()
        self.signals.setblocking(False)
        self.wakeup.setblocking(False)
        self.handles_signals = threading.current_thread() is threading.main_thread()
        if self.handles_signals:
            keep_signals_from_children()
            self.wakeup_before = signal.set_wakeup_fd(self.wakeup.fileno(), warn_on_full_buffer=False)
        for thread in self.threads:
            thread.start()
        if self.several:
            choose_interface(self.trainer.strategy.cluster_environment.main_address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.handles_signals:
            signal.set_wakeup_fd(self.wakeup_before)
        self.ended_well = not isinstance(error, Exception)  # also where SIGTERM has ended all of them
        self.over.set()
        self.wakeup.send(b"\0")
        for thread in self.threads:
            thread.join(4 * BEAT)  # the one that talks may be stuck
        self.signals.close()
        self.wakeup.close()

    def _watch(self) -> None:
        grace, terminated = math.inf, False
        while not self.over.is_set():
            select.select([self.signals], [], [], BEAT if self.several else None)
            if signal.SIGTERM in self._received():
                self._forward(signal.SIGTERM)
                if terminated:
                    os._exit(TERMINATED)
                terminated = True
                time.sleep(TOGETHER)
                self._received()
                if self.several:
                    grace = GRACE / BEAT
            self.beats += 1
            grace -= 1
            if self.over.is_set() or not self.several:
                continue
            if grace <= 0:
                self.report("stopped by SIGTERM, in a step that did not end: go on with --ckpt_path last")
                self._leave(TERMINATED)
            self._judge()

    def _received(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            return self.signals.recv(4096)
        return b""

    def _judge(self) -> None:
        limit = self.timeout / BEAT
        lost = [rank for rank, beat in sorted(self.heard.items()) if self.beats - beat > limit]
        if lost:
            lost = [0] if 0 in lost else lost  # through which all of them are heard
            names = format_list([f"{rank} on {self.names[rank]}" for rank in lost])
            self._leave(
                self.report(
                    f"no sign of life for {self.timeout:g} seconds from process {names}: it is frozen, has "
                    "failed, or its machine cannot be reached; mend that, end what is left of this run, and go on with "
                    "--ckpt_path last"
                )
            )
        # On one machine, Lightning starts the others only now, and ends the run if one of them fails.
        if not self.heard and self.beats > limit and self.trainer.num_nodes > 1:
            self._leave(self.report(not_met(self.trainer, self.timeout)))

    def _talk(self) -> None:
        while not torch.distributed.is_initialized():
            if self.over.wait(BEAT / 10):
                return
        own, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        others = [rank for rank in range(world) if rank != own]
        keys = [f"lit_models/{rank}" for rank in others]
        with contextlib.suppress(RuntimeError):  # the store cannot be reached: the other thread will notice
            limit = timedelta(seconds=self.timeout)
            store = torch.distributed.TCPStore(*meeting_place(self.trainer), is_master=False, timeout=limit)
            count, said, name = 0, [b""] * len(others), socket.gethostname()
            store.set(f"lit_models/{own}", f"{name} {count}")
            store.wait(keys, limit)
            while self._hear(others, said, store.multi_get(keys)) and not self.over.wait(BEAT):
                count += 1
                store.set(f"lit_models/{own}", f"{name} {count}")
            if self.ended_well:
                store.set(f"lit_models/{own}", "ended")
                # The store goes with the first process; the others are to read in it that this one has ended well.
                for _ in range(20 if own == 0 else 0):
                    if not self._hear(others, said, store.multi_get(keys)):
                        break
                    time.sleep(BEAT / 10)

    def _hear(self, others: list[int], said: list[bytes], says: list[bytes]) -> bool:
        """Notes which of the others have gone on counting; whether any of them has not ended."""
        for index, (rank, news) in enumerate(zip(others, says, strict=True)):
            if news == b"ended":
                self.heard[rank] = math.inf
            elif news != said[index]:
                self.names[rank] = news.decode().partition(" ")[0]
                self.heard[rank] = self.beats
            said[index] = news
        return any(beat < math.inf for beat in self.heard.values())

    def _forward(self, signum: int) -> None:
        if (launcher := self.trainer.strategy.launcher) is not None:
            launcher.kill(signum)

    def _leave(self, status: int) -> NoReturn:
        """Ends the process from a thread, and those that it has started, of which one may be frozen."""
        Console().show_cursor()  # a progress bar hides it
        sys.stdout.flush()
        self._forward(signal.SIGKILL)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(status)


@functools.cache
def keep_signals_from_children() -> None:
    """Has forked processes, such as a data loader's, not pass their own signals on to this one's `wakeup`."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def meeting_place(trainer: Trainer) -> tuple[str, int]:
    """The address and port where the processes of a run meet."""
    environment = trainer.strategy.cluster_environment
    return environment.main_address, environment.main_port


def not_met(trainer: Trainer, timeout: float) -> str:
    """That the processes have not met, with what is known of the reason."""
    address, port = meeting_place(trainer)
    reason = ""
    if trainer.strategy.global_rank > 0:
        try:
            socket.create_connection((address, port), timeout=5).close()
        except socket.gaierror:
            reason = f" ({address} is no known name)"
        except OSError as error:
            reason = f" ({error.strerror or 'no answer'})"
    return (
        f"the {trainer.num_nodes * trainer.num_devices} processes of this run have not met at {address}:{port} within "
        f"{timeout:g} seconds{reason}: start one command per machine, each with its own NODE_RANK, and MASTER_ADDR and "
        "MASTER_PORT of the first; --process_timeout gives them more time"
    )


def choose_interface(master: str) -> None:
    """Has gloo use the network interface that leads to the first machine, unless another one is chosen.

    Gloo would take the address that the machine's own name stands for, which many have as 127.0.1.1 in /etc/hosts.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with contextlib.suppress(OSError, ImportError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        import fcntl  # not on Windows

        probe.connect((master, 9))  # a datagram socket: nothing is sent
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            with contextlib.suppress(OSError):  # an interface without an address
                if socket.inet_ntoa(fcntl.ioctl(probe, 0x8915, request)[20:24]) == own:  # SIOCGIFADDR
                    os.environ["GLOO_SOCKET_IFNAME"] = name
