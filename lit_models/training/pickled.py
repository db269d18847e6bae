"""What a pickle holds that is not a tensor, number or string: found without importing or calling anything of it."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Placeholder:
    """Stands for an object of any class, and takes what a pickle does to it."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        """An object of no content."""
        made = super().__new__(cls)
        kind = args[0] if args and isinstance(args[0], type) else cls  # a function that makes objects of a class
        made.kind = f"{kind.__module__}.{kind.__name__}"
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def ignore(self, *args: Any) -> None:
        """Forgets what is added to the object."""

    __setstate__ = __setitem__ = append = extend = add = update = ignore


class PlaceholderUnpickler(pickle.Unpickler):
    """Reads a pickle with a Placeholder for every object of a class."""

    def find_class(self, module: str, name: str) -> type:
        """A placeholder's class; nothing is imported."""
        return OrderedDict if name == "OrderedDict" else type(name, (Placeholder,), {"__module__": module})

    def persistent_load(self, pid: Any) -> None:
        """Nothing for a tensor's numbers, which lie elsewhere in the file."""


def find_object(path: Path) -> str | None:
    """The first object in a checkpoint that is none of PyTorch's, by its keys and class; None if none can be found."""
    try:
        with zipfile.ZipFile(path) as file:
            name = next(name for name in file.namelist() if name.endswith("/data.pkl"))
            with file.open(name) as content:
                found = PlaceholderUnpickler(content).load()
        named = (f"{keys} is a {kind}" for keys, kind in objects(found) if not kind.startswith("torch."))
        return next(named, None)
    except Exception:  # it is damaged too, or made to mislead: what it raises may be anything
        return None


def objects(content: Any) -> Iterator[tuple[str, str]]:
    """The placeholders in nested dictionaries and sequences: their keys, joined with dots, and their class."""
    waiting, seen = [("", content)], set()
    while waiting:
        keys, value = waiting.pop()
        if isinstance(value, Placeholder):
            yield keys, value.kind
        elif isinstance(value, type):
            yield keys, f"{value.__module__}.{value.__name__}"
        elif id(value) not in seen and isinstance(value, dict | list | tuple):
            seen.add(id(value))  # one that holds another many times may be made to take for ever
            parts = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{keys}.{key}".lstrip("."), part) for key, part in reversed(list(parts))]
