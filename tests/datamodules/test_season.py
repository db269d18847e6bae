import numpy as np
import pytest

from datamodules.common.season import find_season, usual_season

ROWS = np.arange(400)
WEEK = np.array([1, 1, 1.2, 1.3, 2, 3, 2.5])
HOURS = np.sin(2 * np.pi * ROWS / 24) * np.where(ROWS // 24 % 7 < 5, 1, 0.4)


def noise(seed, rows=400):
    return np.random.default_rng(seed).standard_normal(rows)


def autoregression(phi, seed, rows=400):
    values = noise(seed, rows)
    for row in range(1, rows):
        values[row] += phi * values[row - 1]
    return values


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("pattern", "spread", "step", "season"),
    [
        (np.sin(2 * np.pi * ROWS / 24), 0.3, None, 24),
        (10 + 10 * np.sin(2 * np.pi * ROWS / 12), 2, "month", 12),
        (WEEK[ROWS % 7] + 0.01 * ROWS, 0.5, "day", 7),
        (np.exp(ROWS / 100) * (1 + 0.3 * np.sin(2 * np.pi * ROWS / 12)), 0.1, "month (last day)", 12),
        (3.0 * (ROWS % 10 == 0), 0.5, "1", 10),  # a peak that comes again, with all its multiples
        (ROWS % 2, 0.3, None, 2),
        (HOURS, 0.3, "hour", 24),
    ],
)
def test_a_season_is_found_in_noise(pattern, spread, step, season, seed):
    values = pattern + spread * noise(seed)
    assert find_season(values[:, None], step) == season
    assert find_season(np.stack([values, 100 - 5 * values], axis=1), step) == season


def test_a_season_is_found_on_a_random_walk():
    for seed in range(5):
        values = 3 * WEEK[ROWS % 7] + np.cumsum(noise(seed)) / 2
        assert find_season(values[:, None]) == 7


@pytest.mark.parametrize("rows", [50, 100, 400])
def test_noise_has_no_season(rows):
    found = []
    for seed in range(30):
        kinds = (noise(seed, rows), np.cumsum(noise(seed, rows)), autoregression(0.8, seed, rows))
        kinds += (0.05 * np.arange(rows) + noise(seed, rows),)
        found += [find_season(values[:, None], "month") for values in kinds]
    assert sum(season != 1 for season in found) <= 0.03 * len(found)


def test_a_season_must_come_three_times():
    pattern = np.sin(2 * np.pi * ROWS / 12)
    assert [find_season(pattern[:rows, None], "month") for rows in (1, 5, 30, 36, 48)] == [1, 1, 1, 1, 12]


def test_flat_and_straight_columns_have_no_season():
    flat, line = np.full(400, 3.1), 0.1 * ROWS
    assert find_season(np.stack([flat, line], axis=1)) == 1
    assert find_season(np.stack([flat, line, WEEK[ROWS % 7]], axis=1)) == 7


def test_the_calendars_season_is_taken_where_it_is_about_as_clear():
    values = HOURS + np.where(ROWS // 24 % 7 < 5, 0, 1)  # days and weeks
    assert find_season(values[:, None], "hour") == 24
    assert find_season(np.sin(2 * np.pi * ROWS / 9)[:, None], "month") == 9


@pytest.mark.parametrize(
    ("step", "rows"),
    [
        *(("month (last day)", 12), ("2 months", 6), ("quarter", 4), ("week", 52), ("day", 7), ("weekday", 5)),
        *(("hour", 24), ("3 hours", 8), ("15 minutes", 96), ("5 hours", None), ("day without Sun", None)),
        *(("1", None), ("0.5", None), ("year", None), (None, None)),
    ],
)
def test_seasons_of_the_calendar(step, rows):
    assert usual_season(step) == rows
