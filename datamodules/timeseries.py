"""Series of numbers over time, from a CSV file or built in: windows of the past, and the rows that follow them.

Legend: T - rows of the series; F - its columns; window, horizon - rows of a window's past and of its future.
"""

import csv
import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.mackey_glass import mackey_glass
from datamodules.tensors import batch_loader

Window = tuple[Tensor, Tensor]
MISSING = {"", "nan", "na", "n/a", "null", "none"}  # what stands, in lower case, where there is no value


class TimeSeriesDataModule(LightningDataModule):
    """A CSV file or the Mackey-Glass series as batches of past `(batch, window, F)` and future `(batch, horizon, F)`.

    The first rows train, the next validate, the last test, and every window lies within its part. Values are float32
    and in the file's own units; `mean` and `std` are those of the training rows alone, for the model to scale by.
    `predict` gets the test rows as one long future, after the window before them, with `horizon` rows more that are
    unknown and therefore NaN.

    Args:
        path: A CSV file with a row a time step, oldest first, separated by commas, semicolons or tabs. Without it, the
            Mackey-Glass series.
        columns: The columns to use, by name; all, if not given. Without a header, they are called 1, 2, 3 and so on.
        header: Whether the first row names the columns. If not given, it does if nothing in it is a number.
        time_column: The column that says when a row was, for `predict` to copy. The row's number in the file, if not
            given, counted from 1 with the header, as in errors.
        window: Rows that a forecast looks back on.
        horizon: Rows that are forecast.
        stride: Rows from the start of one window to that of the next.
        batch_size: Windows a batch.
        val_share: Share of the rows that validates; 0 for no validation.
        test_share: Share of the rows that tests.
        length: Rows of the Mackey-Glass series, one a unit of time.
        series_seed: Seed of its start.

    Attributes:
        column_names: The names of the columns.
        num_features: Their number, F.
        mean: Mean of each column over the training rows.
        std: Standard deviation of each column over the training rows.
        times: For `predict`, when each row was, and when the `horizon` rows after the last will be.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no such column; a value is missing or not a number; a column is constant; a part is shorter
            than a window; an option is out of range.
    """

    def __init__(
        self,
        path: str | None = None,
        columns: str | int | list[str | int] | None = None,
        header: bool | None = None,
        time_column: str | None = None,
        window: int = 50,
        horizon: int = 20,
        stride: int = 1,
        batch_size: int = 32,
        val_share: float = 0.15,
        test_share: float = 0.15,
        length: int = 10_000,
        series_seed: int = 0,
    ) -> None:
        super().__init__()
        positive = {"window": window, "horizon": horizon, "stride": stride, "batch_size": batch_size, "length": length}
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise ValueError(
                f"val_share is {val_share} and test_share {test_share}: they must be at least 0, and below 1 together"
            )
        if path is None and not columns is header is time_column is None:
            raise ValueError("columns, header and time_column are a file's: give its path too")
        self.save_hyperparameters(logger=False)

    def setup(self, stage: str) -> None:
        """Reads or makes the series, splits it, and takes the scale of its training rows."""
        options = self.hparams
        if options.path is None:
            values = mackey_glass(options.length, seed=options.series_seed)[:, None]  # (T, F)
            self.column_names, times = ["x"], [str(row) for row in range(options.length)]
        else:
            wanted = options.columns if isinstance(options.columns, list) else [options.columns]
            wanted = None if options.columns is None else [str(name) for name in wanted]
            values, self.column_names, times = read_csv(Path(options.path), wanted, options.header, options.time_column)
        rows, self.num_features = values.shape
        test = rows - round(rows * options.test_share)
        val = test - round(rows * options.val_share)
        scale = values[:val].std(dim=0, correction=0)
        self.mean, self.std = values[:val].mean(dim=0).tolist(), scale.tolist()
        for name, mean, std in zip(self.column_names, self.mean, self.std, strict=True):
            if std <= max(1e-5 * abs(mean), 1e-30):  # float32 would make steps of it
                raise ValueError(
                    f"column {name!r} is constant over the {val} training rows, or next to it ({mean:g}, "
                    f"standard deviation {std:g}): it has no scale; leave it out of data.columns, or subtract an offset"
                )
        self.series, self.test_row = values.float(), test
        if stage == "predict":
            if test < options.window:
                raise self._too_short("the part before the test rows", test, options.window)
            self.times = times + continued(times, options.horizon)
            return
        parts = {"train": (0, val), "val": (val, test), "test": (test, rows)}
        for name in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            start, end = parts[name]
            last = end - options.window - options.horizon  # where a window can start
            starts = torch.arange(start, max(start, last + 1), options.stride)
            if start == end and stage != "fit":
                raise ValueError(f"there are no rows to {name} on: data.{name}_share is 0")
            if not len(starts) and start < end:
                raise self._too_short(f"the {name} part", end - start, options.window + options.horizon)
            setattr(self, f"{name}_set", WindowDataset(self.series, starts, options.window, options.horizon))

    def train_dataloader(self) -> DataLoader:
        """Shuffled training windows."""
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Validation windows; none where `val_share` is 0."""
        return self._loader(self.val_set) if len(self.val_set) else []

    def test_dataloader(self) -> DataLoader:
        """Test windows."""
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader:
        """The window before the test rows `(1, window, F)`; these, and the unknown ones after them, as NaN."""
        window, horizon = self.hparams.window, self.hparams.horizon
        unknown = torch.full((horizon, self.num_features), math.nan)
        series = torch.cat([self.series, unknown])
        start, rows = torch.tensor([self.test_row - window]), len(series) - self.test_row
        return self._loader(WindowDataset(series, start, window, rows))

    def _loader(self, dataset: "WindowDataset", shuffle: bool = False) -> DataLoader:
        return batch_loader(dataset, self.hparams.batch_size, shuffle=shuffle, pin_memory=torch.cuda.is_available())

    def _too_short(self, what: str, rows: int, needed: int) -> ValueError:
        return ValueError(
            f"{what} of the series has {rows} rows, and one window takes {needed}: make data.window "
            f"({self.hparams.window}) or data.horizon ({self.hparams.horizon}) smaller, or give more rows"
        )


class WindowDataset(Dataset[Window]):
    """Windows of a series in memory; fetches a batch with one index operation.

    Args:
        series: `(T, F)`.
        starts: `(count,)`, the first row of each window.
        window: Rows of the past.
        horizon: Rows of the future after it.
    """

    def __init__(self, series: Tensor, starts: Tensor, window: int, horizon: int) -> None:
        self.series = series
        self.starts = starts
        self.window = window
        self.offsets = torch.arange(window + horizon)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: list[int]) -> Window:
        """Past `(batch, window, F)` and future `(batch, horizon, F)`."""
        rows = self.series[self.starts[indices, None] + self.offsets]  # (batch, window + horizon, F)
        return rows[:, : self.window], rows[:, self.window :]


def read_csv(
    path: Path, columns: Sequence[str] | None, header: bool | None, time_column: str | None
) -> tuple[Tensor, list[str], list[str]]:
    """Reads numbers from a CSV file.

    Args:
        path: The file; its separator is the comma, semicolon or tab that is most frequent in the first row.
        columns: Names of the columns to read; all but `time_column`, if not given.
        header: Whether the first row holds the names; if not given, it does if nothing in it is a number.
        time_column: The name of the column to return as text.

    Returns:
        The numbers `(rows, columns)` in float64, the names of the columns, and the time of each row.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It isn't text, has no rows or no such column, or a value is missing or not a number.
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
    for row, cells in enumerate(rows, start=1):
        if len(cells) != len(rows[0]):
            raise ValueError(
                f"{path}, row {row}: {len(cells)} cell(s), but {len(rows[0])} in the first row; look for a missing "
                f"value, a stray quote, or a {separator!r} that is not meant to separate"
            )
        if any("\n" in cell for cell in cells):
            raise ValueError(f"{path}, row {row}: a line break in a cell; look for a stray quote")
    top = [cell.strip() for cell in rows[0]] if rows else []
    if header is None:
        header = all(number(cell) is None for cell in top) and not all(cell.lower() in MISSING for cell in top)
    names = top if header else [str(column + 1) for column in range(len(top))]
    first = 2 if header else 1  # the row of the first values, counted from 1 as a spreadsheet does
    rows = rows[first - 1 :]
    if not rows:
        raise ValueError(f"{path} has no rows of values")
    wanted = [name for name in names if name != time_column] if columns is None else list(columns)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(
            f"{path}: the columns to use are {', '.join(wanted) or 'none'}; name each once in data.columns"
        )
    for name in [*wanted, *([] if time_column is None else [time_column])]:
        if name not in names:
            raise ValueError(f"{path} has no column {name!r}; its columns are {', '.join(names)}")
    places = [names.index(name) for name in wanted]
    values = []
    for row, cells in enumerate(rows, start=first):
        for place in places:
            value = number(cells[place])
            if value is None:
                raise ValueError(f"{path}, row {row}, column {names[place]!r}: {complaint(cells[place].strip(), row)}")
            values.append(value)
    at = None if time_column is None else names.index(time_column)
    times = [str(row) if at is None else cells[at].strip() for row, cells in enumerate(rows, start=first)]
    known = read_times(times)
    if known is not None and known[0][0] > known[0][-1]:
        raise ValueError(f"{path} has the newest row first: sort it by {time_column!r}, oldest first")
    return torch.tensor(values, dtype=torch.float64).view(len(rows), len(wanted)), wanted, times


def number(text: str) -> float | None:
    """A number that is finite in float32, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= torch.finfo(torch.float32).max else None


def complaint(text: str, row: int) -> str:
    """What is wrong with a cell that `number` refuses, and what to do about it."""
    if text.lower() in MISSING:
        return "the value is missing: fill the gap, or leave the row out"
    hint = "choose the columns of numbers with data.columns; data.time_column names that of the time"
    if row == 1:
        hint = "set data.header to true if the row names the columns"
    elif number(text.replace(",", ".")) is not None:
        hint = "write decimals with a point"
    return f"{text!r} is not a number, or not a finite one; {hint}"


def compact_date(text: str) -> date:
    """A date written as 20240131."""
    if len(text) != 8:
        raise ValueError(f"{text!r} is no such date")
    return datetime.strptime(text, "%Y%m%d").date()


def finite(text: str) -> float:
    """A number; a ValueError where it isn't one."""
    value = number(text)
    if value is None:
        raise ValueError(f"{text!r} is not a number")
    return value


# How times are read and written, the more special ones first.
TIMES: list[tuple[Callable[[str], Any], Callable[[Any], str]]] = [
    (compact_date, lambda day: day.strftime("%Y%m%d")),
    (int, str),
    (finite, lambda time: f"{time:.15g}"),
    (date.fromisoformat, str),
    (datetime.fromisoformat, str),
]


def read_times(times: Sequence[str]) -> tuple[list[Any], Callable[[Any], str]] | None:
    """Times as numbers or dates, if they are all of one kind, and what writes them as they were."""
    for read, write in TIMES:
        try:
            values = [read(time) for time in times]
            max(values)  # a TypeError for dates with and without a time zone
        except (ValueError, TypeError):
            continue
        return values, write
    return None


def continued(times: Sequence[str], count: int) -> list[str]:
    """The `count` times after the last, by the step that is the most frequent; or +1, +2, ... where that isn't known.

    Dates on the same day of different months go on by months.
    """
    known = read_times(times)
    if known is None or len(times) < 2:
        return [f"+{step + 1}" for step in range(count)]
    values, write = known
    steps = Counter(after - before for before, after in pairwise(values))
    try:
        if isinstance(values[0], date) and len({day.day for day in values}) == 1 and min(steps) >= timedelta(28):
            months = [day.year * 12 + day.month - 1 for day in values]
            step = Counter(after - before for before, after in pairwise(months)).most_common(1)[0][0]
            later = (months[-1] + step * (ahead + 1) for ahead in range(count))
            return [write(values[-1].replace(year=month // 12, month=month % 12 + 1)) for month in later]
        step = steps.most_common(1)[0][0]
        return [write(values[-1] + step * (ahead + 1)) for ahead in range(count)]
    except (OverflowError, ValueError):  # past the last date there is
        return [f"+{step + 1}" for step in range(count)]
