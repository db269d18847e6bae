"""Series of numbers over time, from a CSV file or built in: windows of the past, and the rows that follow them.

Legend: T - rows of the series; F - its columns; window, horizon - rows of a window's past and of its future.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.common.base import BatchDataModule, check_fractions
from datamodules.common.csv_series import continued, read_csv
from datamodules.common.tensors import indices_on
from datamodules.mackey_glass import mackey_glass
from lit_models.common.arguments import PositiveInt, Probability, check_arguments

Window = tuple[Tensor, Tensor]


class TimeSeriesDataModule(BatchDataModule):
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
        val_fraction: Share of the rows that validates; 0 for no validation.
        test_fraction: Share of the rows that tests.
        length: Rows of the Mackey-Glass series, one a unit of time.
        series_seed: Seed of its start.
        cache_on_device: Whether the series is kept in the device's memory, a GPU's for one, and windows are cut there.

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

    task = "forecasting"

    def __init__(
        self,
        path: str | None = None,
        columns: str | int | list[str | int] | None = None,
        header: bool | None = None,
        time_column: str | None = None,
        window: PositiveInt = 50,
        horizon: PositiveInt = 20,
        stride: PositiveInt = 1,
        batch_size: PositiveInt = 32,
        val_fraction: Probability = 0.15,
        test_fraction: Probability = 0.15,
        length: PositiveInt = 10_000,
        series_seed: int = 0,
        cache_on_device: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(TimeSeriesDataModule, locals())
        check_fractions(val_fraction, test_fraction)
        if path is None and any(option is not None for option in (columns, header, time_column)):
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
        test = rows - round(rows * options.test_fraction)
        val = test - round(rows * options.val_fraction)
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
                raise ValueError(f"there are no rows to {name} on: data.{name}_fraction is 0")
            if not len(starts) and start < end:
                raise self._too_short(f"the {name} part", end - start, options.window + options.horizon)
            setattr(self, f"{name}_set", WindowDataset(self.series, starts, options.window, options.horizon))

    def predict_dataloader(self) -> DataLoader:
        """The window before the test rows `(1, window, F)`; these, and the unknown ones after them, as NaN."""
        window, horizon = self.hparams.window, self.hparams.horizon
        unknown = torch.full((horizon, self.num_features), math.nan)
        series = torch.cat([self.series, unknown])
        start, rows = torch.tensor([self.test_row - window]), len(series) - self.test_row
        return self.predict_loader(WindowDataset(series, start, window, rows))

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
        self.horizon = horizon
        self.offsets = torch.arange(window + horizon, device=series.device)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: list[int]) -> Window:
        """Past `(batch, window, F)` and future `(batch, horizon, F)`."""
        chosen = indices_on(self.series.device, indices)
        rows = self.series[self.starts[chosen, None] + self.offsets]  # (batch, window + horizon, F)
        return rows[:, : self.window], rows[:, self.window :]

    def to(self, device: torch.device) -> "WindowDataset":
        """The same dataset in a device's memory."""
        return WindowDataset(self.series.to(device), self.starts.to(device), self.window, self.horizon)
