"""Trust in files from elsewhere: they may import and build only classes of ours, torch's, or of modules the user names.

Otherwise a checkpoint could choose what is imported, such as a file beside the command, and where a run writes.
"""

import contextlib
import importlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, _common, set_parsing_settings
from lightning import LightningDataModule, LightningModule
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Modules = list[str] | str | None

TRUSTED = ("lit_models", "datamodules", "rl", "torch", "torchvision", "lightning", "pytorch_optimizer")
FETCHING = ("lightning.pytorch.demos",)  # but for these, of which a data module downloads into any folder
# Options whose value is or contains a class, and those that may be a config file beside `--config`.
CLASSES = {"model", "data", "class_path", "optimizer", "lr_scheduler", "callbacks", "logger", "profiler", "plugins"}
CLASSES |= {"strategy", "env_id", "wrappers"}
SECTIONS = {"config", "trainer"}
# Settings whose text is no path, name or class; the last three are durations.
TEXTS = {"precision", "accelerator", "strategy", "devices", "deterministic", "gradient_clip_algorithm"}
TEXTS |= {"monitor", "mode", "logging_interval", "max_time", "val_check_interval", "train_time_interval"}
# What a checkpoint may build. A function would be called with arguments from the checkpoint.
BUILT = (LightningModule, LightningDataModule, nn.Module, Optimizer, LRScheduler)
MAX_DEPTH = 50  # of a config; Python itself gives up at a thousand calls
# Gymnasium's wrappers of environments, but for the one that writes files wherever it is told to.
GYMNASIUM_WRAPPER = re.compile(r"(gymnasium\.wrappers\.)?(?!RecordVideo)\w+")
DOTTED = re.compile(r"([^\W\d]\w*)(?:\.[^\W\d]\w*)+")  # what may be the path of a class, with its package


def as_list(modules: Modules) -> list[str]:
    """Modules as a list; the command line may give a single one."""
    return [modules] if isinstance(modules, str) else list(modules or ())


def is_inside(name: str, packages: Iterable[str]) -> bool:
    """Whether a dotted name lies in one of the packages, modules or classes, or is one."""
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


def is_importable(name: str, modules: Iterable[str] = ()) -> bool:
    """Whether a file may import a class or module: it is trusted, in one of the modules, or in `__main__`."""
    return is_inside(name, [*modules, "__main__"]) or (is_inside(name, TRUSTED) and not is_inside(name, FETCHING))


def module_of(name: str) -> str:
    """What `--modules` needs for a class `package.module.Class` or an environment `module:Name-v0`: the package."""
    package = re.split("[.:]", name)[0]
    return name.rpartition(".")[0] if package in TRUSTED else package


def untrusted(holder: object, name: str) -> str:
    """The error for a file with a class of a module that the user has not named."""
    module = module_of(name)
    return (
        f"{holder} holds {name}, from a module that is imported only if you name it: add --modules {module} "
        f'(in Python, modules=["{module}"])'
    )


def check_foreign(content: Any, path: object, modules: Modules, built: tuple[type, ...] = BUILT) -> None:
    """Raises a ValueError where a file's config or hyperparameters have what it may not import or build.

    That is, a class or environment that is not `is_importable` with the modules that the user has named, or of trusted
    modules anything but classes of the kinds in `built`.
    """
    named = as_list(modules)
    for keys, value in leaves(content):
        key = str(keys[-1]).rpartition(".")[2]  # jsonargparse takes `optimizer.class_path` for keys within one another
        if names_wrapper(keys):
            if not (GYMNASIUM_WRAPPER.fullmatch(value) or is_importable(value, named)):
                raise ValueError(untrusted(path, value))
            continue
        options = "env_options" in keys or "wrappers" in keys
        if options and (key == "class_path" or isinstance(parsed(value), dict | list)):
            # jsonargparse would build any class there, a writer too, since any value will do.
            raise ValueError(
                f"{path} holds {value!r} in env_options or wrappers: a class there is taken from the command only"
            )
        if isinstance(inner := parsed(value), dict | list):  # jsonargparse reads a text so where none will do
            check_foreign({key: inner}, path, modules, built)
        elif key in ("class_path", "optimizer", "lr_scheduler") and "." in value and not is_inside(value, named):
            if not is_importable(value):
                raise ValueError(untrusted(path, value))
            if not may_build(value, built):
                raise ValueError(
                    f"{path} holds {value}, which is no class that it may have built: if you know it, add --modules "
                    f"{value}"
                )
        # What stands before the colon, gymnasium imports.
        if key == "env_id" and ":" in value and not is_importable(value.rpartition(":")[0], named):
            raise ValueError(untrusted(path, value))


def names_wrapper(keys: tuple[Any, ...]) -> bool:
    """Whether a string under these keys is the class path of a wrapper of environments."""
    return keys[-1] == "wrappers" or keys[-2:] == ("wrappers", "class_path")


def wrapper_modules(content: Any) -> set[str]:
    """What `--modules` needs for the wrappers of environments in a config, or in hyperparameters."""
    paths = {text for keys, text in leaves(content) if names_wrapper(keys) and not GYMNASIUM_WRAPPER.fullmatch(text)}
    return {path if is_importable(path) else module_of(path) for path in paths}


def may_build(name: str, kinds: tuple[type, ...] = BUILT) -> bool:
    """Whether a file may build a class that the user has not named: it is importable, and of one of the kinds."""
    module, _, attribute = name.rpartition(".")
    if not is_importable(name) or is_inside(name, ["__main__"]):
        return is_importable(name)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):  # there is none, which is said where it is to be built
        return True
    return isinstance(found, type) and issubclass(found, kinds)


def leaves(content: Any, keys: tuple[Any, ...] = ("",), depth: int = 0) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The strings in nested dictionaries and lists, each with its keys; a ValueError where nesting has no end."""
    if depth > MAX_DEPTH:
        raise ValueError(f"dictionaries or lists are nested more than {MAX_DEPTH} deep")
    if isinstance(content, str):
        yield keys, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from leaves(value, (*keys, key), depth + 1)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from leaves(value, keys, depth + 1)


class Command:
    """The modules in a command line and its config files."""

    def __init__(self, args: list[str]) -> None:
        self.modules: set[str] = set()  # of its classes, and of `--modules`; not of options like `--output model.onnx`
        self.mentioned: set[str] = set()  # packages of all that could be a class, such as `model` of `model.onnx`
        self.files: set[Path] = set()
        self.urls = False  # whether it contains any
        for arg, following in zip(args, [*args, ""][1:], strict=True):
            if arg.startswith("--"):
                option, equals, value = arg[2:].partition("=")
                self._collect({option.rstrip("+").rpartition(".")[2]: value if equals else following}, Path())
            elif arg.startswith("-c"):
                self._collect({"config": arg[2:].lstrip("=") or following}, Path())

    def _collect(self, content: Any, folder: Path) -> None:
        """Adds a config that lies in a folder."""
        for keys, text in leaves(content):
            self.mentioned |= packages_in(text)
            self.urls |= "://" in text
            key, value, file = keys[-1], parsed(text), (folder / text).absolute()
            if not isinstance(value, str):
                self._collect({key: value}, folder)
            elif key in CLASSES | SECTIONS and os.path.isfile(file):  # of a long text, pathlib's raises an error
                if file not in self.files:
                    self.files.add(file)
                    self._collect({key: file.read_text(errors="replace")}, file.parent)
            elif key == "modules":
                self.modules.add(value)
            elif key == "wrappers" or names_wrapper(keys):
                self.modules |= wrapper_modules({"wrappers": value})
            elif (key == "env_id" and ":" in value) or (key in CLASSES and DOTTED.fullmatch(value)):
                self.modules |= {value if is_importable(value) else module_of(value)}


def modules_of(config: Any) -> set[str]:
    """Modules of a parsed config that are to be named, and classes that are not `may_build`."""
    if isinstance(config, list):
        return set().union(*map(modules_of, config))
    if isinstance(config, Namespace | dict):
        values = dict(vars(config) if isinstance(config, Namespace) else config)
        wrappers = wrapper_modules({"wrappers": values.pop("wrappers", None)})
        values.pop("__path__", None)  # of the file that a section is from: jsonargparse's, and callable
        found, name = wrappers.union(*map(modules_of, values.values())), values.get("class_path")
        if isinstance(name, str) and not may_build(name):
            found.add(name if is_importable(name) else module_of(name))
        return found
    name = getattr(config, "__module__", None) if callable(config) else None
    return {module_of(name)} if isinstance(name, str) and not is_importable(name) else set()


def parsed(text: str) -> Any:
    """A string parsed as YAML, or itself if it is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # 2026-13-01 is a ValueError
        return text


@contextlib.contextmanager
def restored_settings() -> Iterator[None]:
    """Restores the settings that `allow_imports` changes in jsonargparse, which has no public way to undo it."""
    saved = dict(_common.parsing_settings)
    try:
        yield
    finally:
        _common.parsing_settings.update(saved)
        set_parsing_settings(config_read_mode_fsspec_enabled=True)  # as LightningCLI has it


def allow_imports(modules: Iterable[str], urls: bool = False) -> None:
    """Lets jsonargparse import only what `is_importable`; with `urls`, also what a scheme needs for a config's URL."""
    named = [name for name in modules if all(map(str.isidentifier, name.split(".")))]
    allowed = [*TRUSTED, *(name for name in named if module_of(name) != "jsonargparse")]  # it lets none name itself
    set_parsing_settings(
        import_path_denylist=["*", *FETCHING],
        import_path_allowlist=allowed,
        config_read_mode_fsspec_enabled=urls,
    )


def packages_in(text: str) -> set[str]:
    """Packages of all that could be a class in a string."""
    return set(DOTTED.findall(text))


def plain_settings(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A config's settings that are numbers, booleans, null or strings of `TEXTS`; keys of the others that matter."""
    kept: dict[str, Any] = {}
    left = []
    for section, content in config.items():
        nested = isinstance(content, dict)
        for key, value in (content if nested else {section: content}).items():
            # A strategy or accelerator may be a class, too.
            text = isinstance(value, str) and key in TEXTS and not ("." in value and key in CLASSES | {"accelerator"})
            if text or value is None or isinstance(value, int | float):
                (kept.setdefault(section, {}) if nested else kept)[key] = value
            elif value not in ("", [], {}) and key not in ("default_root_dir", "name"):
                left.append(f"{section}.{key}" if nested else key)
    return kept, left
