"""Series of a file: their values in the order of time, and the gaps in them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.common.csv_table import Table
from datamodules.common.times import Steps, TimeFormat, later_times
from lit_models.common.messages import format_list


class Series(NamedTuple):
    """One series of a file, in the order of time."""

    group: str | None  # its name, where a file has several
    values: np.ndarray  # (rows, columns)
    times: list[str]  # of the rows
    time_format: TimeFormat
    steps: Steps | None  # from row to row
    ahead: int = 0  # number of rows at the end of which only what is known ahead is told
    gap: tuple[int, str] = (0, "")  # most rows in which a forecast column was filled in, and the time of the first

    def later_times(self, count: int) -> list[str]:
        """The `count` times after the last row."""
        return later_times(self.steps, self.time_format, count)

    def first_times(self, count: int) -> list[str]:
        """The times of the first `count` rows, and of those after the last where they are not enough."""
        return self.times[:count] + self.later_times(max(0, count - len(self.times)))


def warn_of_gaps(path: Path, series: list[Series]) -> None:
    """Warns of times that are missing, and of steps that vary, since every row counts as one step."""
    uneven = [one for one in series if one.steps is not None and not one.steps.regular]
    if uneven:
        group = f" of {format_list([one.group for one in uneven])}" if uneven[0].group is not None else ""
        rank_zero_warn(
            f"{path}: the times{group} are not evenly spaced (often by {uneven[0].steps.name}), but every row counts "
            "as one step: give a file with a row for each step, if that matters"
        )
    gaps = [one.times[row] for one in series if one.steps is not None for row in one.steps.gaps]
    if gaps:
        missing = sum(one.steps.missing for one in series if one.steps is not None)
        rank_zero_warn(
            f"{path}: {missing} time(s) are missing in {len(gaps)} gap(s), the first after {gaps[0]}: the rows around "
            "a gap count as neighbours; data.fill, previous or interpolate, adds the rows"
        )


def fill_gaps(
    series: Series, fill: str, table: Table, order: list[int], names: list[str], forecast: int, before_known: int
) -> Series:
    """A series without gaps: rows for the times that are missing, and numbers, interpolated or the previous ones.

    The first columns are `forecast`; those `before_known` stay empty in the rows ahead.
    """
    values, times, steps, ahead = series.values, series.times, series.steps, series.ahead
    if steps is not None and steps.missing:
        if steps.missing > len(times):
            raise ValueError(
                f"{table.path}: data.fill would add {steps.missing} rows to {len(times)}, of a step of {steps.name}: "
                "leave it out, or give a file without such gaps"
            )
        rows = np.array(steps.positions) - steps.positions[0]
        values = np.full((rows[-1] + 1, values.shape[1]), np.nan)
        values[rows] = series.values
        ahead = int(rows[-1] - rows[-1 - ahead])
        filled = range(steps.positions[0], steps.positions[-1] + 1)
        known = dict(zip(steps.positions, times, strict=True))
        times = [known[at] if at in known else series.time_format.write(steps.at(at)) for at in filled]
        steps = steps._replace(positions=list(filled))
    gap = series.gap
    for number, name in enumerate(names):
        column = values[: len(values) - ahead if number < before_known else len(values), number]
        where = np.arange(len(column))
        known = where[~np.isnan(column)]
        before, after = len(known) and known[0] == 0, len(known) and known[-1] == where[-1]
        if not before or (fill == "interpolate" and not after):
            late = series.ahead if number < before_known else 0
            row, side = (order[len(order) - 1 - late], "after") if before else (order[0], "before")
            raise ValueError(
                f"{table.path}, row {table.first + row}, column {name!r}: the value is missing, and there is none "
                f"{side} it to fill it in from: leave such rows at the start or the end out"
            )
        latest = np.searchsorted(known, where, side="right") - 1
        column[:] = np.interp(where, known, column[known]) if fill == "interpolate" else column[known[latest]]
        lengths = np.diff([*known, len(column)]) - 1
        if number < forecast:
            gap = max(gap, (int(lengths.max()), times[min(known[lengths.argmax()] + 1, len(times) - 1)]))
    return series._replace(values=values, times=times, steps=steps, ahead=ahead, gap=gap)
