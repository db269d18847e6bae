"""Arguments and config files before jsonargparse parses them: names, order, faults of YAML."""

import contextlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import _typehints, get_loader, set_loader
from torch.optim import Optimizer


def monitored_plateau(text: str) -> str:
    """A text in which our ReduceLROnPlateau, which has a `monitor`, takes the place of PyTorch's, which has none."""
    theirs = r"(?<![\w.])torch\.optim\.lr_scheduler\.ReduceLROnPlateau(?!\w)"
    return re.sub(theirs, "lit_models.training.schedule.ReduceLROnPlateau", text)


@contextlib.contextmanager
def loading_configs() -> Iterator[None]:
    """Reads config files through `monitored_plateau`: jsonargparse checks a class's options as it finds it.

    And with the user's folder in place of `~`.
    """
    load = get_loader("yaml")

    def expanded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: expanded(item) for key, item in value.items()}
        if isinstance(value, list):
            return [expanded(item) for item in value]
        return expand_home([value])[0] if isinstance(value, str) else value

    # The TypeError is what jsonargparse raises for a single question mark.
    set_loader("yaml", lambda text: expanded(load(monitored_plateau(text))), (yaml.YAMLError, TypeError))
    try:
        yield
    finally:
        set_loader("yaml", load, (yaml.YAMLError,))


@contextlib.contextmanager
def own_defaults() -> Iterator[None]:
    """Has an optimizer in place of a model's own begin with its own defaults.

    Of an option that both have, jsonargparse would keep the other one's default: of AdamW in place of Adam, no weight
    decay. What was set stays, by the model or in a config file.
    """
    discard = _typehints.discard_init_args_on_class_path_change

    def discard_defaults(parser: Any, before: Any, after: Any) -> None:
        if before and before["class_path"] != after["class_path"] and before.get("init_args"):
            options, (module, _, class_name) = before["init_args"], before["class_path"].rpartition(".")
            kind = getattr(sys.modules.get(module), class_name, None)
            optimizer = isinstance(kind, type) and issubclass(kind, Optimizer)
            for name, parameter in inspect.signature(kind).parameters.items() if optimizer else ():
                if name in options and listed(options[name]) == listed(parameter.default):
                    options.pop(name)
        discard(parser, before, after)

    _typehints.discard_init_args_on_class_path_change = discard_defaults
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = discard


def listed(value: Any) -> Any:
    """A value as YAML has it, which knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def classes_first(args: list[str]) -> list[str]:
    """Arguments with `--model CLASS` and `--data CLASS` before what is said of them, which jsonargparse asks for."""
    rest = list(args)
    for option in ("--model", "--data"):
        for at, arg in enumerate(rest):
            name, equals, _ = arg.partition("=")
            before = next((i for i, other in enumerate(rest[:at]) if other.startswith(f"{option}.")), None)
            if name == option and before is not None:
                words = 1 if equals else 2
                moved = rest[at : at + words]
                rest[at : at + words] = []
                rest[before:before] = moved
                break
    return rest


def expand_home(args: list[str]) -> list[str]:
    """Arguments with the user's folder in place of a `~` that the shell has left, as in `--data.root=~/pictures`."""
    options = [re.fullmatch(r"(-[^=]*=)?(~(?:/.*)?)", arg, re.DOTALL) for arg in args]
    return [
        f"{found[1] or ''}{os.path.expanduser(found[2])}" if found else arg
        for arg, found in zip(args, options, strict=True)
    ]


def check_yaml(path: Path) -> dict[str, Any]:
    """The content of a config file; a ValueError with the line where it cannot be read, or options are misplaced."""
    try:
        text = path.read_text(encoding="utf-8")
        content, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as that") from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        line = f", line {mark.line + 1}" if mark else ""
        hint = ": indent with spaces, not tabs" if "\\t" in problem else ""
        raise ValueError(f"problems parsing config {path}{line}: {problem}{hint}") from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise ValueError(f"{path} {what}: it must have sections such as model and data, see configs/mnist.yaml")
    if fault := misplaced(node):
        raise ValueError(f"{path}, {fault}")
    return content


def misplaced(node: yaml.Node) -> str | None:
    """Which option stands twice, or beside the class that it is of, instead of below its `init_args`, if one does."""
    if isinstance(node, yaml.SequenceNode):
        return next(filter(None, map(misplaced, node.value)), None)
    if not isinstance(node, yaml.MappingNode):
        return None
    names = {key.value: key for key, _ in node.value}
    if len(names) < len(node.value):  # YAML takes the last of them
        seen = [str(key.value) for key, _ in node.value]
        again = next(key for at, (key, _) in enumerate(node.value) if str(key.value) in seen[:at])
        return f"line {again.start_mark.line + 1}: {again.value} stands a second time: leave one of them out"
    of_class = {"class_path", "init_args", "dict_kwargs"}
    if "class_path" in names:
        if other := next((key for name, key in names.items() if name not in of_class), None):
            return (
                f"line {other.start_mark.line + 1}: {other.value} stands beside class_path: it belongs below "
                "init_args, indented more than that"
            )
        arguments = next((value for key, value in node.value if key.value == "init_args"), None)
        if isinstance(arguments, yaml.ScalarNode) and arguments.value:
            return f"line {arguments.start_mark.line + 1}: init_args is {arguments.value}: it must hold options by name"
    return next(filter(None, (misplaced(value) for _, value in node.value)), None)
