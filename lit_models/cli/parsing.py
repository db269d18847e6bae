"""Arguments and config files before jsonargparse parses them: names, order, faults of YAML."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from jsonargparse import get_loader, set_loader


def monitored_plateau(text: str) -> str:
    """A text in which our ReduceLROnPlateau, which has a `monitor`, takes the place of PyTorch's, which has none."""
    theirs = r"(?<![\w.])torch\.optim\.lr_scheduler\.ReduceLROnPlateau(?!\w)"
    return re.sub(theirs, "lit_models.training.schedule.ReduceLROnPlateau", text)


@contextlib.contextmanager
def plateaus_with_monitor() -> Iterator[None]:
    """Reads config files through `monitored_plateau`: jsonargparse checks a class's options as it finds it."""
    load = get_loader("yaml")
    # The TypeError is what jsonargparse raises for a single question mark.
    set_loader("yaml", lambda text: load(monitored_plateau(text)), (yaml.YAMLError, TypeError))
    try:
        yield
    finally:
        set_loader("yaml", load, (yaml.YAMLError,))


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


def check_yaml(path: Path) -> None:
    """Raises a ValueError where a config file cannot be read, with the line."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
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
