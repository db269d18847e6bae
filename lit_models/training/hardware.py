"""The machine: checks of precisions, devices and compilers before a run, and the memory of the C library."""

import contextlib
import ctypes
import os
import warnings
from typing import Any

import torch


def check_hardware(config: Any) -> None:
    """Raises a ValueError where a Trainer is asked for a precision or for devices that this machine doesn't have.

    Lightning finds some of these out late, and takes bf16 for 16-mixed on a CPU without a word.
    """
    kind, precision = device_kind(config.accelerator), str(config.precision)
    if kind is None:
        return
    if kind == "cpu" and precision in ("16", "16-mixed"):
        raise ValueError(f"precision {precision} needs a GPU: set trainer.precision to bf16-mixed or 32")
    if kind == "cuda" and "bf16" in precision and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"this GPU cannot do precision {precision}: set trainer.precision to 16-mixed or 32")
    if kind == "mps" and "64" in precision:
        raise ValueError(f"this GPU cannot do precision {precision}: set trainer.precision to 32")
    if kind == "cpu" and str(config.strategy).startswith(("fsdp", "deepspeed")):
        raise ValueError(f"strategy {config.strategy} needs GPUs: set trainer.strategy to ddp")
    # Two processes can be tried on a single core; a hundred would take all of the memory.
    there = {"cpu": max(os.cpu_count() or 1, 2), "cuda": torch.cuda.device_count(), "mps": 1}[kind]
    wanted = config.devices
    if isinstance(wanted, str) and wanted.lstrip("-").isdigit():
        wanted = int(wanted)
    if kind == "cpu" and wanted != "auto" and not (isinstance(wanted, int) and wanted > 0):
        raise ValueError(f"trainer.devices is {wanted}: on a CPU it is a number of processes, 1 or more, or auto")
    if isinstance(wanted, int) and wanted > there:
        have = {"cpu": f"{there} processors", "cuda": f"{there} GPU(s)", "mps": "1 GPU"}[kind]
        raise ValueError(f"trainer.devices is {wanted}, but this machine has {have}: set it to at most {there}")


def device_kind(accelerator: Any) -> str | None:
    """`cpu`, `cuda` or `mps`, whichever Lightning will take for an accelerator's name; None for any other."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    gpu = "cuda" if cuda else "mps" if mps else None
    if accelerator in ("gpu", "cuda", "mps"):
        if gpu is None or accelerator not in ("gpu", gpu):
            raise ValueError(f"accelerator {accelerator}: this machine has none; set trainer.accelerator to auto")
        return gpu
    return {"auto": gpu or "cpu", "cpu": "cpu"}.get(str(accelerator))


def compile_available(device: torch.device) -> bool:
    """Whether `torch.compile` works on a device; warns if it doesn't, for want of a compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # what it raises depends on what is missing
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        warnings.warn(f"not compiled, since the compiler does not work here: {reason}", stacklevel=2)
        return False
    return True


def keep_freed_memory() -> None:
    """Has glibc keep freed memory for the next step; by default it returns it, and every page is faulted in again.

    That took up to a fifth of the time that a small network trains on a CPU. Other C libraries are left as they are.
    """
    with contextlib.suppress(AttributeError, TypeError):  # no `mallopt`; on Windows, no library of that name
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: what it keeps at most
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, the greatest: what is larger is always returned
