"""The season of a series: the number of rows after which its pattern comes again."""

import re

import numpy as np

USUAL = {"minute": 1440, "hour": 24, "day": 7, "weekday": 5, "week": 52, "month": 12, "quarter": 4}  # rows a season
LONGEST = 1500  # of the seasons that are looked for: a day of minutes, four years of days
ROWS, COLUMNS = 5 * LONGEST, 3  # that are looked at, the last rows and the first columns: enough, and quick


def find_season(values: np.ndarray, step: str | None = None) -> int:
    """The number of rows of a season of a series `(rows, columns)`, at most a third of them; 1 is none.

    For each length, the series without its moving average over that length is correlated with itself one and two
    seasons later. The lower of both counts: what a random walk repeats once by chance, it rarely repeats twice. The
    season is the shortest length where this is clear and highest, or that of the calendar where it is about as high,
    such as 12 for a `step` of "month (last day)", 96 for "15 minutes".
    """
    values = values[-ROWS:, :COLUMNS].astype(np.float64)
    lengths = np.arange(min(len(values) // 3, LONGEST) + 1)
    values = (values - values.mean(axis=0)).T.copy()  # a column's rows side by side
    sums = np.pad(np.cumsum(values, axis=1), ((0, 0), (1, 0)))
    scores = np.array([0.0 if length < 2 else repetition(values, sums, length) for length in lengths])
    # What noise and random walks score by chance falls with the root of the number of seasons; 1% of them pass these.
    bars = np.maximum(0.3, 1.3 * np.sqrt(np.maximum(lengths, 10) / max(values.shape[1], 1)))

    def is_peak(length: int, share: float) -> bool:
        """Whether a length is clear, and has at least a share of the highest score around it."""
        around = scores[length - max(1, length // 4) : length + max(1, length // 4) + 1]
        return bool(scores[length] > bars[length] and scores[length] >= share * around.max())

    usual = usual_season(step)
    if usual in lengths and is_peak(usual, 0.9):
        return usual
    peaks = [length for length in lengths[2:] if is_peak(length, 1)]
    return int(next((length for length in peaks if scores[length] >= 0.8 * scores[peaks].max()), 1))


def repetition(values: np.ndarray, sums: np.ndarray, length: int) -> float:
    """How like itself a series without its trend is one and two seasons later, -1 to 1.

    Args:
        values: Its rows less their mean, `(columns, rows)`.
        sums: Of the rows before each, `(columns, rows + 1)`.
        length: Rows of a season.
    """
    trend = (sums[:, length:] - sums[:, :-length]) / length
    if length % 2 == 0:
        trend = (trend[:, 1:] + trend[:, :-1]) / 2  # in the middle of a row, not between two
    rest = values[:, length // 2 :][:, : trend.shape[1]] - trend
    power, floor = np.square(rest).mean(axis=1), 1e-12 * np.square(values).mean(axis=1)  # of rounding errors
    if rest.shape[1] <= 2 * length or not (varies := power > floor).any():
        return 0.0
    return min(
        float(((rest[:, lag:] * rest[:, :-lag]).mean(axis=1)[varies] / power[varies]).mean())
        for lag in (length, 2 * length)
    )


def usual_season(step: str | None) -> int | None:
    """The rows of the calendar's season for a step in words, such as 12 for a month; None where there is none."""
    found = re.fullmatch(r"(?:(\d+) )?([a-z]+?)s?(?: \(.*\))?", step or "")
    rows, rest = divmod(USUAL.get(found[2], 0), int(found[1] or 1)) if found else (0, 0)
    return rows if rows > 1 and not rest else None
