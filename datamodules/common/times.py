"""Times as files write them: the format that a whole column has, and the step of the calendar from row to row.

A time is a `datetime`, or a `Decimal` where a file counts: rows, years, seconds of unix time.
"""

import calendar
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from itertools import accumulate, pairwise
from statistics import median_low, multimode
from typing import Any, NamedTuple

DATES = [
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d %b %Y", "%d-%b-%Y", "%d %B %Y", "%d-%B-%Y", "%d. %B %Y", "%Y-%b-%d", "%Y %b %d"),
    *("%b %d, %Y", "%B %d, %Y", "%b %d %Y", "%B %d %Y"),
    *("%Y-%m", "%Y/%m", "%m/%Y", "%m-%Y", "%m.%Y", "%YM%m"),
    *("%b %Y", "%b-%Y", "%B %Y", "%B-%Y", "%Y %b", "%Y-%b", "%Y %B"),
]
# Their century would be guessed, and often their order too.
TWO_DIGIT_YEARS = [
    *(order.replace(" ", gap) for order in ("%d %m %y", "%m %d %y", "%y %m %d") for gap in "./-"),
    *("%d-%b-%y", "%d %b %y", "%y-%b-%d", "%b-%y", "%b %y", "%y-%b"),
]
SIGNS = {"%Y": r"\d{4}", "%y": r"\d\d", "%m": r"\d\d?", "%d": r"\d\d?", "%b": r"[^\W\d]+", "%B": r"[^\W\d]+"}
SHAPES = {  # `strptime` takes its time
    name: re.compile(re.sub("%.", lambda sign: SIGNS[sign[0]], name.replace(".", r"\.")))
    for name in (*DATES, *TWO_DIGIT_YEARS)
}
COMPACT = {6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}  # by the number of digits
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
QUARTER = re.compile(r"(?P<year>\d{4})[- ]?Q(?P<part>[1-4])|Q(?P<first>[1-4])[-/ ]?(?P<last>\d{4})")
WEEK = re.compile(r"(?P<year>\d{4})-?W(?P<part>\d\d)")  # of ISO 8601
CLOCK = re.compile(
    r"(?P<gap>[T ])\d{1,2}:\d\d(?P<second>:\d\d)?(?P<fraction>\.\d{1,6})?(?P<half> ?[AP]M)?"
    r"(?P<zone>(?P<blank> ?)(Z|[+-]\d\d:?\d\d))?(?P<utc> UTC)?$",
    re.IGNORECASE,
)
DAY = timedelta(days=1)


class TimeFormat(NamedTuple):
    """How times are written."""

    name: str
    read: Callable[[str], Any]  # a ValueError for other text
    write: Callable[[Any], str]

    def read_all(self, texts: Sequence[str]) -> list[Any] | None:
        """The times of texts, or None, unless they are what is written for these times."""
        try:
            times = list(map(self.read, texts))
            return times if all(map(str.__eq__, map(self.write, times), texts)) else None
        except (ValueError, OverflowError):
            return None


class TimeError(ValueError):
    """That the time of a row, counted from 0, isn't understood."""

    def __init__(self, row: int, message: str) -> None:
        super().__init__(message)
        self.row = row


def read_times(texts: Sequence[str], time_format: str | None = None) -> tuple[list[Any], TimeFormat]:
    """The times of a column, and the format that all of them have, one of `strptime` if it is given.

    A TimeError names the row that isn't understood, or says that there are several ways to read the column.
    """
    if time_format is not None:
        return read_by_format(texts, time_format)
    formats = list(formats_of(texts[0]))
    readings: dict[str, tuple[list[Any], TimeFormat]] = {}
    for form in formats:
        times = None if form.name in readings else form.read_all(texts)
        if times is not None and times not in [other for other, _ in readings.values()]:
            readings[form.name] = times, form
    if len(readings) == 1 and "%y" not in next(iter(readings)):
        return next(iter(readings.values()))
    if readings:
        why = "can be read in several ways" if len(readings) > 1 else "has a year of two digits"
        names = " or ".join(f"'{name}'" for name in readings)
        raise TimeError(0, f"the time {texts[0]!r} {why}: set data.time_format to {names}")
    if all(map(NUMBER.fullmatch, texts)):
        decimals = max(len(text.partition(".")[2]) for text in texts)
        return list(map(Decimal, texts)), TimeFormat("a number", Decimal, lambda time: f"{time:.{decimals}f}")
    row, name = first_misfit(formats, texts)
    if not row and not is_time(texts[0]) and any(map(is_time, texts[1:4])):
        raise TimeError(0, f"{texts[0]!r} is no time, but there are times below it: leave a second header or units out")
    if not texts[row]:
        raise TimeError(row, "the time is missing: fill it in, or leave the row out")
    if not row:
        raise TimeError(0, f"{texts[0]!r} is not understood as a time: say how it is written with data.time_format")
    raise TimeError(row, f"{texts[row]!r} is not written as the times before it, such as {texts[0]!r} ({name})")


def first_misfit(formats: Sequence[TimeFormat], texts: Sequence[str]) -> tuple[int, str]:
    """The first row that the best of some formats doesn't fit, and that format's name."""
    fits = {form.name: lambda text, form=form: form.read_all([text]) for form in formats}
    fits |= {"a number": NUMBER.fullmatch} if NUMBER.fullmatch(texts[0]) else {}
    rows = {name: next(row for row, text in enumerate(texts) if not fit(text)) for name, fit in fits.items()}
    return max(((row, name) for name, row in rows.items()), default=(0, ""))


def read_by_format(texts: Sequence[str], time_format: str) -> tuple[list[Any], TimeFormat]:
    """The times of a column in a format of `strptime`."""
    times = []
    for row, text in enumerate(texts):
        try:
            times.append(datetime.strptime(text, time_format))
        except ValueError as error:
            raise TimeError(row, f"{text!r} does not fit data.time_format {time_format!r} ({error})") from error
    date, clock, rest = re.match(r"(.*?)(?:([T ]?%[HI])(.*))?$", time_format).groups(default="")
    formats = list(strptime_formats(date, clock + rest, texts[0]))
    return times, next((form for form in formats if form.read_all(texts)), formats[0])


def is_time(text: str) -> bool:
    """Whether a text can be a time, and is no mere number."""
    return next(formats_of(text), None) is not None


def formats_of(text: str) -> Iterator[TimeFormat]:
    """The formats that a text can have; a name comes several times with different ways to write it."""
    if match := QUARTER.fullmatch(text):
        yield part_format("quarter", QUARTER, match)
    elif match := WEEK.fullmatch(text):
        yield part_format("week", WEEK, match)
    elif NUMBER.fullmatch(text):
        name = COMPACT.get(len(text)) if text.isdecimal() else "%Y.%m" if re.fullmatch(r"\d{4}\.\d\d", text) else None
        earliest = 1700 if len(text) <= 8 else 1900  # unix time begins with less
        if name is not None and earliest <= int(text[:4]) <= 2200:
            yield from strptime_formats(name, "", text)
    else:
        clock, suffix = CLOCK.search(text), ""
        if clock:
            suffix = f"{clock['gap']}{'%I' if clock['half'] else '%H'}:%M"
            suffix += ":%S" * bool(clock["second"]) + ".%f" * bool(clock["fraction"])
            suffix += (clock["half"] or "")[:-2] + "%p" * bool(clock["half"])
            suffix += (clock["blank"] or "") + "%z" * bool(clock["zone"]) + (clock["utc"] or "")
        day = text[: clock.start()] if clock else text
        for date in (date for date, shape in SHAPES.items() if shape.fullmatch(day)):
            yield from (form for form in strptime_formats(date, suffix, text) if form.read_all([text]))


def strptime_formats(date: str, clock: str, example: str) -> Iterator[TimeFormat]:
    """A format of `strptime`, with zeros before days, months and hours, and without, otherwise like an example."""
    name, digits = date + clock, len(re.split(r"\D", example.rpartition(".")[2])[0])
    offset = re.search(r"([+-]\d\d)(:?)\d\d$", example)

    def read(text: str) -> datetime:
        return datetime.strptime(text, name)

    def write(time: datetime, date_zeros: bool, hour_zeros: bool) -> str:
        day, hour = time.strftime(date), time.strftime(clock.replace("%f", f"{time.microsecond:06}"[:digits]))
        if "%z" in clock:
            zone = time.strftime("%z")
            hour = hour.replace(zone, f"{zone[:3]}{offset[2]}{zone[3:]}" if offset else "Z")
        day = day if date_zeros else re.sub(r"(?<!\d)0(?=\d)", "", day)
        text = day + (hour if hour_zeros else re.sub(r"^([T ]?)0", r"\1", hour))
        return text.upper() if example.isupper() else text.lower() if example.islower() else text

    if re.fullmatch(r"%Y-%m-%d([T ]%H:%M(:%S)?)?", name):  # faster than what follows by far
        length, gap = len(example), clock[:1] or " "
        yield TimeFormat(name, datetime.fromisoformat, lambda time: time.isoformat(gap)[:length])
    for zeros in ((True, True), (True, False), (False, False), (False, True)):
        yield TimeFormat(name, read, partial(write, date_zeros=zeros[0], hour_zeros=zeros[1]))


def part_format(kind: str, pattern: re.Pattern, example: re.Match) -> TimeFormat:
    """Quarters or weeks of a year, written like an example."""
    year, part = ("year", "part") if example["year"] else ("last", "first")

    def read(text: str) -> datetime:
        found = pattern.fullmatch(text)
        if not found or not found[year]:
            raise ValueError(f"{text!r} is no {kind}")
        number = int(found[part])
        if kind == "week":
            return datetime.fromisocalendar(int(found[year]), number, 1)
        return datetime(int(found[year]), 3 * number - 2, 1)

    def write(time: datetime) -> str:
        number, years = f"{(time.month + 2) // 3}", time.year
        if kind == "week":
            years, number = time.isocalendar().year, f"{time.isocalendar().week:02}"
        values = {example.span(year): f"{years:04}", example.span(part): number}
        text = example.string
        for (start, end), value in sorted(values.items(), reverse=True):
            text = text[:start] + value + text[end:]
        return text

    return TimeFormat(kind, read, write)


class Steps(NamedTuple):
    """The grid of times that the rows of a series lie on."""

    name: str  # of the step, in words
    positions: list[int]  # of the rows on it
    at: Callable[[int], Any]  # the time at a position
    regular: bool = True  # otherwise the rows lie on no grid: the positions count them

    @property
    def missing(self) -> int:
        """The number of times between the first row and the last that have no row."""
        return self.positions[-1] - self.positions[0] + 1 - len(self.positions)

    @property
    def gaps(self) -> list[int]:
        """The rows after which times are missing."""
        return [row for row, (here, after) in enumerate(pairwise(self.positions)) if after - here > 1]


def find_steps(times: Sequence[Any]) -> Steps | None:
    """The steps of times in order, none twice: months, weekdays or a fixed time; None for fewer than two times.

    Where times have zones, months and days are those of the wall clock, and shorter steps are of time elapsed.
    """
    if len(times) < 2:
        return None
    zone = getattr(times[-1], "tzinfo", None)
    if isinstance(times[0], Decimal):
        return fixed_steps(times)
    wall = [time.replace(tzinfo=None) for time in times]
    days = fixed_steps(wall)
    steps = month_steps(wall) or weekday_steps(wall) or (days if days.regular and median_step(wall) >= DAY else None)
    if steps is not None:
        return steps._replace(at=lambda position: steps.at(position).replace(tzinfo=zone))
    if zone is None:
        return days
    elapsed = fixed_steps([time.astimezone(timezone.utc) for time in times])
    return elapsed._replace(at=lambda position: elapsed.at(position).astimezone(zone))


def month_steps(times: Sequence[datetime]) -> Steps | None:
    """Months, quarters, years: the same day of the month each, its last day, or its first or last weekday."""

    def last(year: int, month: int) -> int:
        return calendar.monthrange(year, month)[1]

    def weekday(days: range, year: int, month: int) -> int:
        return next(day for day in days if day <= last(year, month) and calendar.weekday(year, month, day) < 5)

    latest = max(time.day for time in times)
    anchors: dict[str, Callable[[int, int], int]] = {
        " (first day)": lambda year, month: 1,
        " (last day)": last,
        f" (day {latest})": lambda year, month: min(latest, last(year, month)),
        " (last weekday)": partial(weekday, range(31, 0, -1)),
        " (first weekday)": partial(weekday, range(1, 32)),
    }
    positions = [time.year * 12 + time.month - 1 for time in times]
    differences = [after - before for before, after in pairwise(positions)]
    months = min(multimode(differences))
    if min(differences) < 1 or any(count % months for count in differences) or len({t.time() for t in times}) > 1:
        return None
    days = [(time.year, time.month, time.day) for time in times]
    fitting = (name for name, day_of in anchors.items() if all(day == day_of(*month) for *month, day in days))
    if (anchor := next(fitting, None)) is None:
        return None

    def at(position: int) -> datetime:
        year, month = divmod(positions[0] + months * position, 12)
        return times[0].replace(year=year, month=month + 1, day=anchors[anchor](year, month + 1))

    unit, length = ("year", 12) if months % 12 == 0 else ("quarter", 3) if months == 3 else ("month", 1)
    name = plural(months // length, unit) + ("" if anchor == " (first day)" else anchor)
    return Steps(name, [(place - positions[0]) // months for place in positions], at)


def weekday_steps(times: Sequence[datetime]) -> Steps | None:
    """Days without those of the week that never come: Monday to Friday, where a weekend lies between."""
    days = [time.toordinal() - 1 for time in times]  # day 0 is a Monday
    span, seen = days[-1] - days[0], {day % 7 for day in days}
    if median_step(days) != 1 or len({time.time() for time in times}) > 1:
        return None
    if seen <= set(range(5)) and days[0] // 7 < days[-1] // 7:
        seen = set(range(5))
    elif len(seen) not in (5, 6) or span < 14:
        return None
    working = sorted(seen)

    def at(position: int) -> datetime:
        week, number = divmod(position, len(working))
        return times[0] + DAY * (7 * week + working[number] - days[0])

    absent = " and ".join(calendar.day_abbr[day] for day in range(7) if day not in seen)
    name = "weekday" if absent == "Sat and Sun" else f"day without {absent}"
    return Steps(name, [day // 7 * len(working) + working.index(day % 7) for day in days], at)


def median_step(times: Sequence[Any]) -> Any:
    """The step in the middle, if all are sorted by length."""
    return median_low([after - before for before, after in pairwise(times)])


def fixed_steps(times: Sequence[Any]) -> Steps:
    """A fixed step, the median or the shortest, with 5% of tolerance for clocks and rounded numbers."""
    differences = [after - before for before, after in pairwise(times)]
    median, rows = median_step(times), len(times) - 1
    for step in (median, min(differences)):
        if step > step * 0:
            ratios = [float(difference / step) for difference in differences]
            counts = [round(ratio) for ratio in ratios]
            even = all(
                abs(ratio - count) <= min(0.05 * count, 0.25) for ratio, count in zip(ratios, counts, strict=True)
            )
            if even and (step == median or sum(counts) <= 2 * rows):
                mean = (times[-1] - times[0]) / sum(counts)
                return Steps(duration(step), [0, *accumulate(counts)], partial(position_time, times[0], mean))
    return Steps(duration(median), [*range(rows + 1)], partial(position_time, times[-1] - median * rows, median), False)


def position_time(start: Any, step: Any, position: int) -> Any:
    """The time at a position of a fixed step."""
    return start + step * position


def duration(step: Any) -> str:
    """A step in words."""
    if isinstance(step, Decimal):
        return f"{step:f}"
    for unit, length in (("week", 7 * DAY), ("day", DAY), ("hour", DAY / 24), ("minute", DAY / 1440)):
        if not step % length:
            return plural(step // length, unit)
    return plural(step.total_seconds(), "second")


def plural(count: float, unit: str) -> str:
    """`day`, `2 days`."""
    return unit if count == 1 else f"{count:g} {unit}s"


def later_times(steps: Steps | None, form: TimeFormat, count: int) -> list[str]:
    """The `count` times after the last row; +1, +2, ... where they are unknown, or past the last date there is."""
    unknown = [f"+{ahead}" for ahead in range(1, count + 1)]
    if steps is None:
        return unknown
    try:
        return [form.write(steps.at(steps.positions[-1] + ahead)) for ahead in range(1, count + 1)]
    except (OverflowError, ValueError):
        return unknown
