"""Data sources as LightningDataModules: one file each, imported when it is first asked for."""

import ast
import importlib
from pathlib import Path
from typing import Any

# The stub lists the classes for editors and type checkers: importing one data module imports none of the others.
_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_MODULES = {alias.name: node.module for node in _STUB.body for alias in node.names}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
