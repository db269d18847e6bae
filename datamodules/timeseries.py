"""Time series from a CSV file or built in, as windows: the rows of a context, and those of the target after it.

Legend: T - number of rows of the series; F - of its columns; context_length, horizon - of rows of context and target.
"""

import math
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from statistics import mode
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from datamodules.common.base import BatchDataModule, check_fractions
from datamodules.common.calendar_columns import CALENDAR, calendar_columns
from datamodules.common.csv_series import read_series
from datamodules.common.csv_table import CHARACTERS
from datamodules.common.samplers import EpochSampler
from datamodules.common.season import find_season
from datamodules.common.series import Series
from datamodules.common.times import TimeFormat, find_steps
from datamodules.common.windows import SeriesDataset, WindowDataset, shift, usual_size, window_size
from datamodules.mackey_glass import mackey_glass
from lit_models.common.arguments import Fraction, PositiveInt, check_arguments
from lit_models.common.messages import format_list, inform

FILES = Path(__file__).parent / "files"
Parts = dict[str, list[tuple[int, int]]]  # of each part, where it starts and ends in the rows of all series
FILE_OPTIONS = ("columns", "input_columns", "known_columns", "header", "time_column", "time_format", "group_column")
FILE_OPTIONS += ("group", "separator", "decimal", "thousands", "missing", "fill")  # of `read_series`


class TimeSeriesDataModule(BatchDataModule):
    """A CSV file or the Mackey-Glass series: context `(batch, context_length, F)` and target `(batch, horizon, F)`.

    The first rows train, the next validate, the last test. Training windows lie within their part; of those to validate
    and test, the target does, and the context may begin in the rows before. Values are float32 in the file's own units;
    `mean`, `std` and `season` are found in the training rows alone, for the model to scale by and to look back on.
    `predict` gets one window of each series, whose target is all its test rows and `horizon` unknown ones after them,
    NaN.

    The columns to forecast come first, then those that are only inputs, then those that are known ahead: each row holds
    these of the row after it.

    Args:
        path: A CSV file with one row per time step, or the name of one that comes with the package: air_passengers.csv,
            sunspots.csv, co2_weekly.csv or nile.csv. The Mackey-Glass series, if not given.
        columns: Columns to forecast, by name, or by number counted from 1. If not given, all but those of the time, the
            group and the inputs.
        input_columns: Columns that are only inputs, and not known ahead, such as a stock.
        known_columns: Columns that are only inputs, and known ahead, such as a price or a holiday. For `predict`, rows
            at the end of the file give them for the horizon, with nothing in the columns to forecast.
        calendar: Add month, weekday and hour of the times, each as sine and cosine: six columns that are known ahead.
        header: Whether the first row names the columns. If not given, it does if there is a word above a number or a
            time, or nothing but words.
        time_column: Column with the times, by which the rows are sorted, and which `predict` continues. If not given,
            a column of times, or of rising numbers that is called year, day, time or the like, else the row's number
            in the file, counted from 1 with the header, as in errors.
        time_format: How times are written, as in Python's `strptime`, such as %d/%m/%Y. If not given, it must be clear
            from the whole column.
        group_column: Column that tells several series apart. Each is split into parts, and no window holds two.
        group: Values of `group_column` to use. All, if not given.
        separator: Character between the cells, also `tab` or `space`. If not given, the comma, semicolon, tab or
            vertical bar that the rows have equally often.
        decimal: Character before decimals. A point, if not given, or a comma where points are between thousands; an
            error where they may be either.
        thousands: Character between groups of three digits, also `space`.
        missing: Texts that stand for no value, such as ?, beside nothing, NaN, NA, N/A, null and none.
        fill: What to put where values or times are missing: the previous values, or a line to the next. If not given,
            a missing value is an error, and missing times a warning.
        context_length: Number of rows that a forecast looks back on. If not given, 24, or two seasons and two rows if
            that is more, or less where the parts are short.
        horizon: Number of rows to forecast. If not given, a season, or 20 where there is none, or less where the parts
            are short.
        season: Number of rows of a season, such as 12 for months; 1 is none. Found in the training rows, if not given.
        stride: Number of rows from the start of a window to that of the next.
        windows_per_epoch: Number of windows that an epoch draws to train on, so that it is as long for short series as
            for long ones. Each once, if not given.
        batch_size: Batch size per process.
        val_fraction: Fraction of the rows for validation; 0 is none.
        test_fraction: Fraction of the rows for the test.
        length: Number of rows of the Mackey-Glass series, one per unit of time.
        series_seed: Seed of its start.
        cache_on_device: Keep the series in the device's memory, and cut windows there.

    Attributes:
        column_names: Names of the columns to forecast.
        num_features: Number of columns, F.
        num_targets: Number of those to forecast, the first.
        num_known: Number of those that are known ahead, the last.
        mean: Mean of each column over the training rows.
        std: Standard deviation of each column over the training rows.
        season: Number of rows of a season; 1 where there is none.
        naive_error: Mean absolute error of each column to forecast over the training rows, if the row a season before
            is taken for each, or the row before where there is no season.
        step: Step from row to row in words, such as "month (last day)", "weekday", "15 minutes" or, of numbers, "1";
            None where there is none, or several series differ.
        times: Set for `predict`: the time of each row of a series, and of the `horizon` rows after its last.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no such column; a value is missing or not a number; times are not understood, or repeated; a
            column is constant; the training rows are fewer than a window's, or those to validate or test fewer than
            the horizon; a gap is as long as a context; columns known ahead end before the horizon; an argument is out
            of range.
    """

    task = "forecasting"
    resume_may_change = frozenset({"path", "cache_on_device"})
    from_data = frozenset({"context_length", "horizon", "season"})

    def __init__(
        self,
        path: str | None = None,
        columns: str | int | list[str | int] | None = None,
        input_columns: str | int | list[str | int] | None = None,
        known_columns: str | int | list[str | int] | None = None,
        calendar: bool = False,
        header: bool | None = None,
        time_column: str | int | None = None,
        time_format: str | None = None,
        group_column: str | int | None = None,
        group: str | int | list[str | int] | None = None,
        separator: str | None = None,
        decimal: Literal[".", ","] | None = None,
        thousands: str | None = None,
        missing: str | int | list[str | int] | None = None,
        fill: Literal["previous", "interpolate"] | None = None,
        context_length: PositiveInt | None = None,
        horizon: PositiveInt | None = None,
        season: PositiveInt | None = None,
        stride: PositiveInt = 1,
        windows_per_epoch: PositiveInt | None = None,
        batch_size: PositiveInt = 32,
        val_fraction: Fraction = 0.15,
        test_fraction: Fraction = 0.15,
        length: PositiveInt = 10_000,
        series_seed: int = 0,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(TimeSeriesDataModule, locals())
        check_fractions(val_fraction, test_fraction)
        self.save_hyperparameters(logger=False)
        given = [name for name in FILE_OPTIONS if self.hparams[name] is not None] + ["calendar"] * calendar
        if path is None and given:
            raise ValueError(f"{', '.join(given)}: of a file, so give its path too")
        if path is not None and (length, series_seed) != (10_000, 0):
            raise ValueError("length and series_seed are the Mackey-Glass series': leave them out, or path")
        check_characters(separator, decimal, thousands)
        if group is not None and group_column is None:
            raise ValueError("group is one of the values of group_column: give that too")

    @override
    def setup(self, stage: str) -> None:
        hp = self.hparams
        if hp.path is None:
            values = mackey_glass(hp.length, seed=hp.series_seed)[:, None].numpy()  # (T, F)
            form, texts = TimeFormat("a number", Decimal, str), [str(row) for row in range(hp.length)]
            all_series, self.column_names = (
                [Series(None, values, texts, form, find_steps([*map(Decimal, texts)]))],
                ["x"],
            )
            inform(f"Mackey-Glass series: {hp.length:,} rows")
        else:
            all_series, self.column_names = self._read()
        calendar = CALENDAR if hp.calendar else 0
        self.num_targets, self.num_features = len(self.column_names), all_series[0].values.shape[1] + calendar
        self.num_known = len(as_list(hp.known_columns)) + calendar
        steps = {one.steps and one.steps.name for one in all_series}
        self.step = steps.pop() if len(steps) == 1 else None
        parts: Parts = {"train": [], "val": [], "test": []}
        start = 0
        for one in all_series:
            rows = len(one.values) - one.ahead
            test = rows - round(rows * hp.test_fraction)
            bounds = [start, start + test - round(rows * hp.val_fraction), start + test, start + rows]
            for spans, span in zip(parts.values(), pairwise(bounds), strict=True):
                spans.append(span)
            start += rows
        tables = [self._table(one, len(one.values) - one.ahead) for one in all_series]
        values = torch.cat(tables)
        self._set_scale(torch.cat([values[start:end] for start, end in parts["train"]]))
        self.series = torch.cat([shift(table, self.num_known) for table in tables])
        options = self._fill_in(all_series, parts)
        self._set_naive_error([self.series[start:end, : self.num_targets] for start, end in parts["train"]])
        self._check_gaps(all_series)
        if stage == "predict":
            self._prepare_prediction(all_series, parts["test"])
            return
        said = []
        for name, spans in parts.items():
            asked = name in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]
            rows = sum(end - start for start, end in spans)
            if asked and not rows and stage != "fit":
                raise ValueError(
                    f"there are no rows to {name} on: data.{name}_fraction is {hp[f'{name}_fraction']:g} of "
                    f"{len(values)} row(s)"
                )
            windows = self._windows(name, all_series, parts, check=asked)
            said.append(f"{name} {rows:,} rows, {len(windows):,} windows")
            if asked:
                setattr(self, f"{name}_set", windows)
        inform(f"{'; '.join(said)}; {options}")

    @override
    def sampler(self, dataset: Dataset, seed: int, epoch: int, skip: int) -> EpochSampler:
        return EpochSampler(dataset, seed, epoch, skip, size=self.hparams.windows_per_epoch)

    @override
    def predict_dataloader(self) -> DataLoader:
        return self._loader(self.test_set, batch_size=1)  # series are not of the same length

    def target_labels(self, batch_idx: int) -> list[dict[str, str]]:
        """The group, if there are any, and time of each row of the target of a batch to predict."""
        return self.labels[batch_idx]

    def _read(self) -> tuple[list[Series], list[str]]:
        options = {name: self.hparams[name] for name in FILE_OPTIONS if self.hparams[name] is not None}
        for name in {"columns", "input_columns", "known_columns", "group", "missing"} & options.keys():
            options[name] = [str(item) for item in as_list(options[name])]
        for name in {"time_column", "group_column"} & options.keys():
            options[name] = str(options[name])
        path = Path(self.hparams.path)
        own = FILES / path.name  # no file of the user's is passed over for it
        return read_series(own if str(path) == path.name and not path.exists() and own.is_file() else path, **options)

    def _table(self, one: Series, rows: int) -> Tensor:
        """The first rows of a series, and those after its end, `(rows, F)`, NaN where they are unknown."""
        values = np.full((rows, one.values.shape[1]), math.nan)
        values[: len(one.values)] = one.values[:rows]
        if self.hparams.calendar:
            if one.time_format.name == "a number":
                raise ValueError(
                    f"calendar: the times of {self.hparams.path} are numbers: name a column of dates in "
                    "data.time_column"
                )
            times = [one.time_format.read(text) for text in one.first_times(rows)]
            values = np.concatenate([values, calendar_columns(times)], axis=1)
        return torch.from_numpy(values)

    def _set_scale(self, values: Tensor) -> None:
        """Mean and standard deviation of the columns over the training rows, `(rows, F)`; the calendar's have none."""
        hp, calendar = self.hparams, CALENDAR if self.hparams.calendar else 0
        values = values[:, : values.shape[1] - calendar]
        mean, std = values.mean(dim=0).tolist(), values.std(dim=0, correction=0).tolist()
        self.mean, self.std = mean + [0.0] * calendar, std + [1.0] * calendar
        columns: dict[bool, list[str]] = {True: [], False: []}
        names = self.column_names + [str(name) for name in as_list(hp.input_columns) + as_list(hp.known_columns)]
        for name, middle, spread in zip(names, mean, std, strict=True):
            columns[spread <= max(1e-5 * abs(middle), 1e-30)].append(name)  # float32 would make steps of it
        if flat := columns[True]:
            others = [name for name in columns[False] if name in self.column_names]
            way_out = f"set data.columns to the others, {format_list(others)}" if others else "use another"
            if (at := names.index(flat[0])) >= self.num_targets:
                way_out = "leave it out of data.input_columns and data.known_columns"
            raise ValueError(
                f"column {format_list([repr(name) for name in flat])} is constant over the {len(values)} training "
                f"rows, or next to it ({self.mean[at]:g}, standard deviation {self.std[at]:g}): it has no scale; "
                f"{way_out}, or subtract an offset"
            )

    def _fill_in(self, all_series: list[Series], parts: Parts) -> str:
        """Context length, horizon and season in words, after the data have filled in those that are not given."""
        hp = self.hparams
        lengths = {name: [end - start for start, end in spans if start < end] for name, spans in parts.items()}
        train = min(lengths["train"], default=0)
        asked, said = hp.season is not None, ""
        if not asked:
            some = zip(all_series[:5], parts["train"], strict=False)  # enough to tell
            hp.season = mode(
                find_season(one.values[: end - start, : self.num_targets], one.steps and one.steps.name)
                for one, (start, end) in some
            )
            said = "; no season found" if hp.season == 1 else f"; found a season of {hp.season} rows"
        elif hp.season > 1:
            said = f"; season of {hp.season} rows"
        given, evaluated = (hp.context_length, hp.horizon), min(lengths["val"] + lengths["test"], default=train)
        size = window_size(train, evaluated, *given, hp.season)
        if hp.season > 1 and size[0] <= hp.season:
            if asked:
                raise ValueError(
                    f"season is {hp.season}, but a context has {size[0]} rows: make data.season smaller, or "
                    "data.context_length larger than it, as far as there are training rows"
                )
            said += ", which the context does not hold: none is used"
            hp.season = 1
            size = window_size(train, evaluated, *given, hp.season)
        self.season, usual = hp.season, usual_size(hp.season)
        hp.context_length, hp.horizon = size
        short = any(one is None and length < most for one, length, most in zip(given, size, usual, strict=True))
        fitted = ", to fit short parts" if short else ""
        return f"context_length {hp.context_length}, horizon {hp.horizon}{fitted}{said}"

    def _set_naive_error(self, parts: list[Tensor]) -> None:
        """See `naive_error`; the standard deviation, where the parts are too short, or repeat themselves exactly."""
        errors = torch.cat([(part[self.season :] - part[: -self.season]).abs() for part in parts])
        mean, std = errors.double().mean(dim=0), torch.tensor(self.std[: self.num_targets], dtype=torch.float64)
        self.naive_error = torch.where(mean > 1e-6 * std, mean, std).tolist()

    def _windows(self, part: str, all_series: list[Series], parts: Parts, check: bool) -> WindowDataset:
        """The windows whose target lies in a part; those to train on lie in it as a whole."""
        hp, starts = self.hparams, []
        for one, (first, _), (start, end) in zip(all_series, parts["train"], parts[part], strict=True):
            begin = start if part == "train" else max(first, start - hp.context_length)
            if check and start < end and part == "train":
                self._check_rows("the train part", one, end - start, "context_length", "horizon")
            elif check and start < end:
                self._check_rows(f"the part before the {part} rows", one, start - first, "context_length")
                self._check_rows(f"the {part} part", one, end - start, "horizon")
            last = end - hp.context_length - hp.horizon
            starts.append(torch.arange(begin, max(begin, last + 1), hp.stride))
        return WindowDataset(self.series, torch.cat(starts), hp.context_length, hp.horizon)

    def _prepare_prediction(self, all_series: list[Series], tests: list[tuple[int, int]]) -> None:
        """One window for each series, whose target is all its test rows and the horizon after them."""
        hp, windows = self.hparams, []
        self.times, self.labels = [], []
        for one, (start, end) in zip(all_series, tests, strict=True):
            rows = len(one.values) - one.ahead
            test = rows - (end - start)
            self._check_rows("the part before the test rows", one, test, "context_length")
            if hp.known_columns and one.ahead < hp.horizon:
                of = "" if one.group is None else f" of series {one.group!r}"
                way_out = f"set data.horizon to {one.ahead}, or " if one.ahead else ""
                raise ValueError(
                    f"{hp.path}: what is known ahead{of} ends {one.ahead} row(s) after the last value of "
                    f"{self.column_names[0]!r}, but data.horizon is {hp.horizon}: {way_out}give rows at the end with "
                    f"{format_list([str(name) for name in as_list(hp.known_columns)])} alone"
                )
            table = shift(self._table(one, rows + hp.horizon), self.num_known)
            windows.append((table[test - hp.context_length : test], table[test:]))
            times = one.first_times(rows + hp.horizon)
            group = {} if one.group is None else {str(hp.group_column): one.group}
            self.times += times
            self.labels.append([group | {"time": time} for time in times[test:]])
        self.test_set = SeriesDataset(windows)
        rows = sum(end - test for test, end in tests)
        inform(f"one step ahead over {rows:,} test rows, then {hp.horizon} rows beyond the end of each series")

    def _check_gaps(self, all_series: list[Series]) -> None:
        """Raises a ValueError where as many rows were filled in as a window looks back on."""
        length = self.hparams.context_length
        for rows, first in (one.gap for one in all_series):
            if rows >= length:
                raise ValueError(
                    f"{self.hparams.path}: {rows} rows from {first} on were filled in, and a window looks back on "
                    f"{length}, which would all be made up: leave the rows before or after the gap out, or make "
                    f"data.context_length {rows + 1} or more"
                )

    def _check_rows(self, part: str, series: Series, rows: int, *takes: str) -> None:
        """Raises a ValueError where a part of a series has fewer rows than these options take of it."""
        hp, needed = self.hparams, sum(self.hparams[name] for name in takes)
        if rows < needed:
            of = "the series" if series.group is None else f"series {series.group!r}"
            smaller = " or ".join(f"data.{name} ({hp[name]})" for name in takes)
            leave = "" if series.group is None else ", leave it out of data.group"
            raise ValueError(
                f"{part} of {of} has {rows} rows, and one window takes {needed} of them: make {smaller} "
                f"smaller{leave}, or give more rows"
            )


def as_list(value: Any) -> list[Any]:
    """A list of what may be one, several or None."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def check_characters(separator: str | None, decimal: str | None, thousands: str | None) -> None:
    """Raises a ValueError where what separates cells, decimals and thousands is no character, or one for two."""
    given = {"separator": separator, "thousands": thousands}
    given = {name: CHARACTERS.get(value, value) for name, value in given.items() if value is not None}
    for name, value in given.items():
        if len(value) != 1 or value.isalnum() or value in '"\r\n+-':
            raise ValueError(f"{name} is {value!r}: it must be one character, such as ; or the word tab or space")
    if thousands is not None and given["thousands"] in (decimal, given.get("separator")):
        raise ValueError(f"thousands is {thousands!r}, which is the decimal character or the separator too")
