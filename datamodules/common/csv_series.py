"""Numbers and times from CSV files, and times that continue after the last."""

import contextlib
import csv
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Tensor

from lit_models.common.messages import suggest

MISSING = {"", "nan", "na", "n/a", "null", "none"}  # in lower case


def read_csv(
    path: Path, columns: Sequence[str] | None, header: bool | None, time_column: str | None
) -> tuple[Tensor, list[str], list[str]]:
    """The numbers `(rows, columns)` of a CSV file in float64, the names of the columns, and the time of each row.

    Without `columns`, all but `time_column` are read; without `header`, the first row is one if it has no number;
    without `time_column`, the time of a row is its number in the file.
    """
    rows = read_cells(path)
    top = [cell.strip() for cell in rows[0]] if rows else []
    if header is None:
        header = all(to_number(cell) is None for cell in top) and not all(cell.lower() in MISSING for cell in top)
    names = top if header else [str(column + 1) for column in range(len(top))]
    first = 2 if header else 1  # the row of the first values, counted from 1 as a spreadsheet does
    rows = rows[first - 1 :]
    if not rows:
        raise ValueError(f"{path} has no rows of values")
    columns = [name for name in names if name != time_column] if columns is None else list(columns)
    if not columns or len(set(columns)) < len(columns):
        raise ValueError(
            f"{path}: the columns to use are {', '.join(columns) or 'none'}; name each once in data.columns"
        )
    for name in [*columns, time_column]:
        if name is not None and name not in names:
            raise ValueError(f"{path} has no column {name!r}; its columns are {', '.join(names)}{suggest(name, names)}")
    indices, values = {name: names.index(name) for name in columns}, []
    for row, cells in enumerate(rows, start=first):
        for name, index in indices.items():
            text = cells[index].strip()
            values.append(to_number(text))
            if values[-1] is None:
                raise ValueError(f"{path}, row {row}, column {name!r}: {explain(text, row)}")
    times = [str(row) for row in range(first, first + len(rows))]
    if time_column is not None:
        times = [cells[names.index(time_column)].strip() for cells in rows]
    known = read_times(times)
    if known is not None and known[0][0] > known[0][-1]:
        raise ValueError(f"{path} has the newest row first: sort it by {time_column!r}, oldest first")
    return torch.tensor(values, dtype=torch.float64).view(len(rows), len(columns)), columns, times


def read_cells(path: Path) -> list[list[str]]:
    """The cells of a CSV file, all rows of the same length, without empty rows at the end.

    The separator is the comma, semicolon or tab that is most frequent in the first row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: set data.path to your CSV file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = list(csv.reader(file, delimiter=separator, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: save it so ({error})") from error
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    while rows and not any(rows[-1]):
        rows.pop()
    for row, cells in enumerate(rows, start=1):  # pandas fills short rows up silently
        if len(cells) != len(rows[0]):
            raise ValueError(
                f"{path}, row {row}: {len(cells)} cell(s), but {len(rows[0])} in the first row; look for a missing "
                f"value, a stray quote, or a {separator!r} that is not meant to separate"
            )
        if any("\n" in cell for cell in cells):
            raise ValueError(f"{path}, row {row}: a line break in a cell; look for a stray quote")
    return rows


def to_number(text: str) -> float | None:
    """A number that is finite in float32, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= torch.finfo(torch.float32).max else None


def explain(text: str, row: int) -> str:
    """What is wrong with a cell that is not a number, and how to mend it."""
    if text.lower() in MISSING:
        return "the value is missing: fill the gap, or leave the row out"
    hint = "choose the columns of numbers with data.columns; data.time_column names that of the time"
    if row == 1:
        hint = "set data.header to true if the row names the columns"
    elif to_number(text.replace(",", ".")) is not None:
        hint = "write decimals with a point"
    return f"{text!r} is not a number, or not a finite one; {hint}"


def read_compact_date(text: str) -> date | None:
    """A date such as 20240131; None or a ValueError for other text."""
    return datetime.strptime(text, "%Y%m%d").date() if len(text) == 8 else None


# How times are read and written, the most specific first; what has another format is None, or a ValueError.
TIME_FORMATS: list[tuple[Callable[[str], Any], Callable[[Any], str]]] = [
    (read_compact_date, lambda day: day.strftime("%Y%m%d")),
    (int, str),
    (to_number, lambda time: f"{time:.15g}"),
    (date.fromisoformat, str),
    (datetime.fromisoformat, str),
]


def read_times(times: Sequence[str]) -> tuple[list[Any], Callable[[Any], str]] | None:
    """Times as numbers or dates, if all have the same format, and the function that writes that format."""
    for read, write in TIME_FORMATS:
        with contextlib.suppress(ValueError, TypeError):
            values = [read(time) for time in times]
            if None not in values and max(values) is not None:  # a TypeError for dates with and without a time zone
                return values, write
    return None


def continue_times(times: Sequence[str], count: int) -> list[str]:
    """The `count` times after the last, by the most frequent step, or of months; +1, +2, ... where none is known."""
    known, ahead = read_times(times), range(1, count + 1)
    unknown = [f"+{step}" for step in ahead]
    if known is None or len(times) < 2:
        return unknown
    values, write = known
    steps = [after - before for before, after in pairwise(values)]
    step = mode(steps)
    try:
        if isinstance(values[0], date) and len({day.day for day in values}) == 1 and min(steps) >= timedelta(28):
            months = [day.year * 12 + day.month - 1 for day in values]
            step = mode(after - before for before, after in pairwise(months))
            later = [months[-1] + step * n for n in ahead]
            return [write(values[-1].replace(year=month // 12, month=month % 12 + 1)) for month in later]
        return [write(values[-1] + step * n) for n in ahead]
    except (OverflowError, ValueError):  # past the last date there is
        return unknown
