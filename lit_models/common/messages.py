"""Parts of messages, each in one place, and how a run says what it has understood."""

import difflib
import importlib.util
import logging
import sys
from collections.abc import Iterable, Sequence

from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger("lit_models")


class StderrHandler(logging.StreamHandler):
    """Writes to what is `sys.stderr` at the time."""

    stream = property(lambda self: sys.stderr, lambda self, stream: None)


@rank_zero_only
def inform(message: str) -> None:
    """Logs at INFO, in the first process, what was read or decided; to stderr, where no logging is configured."""
    if not log.hasHandlers():
        log.addHandler(StderrHandler())
        log.setLevel(logging.INFO)
    log.info(message)


def format_metric(name: str, value: float) -> str:
    """A metric as people read it: `99.40%` of an accuracy, else four digits."""
    if "accuracy" in name:
        return f"{value:.2%}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 10 or value == 0 else f"{value:.4g}"


def suggest(name: str, candidates: Iterable[str], prefix: str = "") -> str:
    """`; did you mean 'X'?` with the nearest of the candidates, or an empty string."""
    candidates, low = list(candidates), name.lower()
    swapped = [candidate for candidate in candidates if sorted(candidate) == sorted(name)]  # modle: model, not modules
    same = [candidate for candidate in candidates if candidate.lower() == low]
    longer = [candidate for candidate in candidates if len(low) > 3 and candidate.lower().startswith(low)]
    close = same or swapped or difflib.get_close_matches(name, candidates, n=1) or longer
    return f"; did you mean '{prefix}{close[0]}'?" if close else ""


def missing_extra(extra: str, purpose: str) -> str:
    """That something needs an extra, and how to install it."""
    return f"{purpose} needs the extra {extra}: pip install -e '.[{extra}]'"


def require_extra(extra: str, purpose: str, *packages: str) -> None:
    """Raises a ValueError that names the extra to install, where one of its packages is missing."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"{missing_extra(extra, purpose)} (no {', '.join(missing)} here)")


def format_list(names: Sequence[str]) -> str:
    """The first five of many names, in one line."""
    return ", ".join(names[:5]) + (f", ... ({len(names)} of them)" if len(names) > 5 else "")


def unique_names(names: Iterable[str]) -> list[str]:
    """The names of columns, `name_2` for one that comes a second time."""
    unique: list[str] = []
    for name in names:
        number, free = 2, name
        while free in unique:
            number, free = number + 1, f"{name}_{number}"
        unique.append(free)
    return unique
