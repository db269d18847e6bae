"""Self-describing checkpoints: safe reading, and rebuilding of the model."""

import contextlib
import importlib
import inspect
import json
import math
import pickle
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_models.common.files import atomic_write
from lit_models.common.messages import require_extra
from lit_models.training.pickled import find_object
from lit_models.training.trust import Modules, as_list, check_foreign, is_importable, leaves, untrusted

# Types of the parts of a checkpoint that are read here, and their names in errors.
PART_TYPES = {
    **dict.fromkeys(("state_dict", "config", "hyper_parameters", "datamodule_hyper_parameters"), dict),
    "input_shape": list,
    **dict.fromkeys(("model_class", "data_class"), str),
    **dict.fromkeys(("epoch", "global_step", "env_steps"), int),
}
TYPE_NAMES = {dict: "dictionary with string keys", list: "list of sizes", str: "string", int: "number"}
# What a constructor raises for arguments of other types than it takes.
WRONG_TYPE_ERRORS = (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a kill in the middle leaves the previous one as it was.

    Lightning's goes through the system's temporary folder, from which it may have to be copied, and holds the whole
    file in memory, which a replay buffer may be too large for.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # no local file
            return super().save_checkpoint(checkpoint, path, storage_options)
        way_out = "make room, then go on with --ckpt_path last, or set --trainer.default_root_dir to another disk"
        with atomic_write(Path(path), way_out) as partial:
            try:
                torch.save(checkpoint, partial)
            except RuntimeError as error:  # how PyTorch's writer says that the disk is full
                raise OSError(0, "is the disk full?") from error


def class_path(value: object) -> str:
    """The import path of an object's class, the shortest one: `lit_models.Net`."""
    module, name = type(value).__module__, type(value).__qualname__
    package = module.partition(".")[0]
    return f"{package if getattr(sys.modules[package], name, None) is type(value) else module}.{name}"


def save_class_paths(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Adds the class paths of the model and its data module to a checkpoint, which is then enough to rebuild both."""
    checkpoint["model_class"] = class_path(module)
    if module.trainer.datamodule is not None:
        checkpoint["data_class"] = class_path(module.trainer.datamodule)


def no_checkpoint(path: str | Path) -> FileNotFoundError:
    """That there is no such checkpoint; of a run's folder, which of its files may be meant."""
    inside = next(Path(path).rglob("last.ckpt"), None) if Path(path).is_dir() else None
    return FileNotFoundError(f"{path} is a folder: give {inside}" if inside else f"no checkpoint {path}")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A Lightning checkpoint on the CPU; refused with a ValueError if it is damaged, or holds code, which isn't run."""
    if not Path(path).is_file():
        raise no_checkpoint(path)
    try:
        with zipfile.ZipFile(path) as file:  # PyTorch does not look at the checksums
            # It would also take a part that is marked (0x10) as a folder for an empty one, and fill it with anything.
            folders = (entry.filename for entry in file.infolist() if entry.external_attr & 0x10)
            damaged = file.testzip() or next(folders, None)
    # For other files, truncated ones, and flipped bits that mark an entry as compressed or encrypted.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is not a checkpoint, or is cut short") from error
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged} in it is not what was written")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            found = find_object(path)
            where = f": {found}" if found else ""
            raise ValueError(f"{path} is refused: it contains code, not only tensors and numbers{where}") from error
        raise ValueError(f"{path} is not a checkpoint, or a damaged one") from error
    except (EOFError, OSError, ValueError, AssertionError, *WRONG_TYPE_ERRORS) as error:
        raise ValueError(f"{path} is not a checkpoint, or is cut short") from error
    for key in ("state_dict", "pytorch-lightning_version"):
        if not isinstance(checkpoint, dict) or key not in checkpoint:
            raise ValueError(f"{path} is not a Lightning checkpoint: it has no {key}")
    check_types(checkpoint, path)
    return checkpoint


def check_types(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raises a ValueError where a part of a checkpoint has another type than in every checkpoint."""
    for key, kind in PART_TYPES.items():
        part = checkpoint.get(key)
        if part is None and key != "state_dict":
            continue
        fits = isinstance(part, kind) and (kind is not dict or all(isinstance(name, str) for name in part))
        try:
            list(leaves(part))
        except ValueError:
            fits = False
        if key == "input_shape" and fits:  # memory is allocated for it
            fits = all(type(size) is int and size > 0 for size in part) and math.prod(part) <= 2**28
        if not fits:
            raise ValueError(f"{path} is damaged: its {key} is not a {TYPE_NAMES[kind]}")


def load(path: str | Path, num_classes: int | None = None, modules: Modules = None) -> LightningModule:
    """Rebuilds the model of a checkpoint, or of an export to safetensors.

    Args:
        path: The file. None of what is in it is run.
        num_classes: For a classifier that is to be trained on other classes: how many. If they are not as many as it
            has, its last layer is replaced by a fresh one, which is said, and the names of the classes are forgotten.
        modules: Modules of your own, which the file may name a class or a gymnasium environment of, as
            `["my_module"]`: of others than these, this project, torch, torchvision, lightning and pytorch_optimizer,
            nothing is imported.

    Returns:
        The model on the CPU, in eval mode: call its `train()` before training it further. Its optimizer is the
        default one, in its first state.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds code, names no class that there is, or one of a module that is not to be
            imported, or doesn't fit it; it is safetensors, and that package is missing; the model has no
            `num_classes`.
    """
    return build_model(read_model(path), path, num_classes, modules)


def read_model(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint or an export to safetensors, for `build_model`; raises what `load` does."""
    if not Path(path).is_file():
        raise no_checkpoint(path)
    with open(path, "rb") as file:
        if file.read(9)[8:] != b"{":  # where a safetensors file's header begins, after its length
            return read_checkpoint(path)
    require_extra("export", f"{path}: reading safetensors", "safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is cut short") from error
    try:
        hyperparameters = json.loads(metadata.get("hyperparameters", "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its hyperparameters are no JSON") from error
    model = {"state_dict": state, "model_class": metadata.get("model_class"), "hyper_parameters": hyperparameters}
    check_types(model, path)
    return model


def build_model(
    checkpoint: dict[str, Any], path: str | Path, num_classes: int | None = None, modules: Modules = None
) -> LightningModule:
    """Rebuilds the model of a checkpoint that was read from `path`; otherwise as `load`."""
    name = checkpoint.get("model_class")
    if name is None:
        raise ValueError(f"{path} does not name its model's class: load it with that class's load_from_checkpoint")
    kind = find_class(name, path, modules)
    parameters = inspect.signature(kind).parameters
    required = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
    hyperparameters = without_downloads(checkpoint.get("hyper_parameters"), required)
    check_foreign(hyperparameters, path, modules)
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        # Lightning records those of the base class too, whose constructor a subclass calls.
        hyperparameters = {key: value for key, value in hyperparameters.items() if key in parameters}
    replaced = num_classes is not None and hyperparameters.get("num_classes") != num_classes
    if replaced and "num_classes" not in hyperparameters:
        raise ValueError(f"{path} holds {name}, which has no num_classes: leave it out")
    if replaced:
        hyperparameters["num_classes"] = num_classes
        if "class_names" in hyperparameters:
            hyperparameters["class_names"] = None
        if isinstance(hyperparameters.get("class_weights"), list):
            hyperparameters["class_weights"] = None
    with one_line_errors(path, name):
        model = kind(**hyperparameters)
        state, own = checkpoint["state_dict"], model.state_dict()
        fresh = [key for key in own if key in state and own[key].shape != state[key].shape] if replaced else []
    if replaced:
        heads = sorted({key.rpartition(".")[0] for key in fresh})
        if len(heads) != 1:
            raise ValueError(f"{name}: num_classes is the size of {heads or 'nothing'}, not of one layer to replace")
        state = state | {key: own[key] for key in fresh}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        mismatch = str(error).splitlines()[1].strip()
        raise ValueError(f"{path} does not fit {name} as it is now: {mismatch}") from error
    if "pytorch-lightning_version" in checkpoint:
        with one_line_errors(path, name):
            model.on_load_checkpoint(checkpoint)
    if replaced:
        part, before = heads[0] or fresh[0], checkpoint["hyper_parameters"]["num_classes"]
        rank_zero_info(f"{part} of {name} is new, for {num_classes} classes instead of {before}: it is to be trained")
    return model.eval()


@contextlib.contextmanager
def one_line_errors(path: str | Path, name: str) -> Iterator[None]:
    """Turns what a class raises for arguments of other types into a ValueError of one line."""
    try:
        yield
    except WRONG_TYPE_ERRORS as error:
        raise ValueError(f"{path} does not fit {name} as it is now: {error or type(error).__name__}") from error


def without_downloads(hyperparameters: dict[str, Any] | None, required: Iterable[str] = ()) -> dict[str, Any]:
    """Hyperparameters without those that would start a download, unless they are required."""
    given = hyperparameters or {}
    fetching = {"download": bool(given.get("download")), "weights": isinstance(given.get("weights"), str)}
    return {key: value for key, value in given.items() if key in required or not fetching.get(key)}


def find_class(name: str, path: str | Path, modules: Modules = None) -> type[LightningModule]:
    """The LightningModule class that the file at `path` names, `lit_models.Net` for one."""
    module, _, attribute = name.rpartition(".")
    if module and not is_importable(name, as_list(modules)):
        raise ValueError(untrusted(path, name))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} holds {name}, which cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, LightningModule)):
        raise ValueError(f"{path} holds {name}, which is not a LightningModule")
    return found
