"""Columns of the calendar, which are known ahead."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np

from datamodules.common.times import DAY, median_step

CALENDAR = 6  # columns


def calendar_columns(times: Sequence[datetime]) -> np.ndarray:
    """Month, weekday and hour of times in order, each as sine and cosine: `(rows, 6)`.

    Those that the step is too long for are 0: the hour of days, the weekday of weeks, the month of years.
    """
    step = median_step(times)
    turns = [
        ([(time.month - 1 + (time.day - 1) / 31) / 12 for time in times], 360 * DAY),
        ([time.weekday() / 7 for time in times], 7 * DAY),
        ([(time.hour + time.minute / 60) / 24 for time in times], DAY),
    ]
    angles = 2 * np.pi * np.array([turn for turn, _ in turns])
    told = np.array([[step < longest] for _, longest in turns])
    return np.stack([np.sin(angles) * told, np.cos(angles) * told], axis=1).reshape(CALENDAR, -1).T
