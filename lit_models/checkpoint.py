"""What a checkpoint says of itself, and reading one without running what is in it."""

import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule


def class_path(value: object) -> str:
    """Where an object's class is imported from, the package itself if that has it: `lit_models.Net`."""
    module, name = type(value).__module__, type(value).__qualname__
    package = module.partition(".")[0]
    return f"{package if getattr(sys.modules[package], name, None) is type(value) else module}.{name}"


def record_classes(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Names the model's class, and its data module's, in a checkpoint: call it from `on_save_checkpoint`.

    Lightning stores the hyperparameters of both; with the names, the checkpoint alone is enough to build them.
    """
    checkpoint["model_class"] = class_path(module)
    if module.trainer.datamodule is not None:
        checkpoint["data_class"] = class_path(module.trainer.datamodule)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU, tensors and primitives only.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is cut short, holds code (which isn't run), or isn't a Lightning checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise ValueError(f"{path} is refused: it contains code, not only tensors and numbers") from error
        raise ValueError(f"{path} is not a checkpoint, or a damaged one") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a checkpoint, or is cut short") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    return checkpoint
