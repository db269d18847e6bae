"""Error messages of the command line: one line, with the nearest name that exists."""

import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from lightning.pytorch import callbacks, loggers

import datamodules
import lit_models
import rl
from lit_models.common.messages import suggest
from lit_models.training.trust import untrusted

for _package in (lit_models, datamodules):  # imported when asked for, and known to jsonargparse by name from then on
    for _name in _package.__all__:
        getattr(_package, _name)


# What people type for an option of another name.
SYNONYMS = {
    "lr": "model.optimizer.lr",
    "learning_rate": "model.optimizer.lr",
    "optimizer": "model.optimizer",
    "scheduler": "model.lr_scheduler",
    "lr_scheduler": "model.lr_scheduler",
    "epochs": "trainer.max_epochs",
    "steps": "trainer.max_steps",
    "gpus": "trainer.devices",
    "seed": "seed_everything",
    "device": "trainer.accelerator",
    "workers": "data.num_workers",
    "img_size": "data.image_size",
    "weight_decay": "model.optimizer.weight_decay",
    "momentum": "model.optimizer.momentum",
    "resume": "ckpt_path",
    "log_dir": "trainer.default_root_dir",
    "save_dir": "trainer.default_root_dir",
}
# And for a command.
COMMANDS_MEANT = {"train": "fit", "resume": "fit", "eval": "test", "evaluate": "test", "infer": "predict"}


def find_option(name: str, options: list[str]) -> str:
    """`; did you mean '--trainer.max_epochs'?` for an option without its section, or of another name, or nearly so."""
    name = name.replace("-", "_")
    found = SYNONYMS.get(name) or next((option for option in options if option.rpartition(".")[2] == name), None)
    for section, package in (("data", datamodules), ("model", lit_models), ("model", rl)):
        kinds = (f"{package.__name__}.{kind}" for kind in package.__all__)
        if found is None and any(name in keywords(kind) for kind in kinds):
            found = f"{section}.{name}"
    return f"; did you mean '--{found}'?" if found else suggest(name, options, "--")


def format_parser_error(message: str, options: Iterable[str], verbs: Iterable[str]) -> str:
    """One line for jsonargparse's message of several, given the options such as `trainer.max_epochs`, and our verbs."""
    options = list(options)
    key = ".".join(re.findall(r'Parser key "([\w.]+)"', message))
    if found := re.search(r"Importing '([\w.]+)' is not allowed", message):
        return untrusted("the checkpoint", found[1])
    paths = re.findall(r"class_path[ =]'([\w.]+)'", message)
    if found := re.search(r"(?:Option '|does not accept option ')([\w.]+)'", message):
        name = found[1]
        section = name.partition(".")[0]
        if section in ("class_path", "init_args"):
            return f"{section} stands by itself: indent it below model, data or what else it is of"
        if any(hasattr(package, section) and section[0].isupper() for package in (lit_models, datamodules, rl)):
            return f"{section} stands as an option: a class is named by class_path, and its options are below init_args"
        if paths:
            return f"{paths[-1]} has no option '{name}'{suggest(name, keywords(paths[-1]))}"
        hint = suggest(name, options) or find_option(name, options)
        hint = hint or (find_option(section, options) if section in SYNONYMS else suggest(section, options))
        return f"there is no option '{name}'{hint}"
    if found := re.search(r"unrecognized arguments: (?!-)(\S+\.ya?ml)", message):
        return f"{found[1]} stands by itself: give a config file with --config {found[1]}"
    if found := re.search(r"unrecognized arguments: (?!-)(\S+)", message):
        pictures = " (pictures: --images)" if "images" in options else ""
        return f"{found[1]} stands by itself: name its option before it{pictures}, or quote names with spaces"
    if (found := re.search(r"unrecognized arguments: --([^\s=]+)", message)) and found[1] in options:
        return f"leave --{found[1]} out, and give what follows it by itself"  # an option would have been recognized
    if found := re.search(r"unrecognized arguments: (-*)([^\s=]+)", message):
        return f"there is no option '{found[1]}{found[2]}'{find_option(found[2], options)}"
    if found := re.search(r"Unable to load config '([^'\n]+)'", message):
        go_on = ", or --ckpt_path to go on from a checkpoint" if key.startswith("checkpoint") else ""
        section = key.partition(".")[0]
        return f"there is no file {found[1]}: give --{section} a YAML file, --{section}.OPTION a value{go_on}"
    if found := re.search(r"File does not exist: '(.+)'", message):
        path = Path(found[1])
        return f"no file {path}{suggest(path.name, [file.name for file in path.parent.glob('*')])}"
    if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
        return f"there is no {found[1]}.{found[2]}{suggest(found[2], dir(importlib.import_module(found[1])))}"
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if value and "class" in message and os.path.exists(value[1]):
        return f"{key}: {value[1]} is a file or folder, not a class: name the class, and give it as one of its options"
    # A learning rate may be a tensor: a word in place of it is no class that is missing.
    number = "Expected a <class 'float'>" in message and value and re.fullmatch("[a-z]*", value[1])
    if not number and (found := re.search(r"Expected a dot import path string: ?(\S+)", message)):
        modules = (lit_models, datamodules, rl, torch.optim, torch.optim.lr_scheduler, callbacks, loggers)
        classes = [name for module in modules for name in dir(module) if name[0].isupper()]  # known by name alone
        return f"{key}: there is no class '{found[1]}'{suggest(found[1], classes)}"
    if found := re.search(r"Multiple subclasses with name (\w+)\..*ambiguity: ([\w., ]+)\.", message):
        return f"{key}: there are several classes {found[1]}: give one of {found[2]}"
    if found := re.search(r"No module named '([\w.]+)'", message):
        return f"{key}: there is no module {found[1]}"
    if value and (found := re.search(r"does not correspond to a subclass of (\w+)", message)):
        return f"{key}: {value[1]} is not a {found[1]}"
    if value and value[1].startswith("{") and re.search(r"Not a valid subclass|Expected an instantiatable", message):
        return f"{key}: {value[1]} names no class: give class_path, and its options below init_args"
    types = re.findall(r"Expected (?:a )?(typing\.Literal\[.*?\]|<class '\w+'>)", message)
    if value and set(types) - {"<class 'NoneType'>"}:
        choices = [choice for kind in types if "Literal" in kind for choice in re.findall(r"[\w.-]+", kind)[1:]]
        names = re.findall(r"<class '(\w+)'>", " ".join(types))
        wanted = " or ".join(dict.fromkeys(choices + ["null" if name == "NoneType" else name for name in names]))
        return f"{key}: {value[1]!r} is not {wanted}{suggest(value[1], choices)}"
    if found := re.search(r"invalid choice: '?([\w-]+)'? \(choose from (.*)\)", message):
        meant = COMMANDS_MEANT.get(found[1], found[1])
        known = [*re.findall(r"[a-z]+", found[2]), *verbs]
        return f"there is no command '{found[1]}'{suggest(meant, known)}"
    if found := re.search(r"arguments are required: ([\w, ]+)$", message):
        missing = found[1].split(", ")
        of_data = any(missing[0] in keywords(f"datamodules.{name}") for name in datamodules.__all__)
        if set(missing) <= set(options) and not of_data:
            return f"there is no value for {', '.join(missing)}: give one"
        return f"{missing[0]} has no value: give one with --{'data' if of_data else 'model'}.{missing[0]}"
    if "model" in message and "required" in message:
        return "no model: name one with --config configs/mnist.yaml, with --model Net, or with --ckpt_path FILE"
    if found := re.search(r"Errors:(.*)(?:- Expected a <class 'NoneType'>)", message, re.DOTALL):
        message = f"{key}: {found[1]}"  # what else is wrong with it
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    return "; ".join(line for line in lines if line).replace(":; ", ": ")


def format_error(message: str) -> str:
    """One line for an error, unwrapped from the messages of jsonargparse and of other processes."""
    # What a class's constructor raises, jsonargparse reports as one of several failed readings of an option.
    if found := re.search(r"Errors:\s*- (.*?)\n\s*- Expected a <class 'NoneType'>", message, re.DOTALL):
        message = found[1]
    elif "Traceback (most recent call last)" in message:  # of a DataLoader's worker, or of a spawned process
        message = message.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(message.split())


def keywords(path: str) -> list[str]:
    """Keywords of the `__init__` of a class, given its import path."""
    return list(inspect.signature(pkgutil.resolve_name(path)).parameters)
