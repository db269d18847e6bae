"""Time series from a CSV file or built in, as windows: the rows of a context, and those of the target after it.

Legend: T - number of rows of the series; F - of its columns; context_length, horizon - of rows of context and target.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from datamodules.common.base import BatchDataModule, check_fractions
from datamodules.common.csv_series import continue_times, read_csv
from datamodules.common.tensors import indices_on
from datamodules.mackey_glass import mackey_glass
from lit_models.common.arguments import Fraction, PositiveInt, check_arguments


class TimeSeriesDataModule(BatchDataModule):
    """A CSV file or the Mackey-Glass series: context `(batch, context_length, F)` and target `(batch, horizon, F)`.

    The first rows train, the next validate, the last test, and every window lies within its part. Values are float32
    in the file's own units; `mean` and `std` are over the training rows alone, for the model to scale by. `predict`
    gets one window whose target is all test rows and `horizon` unknown ones after them, NaN.

    Args:
        path: A CSV file with one row per time step, oldest first, separated by commas, semicolons or tabs. The
            Mackey-Glass series, if not given.
        columns: Names of the columns to use; without a header, they are called 1, 2, 3 and so on. All, if not given.
        header: Whether the first row names the columns. If not given, it does if it has no number.
        time_column: Name of the column with the times, which `predict` copies. The row's number in the file, if not
            given, counted from 1 with the header, as in errors.
        context_length: Number of rows that a forecast looks back on.
        horizon: Number of rows to forecast.
        stride: Number of rows from the start of a window to that of the next.
        batch_size: Batch size per process.
        val_fraction: Fraction of the rows for validation; 0 is none.
        test_fraction: Fraction of the rows for the test.
        length: Number of rows of the Mackey-Glass series, one per unit of time.
        series_seed: Seed of its start.
        cache_on_device: Keep the series in the device's memory, and cut windows there.

    Attributes:
        column_names: Names of the columns.
        num_features: Number of columns, F.
        mean: Mean of each column over the training rows.
        std: Standard deviation of each column over the training rows.
        times: Set for `predict`: the time of each row, and of the `horizon` rows after the last.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has no such column; a value is missing or not a number; a column is constant; a part is shorter
            than a window; an argument is out of range.
    """

    task = "forecasting"
    resume_may_change = frozenset({"path", "cache_on_device"})

    def __init__(
        self,
        path: str | None = None,
        columns: str | int | list[str | int] | None = None,
        header: bool | None = None,
        time_column: str | None = None,
        context_length: PositiveInt = 50,
        horizon: PositiveInt = 20,
        stride: PositiveInt = 1,
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
        if path is None and any(option is not None for option in (columns, header, time_column)):
            raise ValueError("columns, header and time_column are a file's: give its path too")
        if path is not None and (length, series_seed) != (10_000, 0):
            raise ValueError("length and series_seed are the Mackey-Glass series': leave them out, or path")
        self.save_hyperparameters(logger=False)

    @override
    def setup(self, stage: str) -> None:
        hp = self.hparams
        if hp.path is None:
            values = mackey_glass(hp.length, seed=hp.series_seed)[:, None]  # (T, F)
            self.column_names, times = ["x"], [str(row) for row in range(hp.length)]
        else:
            columns = [hp.columns] if isinstance(hp.columns, str | int) else hp.columns
            columns = None if columns is None else [str(name) for name in columns]
            values, self.column_names, times = read_csv(Path(hp.path), columns, hp.header, hp.time_column)
        rows, self.num_features = values.shape
        test = rows - round(rows * hp.test_fraction)
        val = test - round(rows * hp.val_fraction)
        scale = values[:val].std(dim=0, correction=0)
        self.mean, self.std = values[:val].mean(dim=0).tolist(), scale.tolist()
        for name, mean, std in zip(self.column_names, self.mean, self.std, strict=True):
            if std <= max(1e-5 * abs(mean), 1e-30):  # float32 would make steps of it
                raise ValueError(
                    f"column {name!r} is constant over the {val} training rows, or next to it ({mean:g}, "
                    f"standard deviation {std:g}): it has no scale; leave it out of data.columns, or subtract an offset"
                )
        self.series = values.float()
        if stage == "predict":
            if test < hp.context_length:
                raise self._too_short("the part before the test rows", test, hp.context_length)
            self.times = times + continue_times(times, hp.horizon)
            series = torch.cat([self.series, torch.full((hp.horizon, self.num_features), math.nan)])
            start = torch.tensor([test - hp.context_length])
            self.test_set = WindowDataset(series, start, hp.context_length, horizon=len(series) - test)
            return
        parts = {"train": (0, val), "val": (val, test), "test": (test, rows)}
        for name in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            start, end = parts[name]
            last = end - hp.context_length - hp.horizon  # where a window can start
            starts = torch.arange(start, max(start, last + 1), hp.stride)
            if start == end and stage != "fit":
                raise ValueError(f"there are no rows to {name} on: data.{name}_fraction is 0")
            if not len(starts) and start < end:
                raise self._too_short(f"the {name} part", end - start, hp.context_length + hp.horizon)
            setattr(self, f"{name}_set", WindowDataset(self.series, starts, hp.context_length, hp.horizon))

    def _too_short(self, part: str, rows: int, needed: int) -> ValueError:
        return ValueError(
            f"{part} of the series has {rows} rows, and one window takes {needed}: make data.context_length "
            f"({self.hparams.context_length}) or data.horizon ({self.hparams.horizon}) smaller, or give more rows"
        )


class WindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a series `(T, F)` in memory, from the rows `starts` on; fetches a batch with one index operation."""

    def __init__(self, series: Tensor, starts: Tensor, context_length: int, horizon: int) -> None:
        self.series, self.starts = series, starts
        self.context_length, self.horizon = context_length, horizon
        self.offsets = torch.arange(context_length + horizon, device=series.device)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Context `(batch, context_length, F)` and target `(batch, horizon, F)`."""
        chosen = indices_on(self.series.device, indices)
        rows = self.series[self.starts[chosen, None] + self.offsets]  # (batch, context_length + horizon, F)
        return rows[:, : self.context_length], rows[:, self.context_length :]

    def to(self, device: torch.device) -> "WindowDataset":
        """The same dataset in a device's memory."""
        return WindowDataset(self.series.to(device), self.starts.to(device), self.context_length, self.horizon)
