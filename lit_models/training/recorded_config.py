"""The config that a checkpoint records: what a command takes over of it, and what it must not contradict."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn

from lit_models.training.checkpoint import class_path, without_downloads
from lit_models.training.trust import (
    BUILT,
    Modules,
    check_foreign,
    is_importable,
    leaves,
    may_build,
    module_of,
    plain_settings,
    wrapper_modules,
)

RESUME_SECTIONS = ("model", "data", "seed_everything")  # what a resumed run must not contradict
# What may differ then for data modules without `resume_may_change`: where data are, and how they are read.
DATA_LOCATIONS = frozenset({"data_dir", "root", "path", "download", "num_workers"})
COMMAND_KEYS = {"ckpt_path", "config", "modules"}  # of the config of a run that goes on: what its command was given


def recorded_config(checkpoint: dict[str, Any], path: str, modules: Modules, resuming: bool) -> dict[str, Any]:
    """The part of a checkpoint's config that a command takes over: model and data.

    To resume training, also the seed and plain settings. What has effects elsewhere (callbacks, loggers, paths) is
    never taken from a checkpoint, but from the `config.yaml` of the run in whose folder it lies; outside of one it is
    left out, with a warning. A ValueError says that a part is damaged, or names a class that is not to be imported.
    """
    recorded = checkpoint.get("config") or {}
    config: dict[str, Any] = {}
    for key, hyperparameters in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        section = recorded.get(key) or {}
        if not isinstance(section, dict) or not isinstance(section.get("init_args") or {}, dict):
            raise ValueError(f"{path} is damaged: {key} in its config is no class with its arguments")
        known = section.get("init_args") or {}
        name = checkpoint.get(f"{key}_class")
        if name is not None:
            if name.startswith("__main__."):
                raise ValueError(f"{path} holds {name}: move the class into a module that can be imported")
            # The hyperparameters last: a model takes over some from its data, such as class names.
            known = known | (checkpoint.get(hyperparameters) or {})
        if (name := name or section.get("class_path")) is not None:
            config[key] = {"class_path": name, "init_args": without_downloads(known)}
            check_keys(known, path)
    if resuming and recorded:
        for content in (recorded, *recorded.values()):
            check_keys(content, path)
        rest = {key: value for key, value in recorded.items() if key not in {"model", "data"} | COMMAND_KEYS}
        kept, left = plain_settings(rest)
        if run := run_folder(path):
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
        # What is replaced is how jsonargparse writes a name that might be a function, and a device.
        config = yaml.safe_load(path.read_text().replace("Unable to serialize instance ", ""))
    except (yaml.YAMLError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"{path} is damaged: give all options anew, without --ckpt_path, or mend it")
    config = {key: value for key, value in config.items() if key not in {*RESUME_SECTIONS, *COMMAND_KEYS}}
    check_foreign(config, path, modules, built=(object,))  # callbacks, loggers and all else; no functions
    return config


def modules_option(trainer: Trainer, named: Iterable[str] = ()) -> str:
    """` --modules my_module`, with those `named` before, as a command needs it for a checkpoint of this run, or ""."""
    model, data = trainer.lightning_module, trainer.datamodule
    names = [class_path(value) for value in (model, data) if value is not None]
    names += [text for keys, text in leaves(dict(model.hparams)) if keys[-1] == "env_id" and ":" in text]
    modules = {*named, *(module_of(name) for name in names if not is_importable(name, named))}
    modules |= {name for name in wrapper_modules(dict(model.hparams)) if not is_importable(name, named)}
    # Callbacks and loggers are never a checkpoint's, but those of the run's config.yaml.
    modules = sorted(name for name in modules if not may_build(name, (*BUILT, Callback, Logger)))
    value = modules[0] if len(modules) == 1 else f"[{', '.join(modules)}]"
    return f" --modules {shlex.quote(value)}" if modules else ""


def with_config(args: list[str], config: dict[str, Any], first: bool) -> list[str]:
    """Arguments with a config inserted: right after the command, or after the last `--config`."""
    at = 1
    for index, arg in enumerate([] if first else args):
        if arg == "--config" or arg.startswith(("--config=", "-c")):
            at = index + (2 if arg in ("--config", "-c") else 1)
    return [*args[:at], "--config", json.dumps(config), *args[at:]]


def check_resume(asked: Any, recorded: Any, path: str, resuming: bool) -> None:
    """Raises a ValueError where a command asks for another model class, or would resume another run."""
    if asked.model.class_path != recorded.model.class_path:
        raise ValueError(f"{path} holds {recorded.model.class_path}, but {asked.model.class_path} is asked for")
    if not resuming:
        return
    old, new = (flat({key: config[key] for key in RESUME_SECTIONS}) for config in (recorded, asked))
    model = resolve_name(asked.model.class_path)
    data = resolve_name(asked.data.class_path) if asked.get("data") else None
    ignored = {f"model.{name}" for name in getattr(model, "resume_may_change", ())}
    ignored |= {f"data.{name}" for name in getattr(data, "resume_may_change", DATA_LOCATIONS)}
    for section, kind in (("model", model), ("data", data)):  # what is taken from the data, where it is not given
        ignored |= {
            f"{section}.{name}" for name in getattr(kind, "from_data", ()) if new.get(f"{section}.{name}") is None
        }
    differing = sorted(key for key in old.keys() | new.keys() if key not in ignored and old.get(key) != new.get(key))
    changed = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in differing]
    if changed:
        raise ValueError(
            f"cannot resume {path} with another model, data or seed ({', '.join(changed)}); leave them out to go on, "
            "or start a new run without --ckpt_path"
        )


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries or namespaces, keys joined with dots; a class path gets its object's key."""
    value = vars(value) if isinstance(value, Namespace) else value
    if not isinstance(value, dict):
        return {prefix: value}
    result: dict[str, Any] = {}
    for key, inner in value.items():
        result |= flat(inner, prefix if key in ("class_path", "init_args") else f"{prefix}.{key}".lstrip("."))
    return result
