"""Self-describing checkpoints: safe reading, rebuilding of the model, and the config of the run."""

import contextlib
import importlib
import inspect
import json
import math
import pickle
import shlex
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lit_models.common.files import atomic_write
from lit_models.common.messages import require_extra
from lit_models.training.trust import (
    Modules,
    as_list,
    check_foreign,
    is_importable,
    leaves,
    may_build,
    module_of,
    plain_settings,
    untrusted,
)

RESUME_SECTIONS = ("model", "data", "seed_everything")  # what a resumed run must not contradict
# What may differ then for data modules without `resume_may_change`: where data are, and how they are read.
DATA_LOCATIONS = frozenset({"data_dir", "root", "path", "download", "num_workers"})

# What zipfile raises for other files, truncated ones, and flipped bits that mark an entry as compressed or encrypted.
UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)

FOLDER = 0x10  # zip's mark for one, among an entry's external attributes

# Types of the parts of a checkpoint that are read here, and their names in errors.
PART_TYPES = {"state_dict": dict, "config": dict, "hyper_parameters": dict, "datamodule_hyper_parameters": dict}
PART_TYPES |= {
    "input_shape": list,
    "model_class": str,
    "data_class": str,
    "epoch": int,
    "global_step": int,
    "env_steps": int,
}
TYPE_NAMES = {dict: "dictionary with string keys", list: "list of sizes", str: "string", int: "number"}
MAX_INPUT = 2**28  # numbers in one input of a model
# What a constructor raises for arguments of other types than it takes.
WRONG_TYPE_ERRORS = (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
COMMAND_KEYS = {"ckpt_path", "config", "modules"}  # of the config of a run that goes on: what its command was given


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it: a kill in the middle leaves the previous one as it was.

    Lightning's goes through the system's temporary folder, from which it may have to be copied, and holds the whole
    file in memory, which a replay buffer may be too large for.
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint to a local file; to a URL, as Lightning does.

        Raises:
            OSError: It can't be written; what was there before is left.
        """
        if "://" in str(path):
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


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint onto the CPU, tensors and primitives only.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds code (which isn't run), or isn't a Lightning checkpoint.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    try:
        with zipfile.ZipFile(path) as file:  # PyTorch does not look at the checksums
            # It would also take a part that is marked as a folder for an empty one, and fill it with anything.
            folders = [entry.filename for entry in file.infolist() if entry.external_attr & FOLDER]
            damaged = file.testzip() or next(iter(folders), None)
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a checkpoint, or is cut short") from error
    if damaged:
        raise ValueError(f"{path} is damaged: {damaged} in it is not what was written")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise ValueError(f"{path} is refused: it contains code, not only tensors and numbers") from error
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
            fits = all(type(size) is int and size > 0 for size in part) and math.prod(part) <= MAX_INPUT
        if not fits:
            raise ValueError(f"{path} is damaged: its {key} is not a {TYPE_NAMES[kind]}")


def load(path: str | Path, num_classes: int | None = None, modules: Modules = None) -> LightningModule:
    """Rebuilds the model of a checkpoint, or of an export to safetensors.

    Args:
        path: The file. None of what is in it is run.
        num_classes: For a classifier that is to be trained on other classes: how many. If they are not as many as it
            has, its last layer is replaced by a fresh one, which is said, and the names of the classes are forgotten.
        modules: Modules of your own, which the file may name a class or a gymnasium environment of, as
            `["my_module"]`: of others than these, this project, torch, torchvision and lightning, nothing is imported.

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
        raise FileNotFoundError(f"no checkpoint {path}")
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
    with one_line_errors(path, name):
        model = kind(**hyperparameters)
    state, own = checkpoint["state_dict"], model.state_dict()
    if replaced:
        with one_line_errors(path, name):
            fresh = [key for key in own if key in state and own[key].shape != state[key].shape]
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
        before = checkpoint["hyper_parameters"]["num_classes"]
        part = heads[0] or fresh[0]
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

    def fetches(key: str, value: Any) -> bool:
        return (key == "download" and bool(value)) or (key == "weights" and isinstance(value, str))

    given = hyperparameters or {}
    return {key: value for key, value in given.items() if key in required or not fetches(key, value)}


def find_class(name: str, path: str | Path, modules: Modules = None) -> type[LightningModule]:
    """The class that the file at `path` names, `lit_models.Net` for one.

    Raises:
        ValueError: There is none, or it is of a module that is not to be imported.
    """
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


def recorded_config(
    checkpoint: dict[str, Any], path: str, modules: Modules = None, resuming: bool = False
) -> dict[str, Any]:
    """The part of a checkpoint's config that a command takes over: model and data.

    To resume training, also the seed and plain settings. What has effects elsewhere (callbacks, loggers, paths) is
    never taken from a checkpoint, but from the `config.yaml` of the run in whose folder it lies; outside of one it is
    left out, with a warning.

    Args:
        checkpoint: Content of the checkpoint.
        path: Its path.
        modules: Modules that the user has named.
        resuming: Whether training is resumed.

    Raises:
        ValueError: A part is damaged, or names a class of a module that is not to be imported.
    """
    recorded = checkpoint.get("config") or {}
    config: dict[str, Any] = {}
    for key, hyperparameters in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        section = recorded.get(key) or {}
        if not isinstance(section, dict) or not isinstance(section.get("init_args") or {}, dict):
            raise ValueError(f"{path} is damaged: {key} in its config is no class with its arguments")
        known = section.get("init_args") or {}
        class_path = checkpoint.get(f"{key}_class")
        if class_path is not None:
            if class_path.startswith("__main__."):
                raise ValueError(f"{path} holds {class_path}: move the class into a module that can be imported")
            # The hyperparameters last: a model takes over some from its data, such as class names.
            known = known | (checkpoint.get(hyperparameters) or {})
        if (class_path := class_path or section.get("class_path")) is not None:
            config[key] = {"class_path": class_path, "init_args": without_downloads(known)}
            check_keys(known, path)
    if resuming and recorded:
        check_keys(recorded, path)
        for section in recorded.values():
            check_keys(section, path)
        rest = {key: value for key, value in recorded.items() if key not in {"model", "data"} | COMMAND_KEYS}
        kept, left = plain_settings(rest)
        run = run_folder(path)
        if run is not None:
            for section, settings in run_settings(run, modules).items():
                nested = isinstance(settings, dict) and isinstance(kept.get(section, {}), dict)
                kept[section] = settings | kept.get(section, {}) if nested else kept.get(section, settings)
        elif left:
            rank_zero_warn(
                f"{path} does not lie in its run's folder, so that {', '.join(left)} of its config are left out: to "
                "have them, give them as options or in a config file"
            )
        config |= kept
    try:
        config = json.loads(json.dumps(config))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used from the command line: in its config, {error}") from error
    check_foreign({key: config[key] for key in ("model", "data") if key in config}, path, modules)
    return config


def check_keys(content: Any, path: str | Path) -> None:
    """Raises a ValueError where keys have dots, which jsonargparse takes for nested keys."""
    for key in content if isinstance(content, dict) else ():
        if not isinstance(key, str) or "." in key:
            raise ValueError(f"{path} is damaged: {key!r} in its config is no name")


def run_folder(path: str | Path) -> Path | None:
    """The run folder of a checkpoint at `<run>/checkpoints/last.ckpt`, or None."""
    run = Path(path).parent.parent
    return run if (run / "config.yaml").is_file() else None


def run_settings(run: Path, modules: Modules) -> dict[str, Any]:
    """The settings in a run's own `config.yaml`, except model, data and seed."""
    path = run / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: give all options anew, without --ckpt_path, or mend it") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: give all options anew, without --ckpt_path, or mend it")
    config = {key: value for key, value in config.items() if key not in {*RESUME_SECTIONS, *COMMAND_KEYS}}
    check_foreign(config, path, modules, built=(object,))  # callbacks, loggers and all else; no functions
    return config


def modules_option(trainer: Trainer, named: Iterable[str] = ()) -> str:
    """The option ` --modules my_module` that a command needs for a checkpoint of this run, or an empty string.

    Args:
        trainer: The Trainer, with model and data module.
        named: Modules that the run's own command has named.
    """
    model, data = trainer.lightning_module, trainer.datamodule
    names = [class_path(value) for value in (model, data) if value is not None]
    names += [text for keys, text in leaves(dict(model.hparams)) if keys[-1] == "env_id" and ":" in text]
    modules = {*named, *(module_of(name) for name in names if not is_importable(name, named))}
    modules = sorted(name for name in modules if not may_build(name))
    value = modules[0] if len(modules) == 1 else f"[{', '.join(modules)}]"
    return f" --modules {shlex.quote(value)}" if modules else ""


def with_config(args: list[str], config: dict[str, Any], first: bool) -> list[str]:
    """Arguments with a config inserted: right after the command, or after the last `--config`."""
    at = 1
    if not first:
        for index, arg in enumerate(args):
            if arg in ("--config", "-c"):
                at = index + 2
            elif arg.startswith(("--config=", "-c")):
                at = index + 1
    return [*args[:at], "--config", json.dumps(config), *args[at:]]


def check_resume(asked: Any, recorded: Any, path: str, resuming: bool) -> None:
    """Raises a ValueError where a command asks for another model class, or would resume another run."""
    if asked.model.class_path != recorded.model.class_path:
        raise ValueError(f"{path} holds {recorded.model.class_path}, but {asked.model.class_path} is asked for")
    if not resuming:
        return
    old, new = (flat({key: config[key] for key in RESUME_SECTIONS}) for config in (recorded, asked))
    model = import_class(asked.model.class_path)
    data = import_class(asked.data.class_path) if asked.get("data") else None
    ignored = {f"model.{name}" for name in getattr(model, "resume_may_change", ())}
    ignored |= {f"data.{name}" for name in getattr(data, "resume_may_change", DATA_LOCATIONS)}
    ignored |= {f"model.{name}" for name in getattr(model, "from_data", ()) if new.get(f"model.{name}") is None}
    differing = sorted(key for key in old.keys() | new.keys() if key not in ignored and old.get(key) != new.get(key))
    changed = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in differing]
    if changed:
        raise ValueError(
            f"cannot resume {path} with another model, data or seed ({', '.join(changed)}); leave them out to go on, "
            "or start a new run without --ckpt_path"
        )


def import_class(path: str) -> Any:
    """The class of a class path that has been parsed, which may lie in another class."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return getattr(import_class(module), name)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries or namespaces, keys joined with dots; a class path gets its object's key."""
    value = vars(value) if isinstance(value, Namespace) else value
    if not isinstance(value, dict):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result |= flat(inner, prefix if key in ("class_path", "init_args") else f"{prefix}.{key}".lstrip("."))
    return result
