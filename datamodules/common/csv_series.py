"""Series from CSV files: their columns and groups, in the order of time, with gaps filled where that is asked."""

import re
from collections.abc import Sequence
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.common.csv_table import CHARACTERS, MISSING, NumberFormat, Table, read_table
from datamodules.common.series import Series, fill_gaps, warn_of_gaps
from datamodules.common.times import NUMBER, TimeError, TimeFormat, find_steps, is_time, read_times
from lit_models.common.messages import format_list, inform, suggest

# Columns of numbers with these names are times, if they only rise or only fall.
TIME_NAMES = {"year", "quarter", "month", "week", "date", "day", "hour", "minute", "second", "time", "timestamp"}
TIME_NAMES |= {"datetime", "period", "ds", "t", "step"}
CLOCK = re.compile(r"\d{1,2}[:.]\d\d([:.]\d\d)?")


class Times(NamedTuple):
    """The times of a file's rows."""

    column: int | None  # None where a row's time is its number in the file
    texts: list[str]
    values: list[Any]
    form: TimeFormat


def read_series(
    path: Path,
    columns: Sequence[str] | None = None,
    input_columns: Sequence[str] = (),
    known_columns: Sequence[str] = (),
    header: bool | None = None,
    time_column: str | None = None,
    time_format: str | None = None,
    group_column: str | None = None,
    group: Sequence[str] | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    missing: Sequence[str] = (),
    fill: str | None = None,
) -> tuple[list[Series], list[str]]:
    """The series of a CSV file, one for each value of `group_column`, and the names of the columns to forecast.

    Their values come first, then those of the `input_columns` and the `known_columns`. Says what was read. Without
    `columns`, these are all others that have neither times, nor groups, nor nameless row numbers; without
    `time_column`, one that has times is looked for.
    """
    usual = "," if thousands == "." else "."
    numbers = NumberFormat(
        decimal or usual, CHARACTERS.get(thousands, thousands), MISSING | {text.lower() for text in missing}
    )
    table = read_table(path, separator, header, numbers)
    doubtful = decimal is None and thousands is None and table.separator == ";"
    chosen = [table.find(name, "data.columns") for name in columns or ()]
    known = [table.find(name, "data.known_columns") for name in known_columns]
    inputs = [table.find(name, "data.input_columns") for name in input_columns] + known
    by = None if group_column is None else table.find(group_column, "data.group_column")
    times = read_time_column(table, time_column, time_format, {*chosen, *inputs}, by)
    if columns is None:
        used = {times.column, by, *inputs}
        chosen = [at for at in range(len(table.names)) if at not in used and not is_row_count(table, at)]
    columns_used = chosen + inputs
    names = [table.names[at] for at in columns_used]
    if not chosen or len(set(columns_used)) < len(columns_used) or {times.column, by} & set(columns_used):
        raise ValueError(
            f"{path}: the columns to use are {format_list(names) or 'none'}; name each once in data.columns"
            f"{', data.input_columns or data.known_columns' if inputs else ''}, and none of them in data.time_column "
            "or data.group_column"
        )
    values = np.stack([read_numbers(table, at, numbers, doubtful) for at in columns_used], axis=1)
    missing_values, before_known = np.isnan(values), len(columns_used) - len(known)
    groups = {None: list(range(len(values)))} if by is None else group_rows(table, by, group)
    series, notes = [], []
    for name, rows in groups.items():
        order = sorted(rows, key=times.values.__getitem__)
        again = next((pair for pair in pairwise(order) if times.values[pair[0]] == times.values[pair[1]]), None)
        if again is not None:
            raise ValueError(repeated_time(table, times, by, again))
        if order != rows:
            notes.append(
                "sorted, the newest came first" if order == rows[::-1] else "sorted, the times went to and fro"
            )
        steps = None if times.column is None and by is not None else find_steps([times.values[row] for row in order])
        told = np.flatnonzero(~np.isnan(values[order, : len(chosen)]).all(axis=1))
        ahead = len(order) - 1 - told[-1] if known and len(told) else 0
        values[order[len(order) - ahead :], :before_known] = np.nan
        missing_values[order[len(order) - ahead :], :before_known] = False
        one = Series(name, values[order], [times.texts[row] for row in order], times.form, steps, ahead)
        if fill is not None:
            one = fill_gaps(one, fill, table, order, names, len(chosen), before_known)
        elif missing_values[rows].any():
            column, row = np.argwhere(missing_values[rows].T)[0]
            raise ValueError(
                f"{table.place(rows[row], columns_used[column])}: the value is missing: leave the row out, or set "
                "data.fill to previous or interpolate"
            )
        series.append(one)
    used = {*columns_used, times.column, by}
    warn_of_columns(table, columns, chosen, values[:, : len(chosen)])
    if absent := int(missing_values.sum()):
        notes.append(f"{absent} missing value(s) filled in ({fill})")
    if added := sum(len(one.times) for one in series) - sum(map(len, groups.values())):
        notes.append(f"{added} row(s) added for missing times ({fill})")
    if inputs:
        notes.insert(0, f"inputs: {format_list(names[len(chosen) :])}")
    if known:
        notes.insert(1, f"known ahead: {format_list(names[before_known:])}, {min(one.ahead for one in series)} row(s)")
    if left := [name or "(no name)" for at, name in enumerate(table.names) if at not in used]:
        notes.append(f"left out: {format_list(left)}")
    rows = sorted(chain.from_iterable(groups.values()), key=times.values.__getitem__)
    first, last = times.texts[rows[0]], times.texts[rows[-1]]
    steps = sorted({one.steps.name for one in series if one.steps is not None})
    inform(
        f"{path}: {sum(len(one.times) for one in series):,} rows of {format_list(names[: len(chosen)])}"
        + (f" in {len(series)} series ({format_list(list(groups))})" if by is not None else "")
        + (
            f", row {first} to {last}"
            if times.column is None
            else f", {first} to {last}, step {format_list(steps) or '?'}"
        )
        + "".join(f"; {note}" for note in dict.fromkeys(notes))
    )
    warn_of_gaps(path, series)
    if by is None and (column := blocks(table, used)) is not None:
        words = list(dict.fromkeys(table.column(column)))
        rank_zero_warn(
            f"{path} is read as one series: if column {table.names[column]!r} tells {len(words)} apart "
            f"({format_list(words)}), set data.group_column to it"
        )
    return series, names[: len(chosen)]


def warn_of_columns(table: Table, named: Sequence[str] | None, chosen: Sequence[int], values: np.ndarray) -> None:
    """Warns of columns that seem to count rows or times, unless they are named, and of values that may be none."""
    counting = []
    for at, column in zip(chosen, values.T, strict=True):
        steps, name = np.diff(column), table.names[at]
        if name.lower() in TIME_NAMES or (len(steps) > 1 and steps[0] and (steps == steps[0]).all()):
            counting.append(name)
        none = np.nanmin(column, initial=np.inf)
        others = column[column > none]
        if re.fullmatch("-9{2,}", f"{none:g}") and len(others) and others.min() > none / 2:
            text = table.column(at)[int(np.nanargmin(column))]
            rank_zero_warn(
                f"{table.path}: column {name!r} is {text} in {int((column == none).sum())} row(s): if that stands for "
                f"no value, set data.missing to '{text}', and data.fill"
            )
    if named is None and counting and len(counting) < len(chosen):
        rank_zero_warn(
            f"{table.path}: {format_list(counting)} seem to count rows or times, but are forecast: name the time in "
            "data.time_column, with all parts of a date in one column, and set data.columns to the others"
        )


def blocks(table: Table, used: set[int | None]) -> int | None:
    """A column of words that come in blocks, one below the other, so that they may tell several series apart."""
    for column, first in enumerate(table.rows[0]):
        if column not in used and not NUMBER.fullmatch(first) and not is_time(first):
            words = [word for word, _ in groupby(table.column(column))]
            if 1 < len(words) == len(set(words)) <= len(table.rows) / 2:
                return column
    return None


def read_time_column(table: Table, name: str | None, time_format: str | None, taken: set[int], by: int | None) -> Times:
    """The times of the column of a name; without one, of the first that has times or rising numbers of a time's name.

    Where there is none, the numbers of the rows.
    """
    if name is not None:
        return times_of(table, table.find(name, "data.time_column"), time_format)
    by = blocks(table, taken) if by is None else by
    groups = [""] * len(table.rows) if by is None else table.column(by)
    order = sorted(range(len(groups)), key=groups.__getitem__)
    found, errors = {}, {}
    for at, column in enumerate(table.names):
        head = [row[at] for row in table.rows[:20]]
        likely, named = sum(map(is_time, head)) >= len(head) / 2, column.lower() in TIME_NAMES
        if at in {*taken, by} or not (likely or named or time_format):
            continue
        try:
            times = times_of(table, at, time_format)
        except ValueError as error:
            errors.setdefault(likely, error)
            continue
        pairs = [
            (times.values[one], times.values[other]) for one, other in pairwise(order) if groups[one] == groups[other]
        ]
        directions = {(after > before) - (after < before) for before, after in pairs}
        if times.form.name != "a number" or (named and directions in ({1}, {-1})):
            found.setdefault(named, times)
    if found:
        return found.get(True) or found[False]
    if time_format is not None:
        raise ValueError(f"{table.path} has no column of times like {time_format!r}: name it in data.time_column")
    if True in errors:
        raise errors[True]
    if False in errors:
        rank_zero_warn(f"{errors[False]}; the rows are taken in their order in the file")
    rows = [str(table.first + row) for row in range(len(table.rows))]
    return Times(None, rows, *read_times(rows))


def times_of(table: Table, column: int, time_format: str | None) -> Times:
    """The times of a column; a ValueError names the row that isn't understood."""
    texts = table.column(column)
    try:
        return Times(column, texts, *read_times(texts, time_format))
    except TimeError as error:
        raise ValueError(f"{table.place(error.row, column)}: {error}") from error


def is_row_count(table: Table, column: int) -> bool:
    """Whether a column is nameless and empty, or numbers the rows, as pandas writes its index."""
    texts, nameless = table.column(column), not table.names[column] or table.names[column].startswith("Unnamed: ")
    counts = [[str(start + row) for row in range(len(texts))] for start in (0, 1)]
    return nameless and (not any(texts) or texts in counts)


def read_numbers(table: Table, column: int, numbers: NumberFormat, doubtful: bool) -> np.ndarray:
    """The numbers of a column, NaN where they are missing.

    Where points may be `doubtful`, a ValueError says that all could be between thousands.
    """
    texts = table.column(column)
    pointed = next((row for row, text in enumerate(texts) if "." in text), None)
    if doubtful and pointed is not None and all(re.fullmatch(r"[+-]?([1-9]\d{0,2}(\.\d{3})?|0)", t) for t in texts):
        raise ValueError(
            f"{table.place(pointed, column)}: {texts[pointed]!r} may be a fraction or thousands, as all numbers there: "
            "set data.decimal or data.thousands to '.'"
        )
    values = numbers.read_column(texts)
    if isinstance(values, int):
        hint = "set data.header to true if the row names the columns" if table.first + values == 1 else None
        raise ValueError(f"{table.place(values, column)}: {numbers.explain(texts[values], hint)}")
    return values


def group_rows(table: Table, column: int, chosen: Sequence[str] | None) -> dict[str, list[int]]:
    """The rows of each group, or of those that are chosen."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(table.column(column)):
        if not name:
            raise ValueError(f"{table.place(row, column)}: the group is missing: name it, or leave the row out")
        rows.setdefault(name, []).append(row)
    for name in chosen or ():
        if name not in rows:
            raise ValueError(
                f"{table.path} has no group {name!r} in column {table.names[column]!r}, but {format_list(list(rows))}"
                f"{suggest(name, rows)}: set data.group to one of them"
            )
    return {name: rows[name] for name in chosen or rows}


def repeated_time(table: Table, times: Times, by: int | None, rows: tuple[int, int]) -> str:
    """That two rows have the same time, and the column that may say which series each is of."""
    first, second = sorted(rows)
    message = (
        f"{table.path}, rows {table.first + first} and {table.first + second}: both are of the time "
        f"{times.texts[first]!r}; leave one of them out"
    )
    clock = next((name for name, text in zip(table.names, table.rows[0], strict=True) if CLOCK.fullmatch(text)), None)
    if clock is not None:
        return f"{message}, or write date and {clock!r} into one column"
    if by is not None:
        return f"{message}, or give data.group_column a column that tells them apart, made of several if need be"
    columns = [at for at in range(len(table.names)) if at != times.column]
    columns = [at for at in columns if len(set(zip(table.column(at), times.values, strict=True))) == len(table.rows)]
    columns = [table.names[at] for at in columns if len(set(table.column(at))) <= len(table.rows) / 2]
    if columns:
        return f"{message}, or, if {columns[0]!r} tells several series apart, set data.group_column to it"
    return f"{message}, or, if a column tells several series apart, name it in data.group_column"
