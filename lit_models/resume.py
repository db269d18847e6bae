"""Going on as if a run had never stopped: in every process, the random generators and the epoch in progress."""

import io
import random
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the generators that everybody shares: PyTorch's, its one on a GPU, NumPy's and Python's."""
    _, key, *rest = np.random.get_state()
    numpy = [torch.from_numpy(key.copy()), *rest]
    state = {"torch": torch.get_rng_state(), "numpy": numpy, "python": random.getstate()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Puts the shared generators into a state of `random_state`; a GPU's only if it was taken on one."""
    torch.set_rng_state(state["torch"])
    key, *rest = state["numpy"]
    np.random.set_state(("MT19937", key.numpy(), *rest))
    random.setstate(state["python"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def record_progress(module: LightningModule, checkpoint: dict[str, Any], progress: dict[str, Any]) -> None:
    """Adds to a checkpoint where each process is: call it from `on_save_checkpoint`.

    Args:
        module: The model.
        checkpoint: What is written.
        progress: What this process has summed up in the epoch, or else needs: tensors, numbers and text.
    """
    trainer, states = module.trainer, []
    # Not where only the weights are kept, nor where another process may not get here any more.
    if "optimizer_states" in checkpoint and not (trainer.world_size > 1 and trainer.interrupted):
        states = [progress | {"random": random_state(module.device)}]
        if trainer.state.fn == "fit" and trainer.fit_loop.epoch_loop._should_accumulate():
            states[0]["gradients"] = [parameter.grad for parameter in module.parameters()]
        if trainer.world_size > 1:
            states = gathered(states, trainer.world_size)
    checkpoint["processes"] = states


def kept_progress(module: LightningModule, checkpoint: dict[str, Any]) -> list[dict[str, Any]] | None:
    """What a model keeps as `resumed`, in `on_load_checkpoint`: where each process was; None if it isn't trained."""
    training = module._trainer is not None and module.trainer.training
    return checkpoint.get("processes", []) if training else None


def resume_progress(module: LightningModule) -> dict[str, Any]:
    """What `record_progress` was given in this process, as training starts; puts random generators and gradients back.

    Returns:
        Nothing if no run is resumed, or one of another number of processes.
    """
    states, module.resumed = module.resumed, None
    if states is None:
        return {}
    if len(states) != module.trainer.world_size:
        rank_zero_info("The checkpoint is not of as many processes: what is drawn at random starts anew")
        return {}
    state = states[module.global_rank]
    set_random_state(state["random"], module.device)
    for parameter, gradient in zip(module.parameters(), state.get("gradients", []), strict=False):
        parameter.grad = None if gradient is None else gradient.to(parameter.device)
    return state


def gathered(states: list[dict[str, Any]], processes: int) -> list[dict[str, Any]]:
    """The states of all processes, in every one of them."""
    content = io.BytesIO()
    torch.save(states, content)
    contents = [b""] * processes
    torch.distributed.all_gather_object(contents, content.getvalue())
    return [state for content in contents for state in torch.load(io.BytesIO(content), "cpu", weights_only=True)]
