import csv
import logging
from datetime import date, timedelta

import numpy as np
import pytest
import torch
from conftest import ROOT, fails

from datamodules import TimeSeriesDataModule
from datamodules.common.csv_series import read_series
from datamodules.common.times import TimeError, find_steps, later_times, read_times
from datamodules.common.windows import window_size
from datamodules.mackey_glass import mackey_glass
from lit_models.cli import main as cli


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def ramp(tmp_path):
    """A file of 100 rows that count from 0: a value says which row it is."""
    return str(write(tmp_path / "ramp.csv", "x\n" + "\n".join(str(row) for row in range(100))))


def heun(length, start, step=0.002):
    """The Mackey-Glass equation by another method, with steps 50 times as short."""
    lag, a_unit = round(17 / step), round(1 / step)
    values = [start] * (lag + 1)

    def slope(x, old):
        return 0.2 * old / (1 + old**10) - 0.1 * x

    for _ in range(length * a_unit):
        x, old, new = values[-1], values[-1 - lag], values[-lag]
        first = slope(x, old)
        values.append(x + step / 2 * (first + slope(x + step * first, new)))
    return values[lag::a_unit][:length]


def test_mackey_glass_against_heun(monkeypatch):
    monkeypatch.setattr("datamodules.mackey_glass.WASHOUT", 0)
    found = mackey_glass(300, seed=3)
    expected = torch.tensor(heun(300, start=float(found[0])), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


def test_mackey_glass_is_seeded_and_chaotic():
    first, again, other = mackey_glass(2000), mackey_glass(2000), mackey_glass(2000, seed=1)
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.5
    assert 0.2 < first.min() < 0.5 < 1.2 < first.max() < 1.5
    assert first.mean() == pytest.approx(0.93, abs=0.02)


def test_windows_are_the_rows_in_order(ramp):
    data = TimeSeriesDataModule(ramp, context_length=5, horizon=3, batch_size=2)
    data.setup("fit")
    context, target = data.train_set.__getitems__([0, 10])
    assert context[:, :, 0].tolist() == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
    assert target[:, :, 0].tolist() == [[5, 6, 7], [15, 16, 17]]


@pytest.mark.parametrize("stride", [1, 4])
def test_targets_lie_in_their_part_and_contexts_before_them(ramp, stride):
    data = TimeSeriesDataModule(ramp, context_length=5, horizon=3, val_fraction=0.2, test_fraction=0.1, stride=stride)
    data.setup("fit")
    data.setup("test")
    seen = {}
    for part in ("train", "val", "test"):
        dataset = getattr(data, f"{part}_set")
        context, target = dataset.__getitems__(list(range(len(dataset))))
        assert torch.equal(target[:, 0], context[:, -1] + 1)
        first = target[:, 0, 0].tolist()
        assert first == list(range(int(first[0]), int(first[-1]) + 1, stride))
        seen[part] = (int(context.min()), int(first[0]), int(target.max()))
    last = (69, 89, 99) if stride == 1 else (67, 88, 96)
    assert seen == {"train": (0, 5, last[0]), "val": (65, 70, last[1]), "test": (85, 90, last[2])}


def test_a_part_of_one_horizon_has_a_window(ramp):
    data = TimeSeriesDataModule(ramp, context_length=40, horizon=10, val_fraction=0.1, test_fraction=0.12)
    data.setup("fit")
    data.setup("test")
    ((context, target),) = data.val_dataloader()
    assert (context[:, [0, -1], 0].tolist(), target[:, [0, -1], 0].tolist()) == ([[38, 77]], [[78, 87]])
    assert len(data.test_set) == 12 - 10 + 1


def test_order_of_training_and_validation(ramp):
    data = TimeSeriesDataModule(ramp, context_length=5, horizon=3, batch_size=100)
    data.setup("fit")
    loader = data.train_dataloader()
    first, second = (next(iter(loader))[0][:, 0, 0] for _ in range(2))  # without a Trainer, each is another epoch
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    assert next(iter(data.val_dataloader()))[0][:, 0, 0].tolist() == list(range(65, 78))


def test_scale_is_from_training_rows_alone(tmp_path):
    rows = [f"{row % 7}" for row in range(100)]
    scales = []
    for tail in (["3"] * 30, ["1e6"] * 30):
        file = write(tmp_path / "series.csv", "\n".join(["x", *rows[:70], *tail]))
        data = TimeSeriesDataModule(str(file), context_length=5, horizon=3)
        data.setup("fit")
        scales.append((data.mean, data.std))
    assert scales[0] == scales[1]
    values = torch.arange(70).remainder(7).double()
    assert scales[0][0] == pytest.approx([values.mean().item()])
    assert scales[0][1] == pytest.approx([values.std(correction=0).item()])


def test_season_is_of_the_training_rows_and_said(tmp_path, said):
    rows = [f"{(row % 5) ** 2 + row % 3 / 10:.1f}" for row in range(100)]
    for tail in (rows[70:], [f"{1000 * (row % 4)}" for row in range(30)]):
        file = str(write(tmp_path / "series.csv", "\n".join(["x", *rows[:70], *tail])))
        data = TimeSeriesDataModule(file)
        data.setup("fit")
        assert (data.season, data.hparams.season) == (5, 5)
        assert said()[-1].endswith("context_length 24, horizon 5; found a season of 5 rows")
    data.setup("test")
    assert said()[-1].endswith("horizon 5; season of 5 rows")
    for season, end in ((4, "horizon 2; season of 4 rows"), (1, "horizon 2")):
        data = TimeSeriesDataModule(file, context_length=6, horizon=2, season=season)
        data.setup("fit")
        assert data.season == season
        assert said()[-1].endswith(end)
    data = TimeSeriesDataModule(file, context_length=5, horizon=2)
    data.setup("fit")
    assert (data.season, data.hparams.season) == (1, 1)
    assert said()[-1].endswith("found a season of 5 rows, which the context does not hold: none is used")


def test_season_of_several_series_is_that_of_most(tmp_path):
    seasons = {"A": 4, "B": 6, "C": 6}
    rows = [f"{row},{name},{row % season == 0:d}" for name, season in seasons.items() for row in range(100)]
    file = write(tmp_path / "a.csv", "\n".join(["t,shop,x", *rows]))
    data = TimeSeriesDataModule(str(file), group_column="shop")
    data.setup("predict")
    assert data.season == 6


def test_prediction_continues_the_series(ramp):
    data = TimeSeriesDataModule(ramp, context_length=5, horizon=3)
    data.setup("predict")
    (context, target), *rest = data.predict_dataloader()
    assert rest == []
    assert context[0, :, 0].tolist() == [80, 81, 82, 83, 84]
    assert target[0, :15, 0].tolist() == list(range(85, 100))
    assert target[0, 15:, 0].isnan().tolist() == [True, True, True]
    assert data.times[85:] == [str(row) for row in range(87, 105)]  # with the header, from 1


@pytest.mark.parametrize(
    ("text", "columns", "names", "values"),
    [
        ("a,b\n1,2\n3,4\n", None, ["a", "b"], [[1, 2], [3, 4]]),
        ("a;b\n1;2\n3;4", ["b"], ["b"], [[2], [4]]),
        ("a\tb\r\n1\t2\r\n3\t4\r\n\r\n", ["b", "a"], ["b", "a"], [[2, 1], [4, 3]]),
        ("1,2\n3,4\n", None, ["1", "2"], [[1, 2], [3, 4]]),
        ("1,2\n3,4\n", ["2"], ["2"], [[2], [4]]),
        ("\ufeffa, b\n-1e3,.5\n+3,4\n", None, ["a", "b"], [[-1000, 0.5], [3, 4]]),
        ('"a, of b",c\n1,2\n3,4\n', ["a, of b"], ["a, of b"], [[1], [3]]),
        (",x\n0,5\n1,6\n", ["x"], ["x"], [[5], [6]]),
    ],
    ids=["commas", "semicolons", "tabs", "no header", "column by number", "spaces and signs", "quotes", "index"],
)
def test_files_of_any_layout(text, columns, names, values, tmp_path):
    (one,), column_names = read_series(write(tmp_path / "a.csv", text), columns)
    assert (one.values.tolist(), column_names) == (values, names)


def read(tmp_path, text, **options):
    """The only series of a file, and its columns."""
    (one,), names = read_series(write(tmp_path / "a.csv", text), **options)
    return one, names


def test_numbers_may_be_a_header(tmp_path):
    years = "1990,1991\n1,2\n3,4\n"
    assert read(tmp_path, years, header=True)[0].values.tolist() == [[1, 2], [3, 4]]
    assert read(tmp_path, years, header=False)[0].values.tolist() == [[1990, 1991], [1, 2], [3, 4]]


def test_a_header_with_numbers_is_one_and_names_come_before_places(tmp_path):
    text = "date,{},1,OT\n2016-07-01 00:00:00,5.8,2.0,30.5\n2016-07-01 01:00:00,5.6,2.1,27.7\n"
    for second, column, name, values in (
        ("0", "OT", "OT", [30.5, 27.7]),
        ("0", "0", "0", [5.8, 5.6]),
        ("0", "2", "0", [5.8, 5.6]),
        ("0", "1", "1", [2.0, 2.1]),
        ("2", "2", "2", [5.8, 5.6]),
    ):
        one, names = read(tmp_path, text.format(second), columns=[column])
        assert (names, one.values[:, 0].tolist()) == ([name], values)
        assert one.later_times(1) == ["2016-07-01 02:00:00"]
    assert read(tmp_path, "day,1\n2,3\n4,5\n")[1] == ["1"]
    assert read(tmp_path, "A,1\nA,2\n", columns=["2"])[0].values.tolist() == [[1], [2]]  # no header


@pytest.mark.parametrize(
    ("text", "options", "values"),
    [
        ('a\n"26,046.5"\n"1,026,046"\n12\n', {"thousands": ","}, [26046.5, 1026046, 12]),
        ('a;b\n"3.807,12";1\n-2,5;1\n', {"columns": ["a"], "thousands": ".", "decimal": ","}, [3807.12, -2.5]),
        ("a;b\n1 234,5;1\n2\u202f345;1\n", {"columns": ["a"], "thousands": "space", "decimal": ","}, [1234.5, 2345]),
        ("a\n1,5\n2,5\n", {"decimal": ","}, [1.5, 2.5]),
        ("a;b\n3.807;x\n1.250;x\n", {"columns": ["a"], "decimal": "."}, [3.807, 1.25]),
        ("  a   b\n 1.5  2 \n  2.5 3\n", {"columns": ["a"], "separator": "space"}, [1.5, 2.5]),
        ("a:b\n1.5:2\n2.5:3\n", {"columns": ["a"], "separator": ":"}, [1.5, 2.5]),
        ("d;a, in EUR\n1;2,5\n2;3,5\n", {"columns": ["a, in EUR"], "decimal": ","}, [2.5, 3.5]),
        ("a\n1\n-999\n?\n4\n", {"missing": ["?", "-999"], "fill": "interpolate"}, [1, 2, 3, 4]),
        ("a\n1\n-\n\nNaN\n4\n", {"missing": ["-"], "fill": "previous"}, None),
        ("a,b\n1,x\n-,x\n,x\nNaN,x\n4,x\n", {"columns": ["a"], "missing": ["-"], "fill": "previous"}, [1, 1, 1, 1, 4]),
    ],
)
def test_numbers_are_read_as_the_options_say(text, options, values, tmp_path):
    if values is None:
        with pytest.raises(ValueError, match="row 4: 0 cell"):
            read(tmp_path, text, **options)
    else:
        assert read(tmp_path, text, **options)[0].values[:, 0].tolist() == pytest.approx(values)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("# from a station\n\na,b\n1,2\n3,4\n", ["a", "b"]),
        (",a,b\n0,1,2\n1,3,4\n", ["a", "b"]),
        (",0,1\n0,1,2\n1,3,4\n", ["0", "1"]),
        ("Unnamed: 0,a,b\n1,1,2\n2,3,4\n", ["a", "b"]),
        ("a,b,\n1,2,\n3,4,\n", ["a", "b"]),
        ("a;b\n1;2;\n3;4;\n;;\n", ["a", "b"]),
        ("a|b\n1|2\n3|4\n", ["a", "b"]),
    ],
    ids=["comment", "index", "index and numbers", "pandas index", "last separator", "not in the header", "bars"],
)
def test_what_is_no_series_is_left_out(text, names, tmp_path):
    one, found = read(tmp_path, text)
    assert (found, one.values.tolist()) == (names, [[1, 2], [3, 4]])


def test_utf_16_is_read_and_what_is_no_text_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes("a,b\n1,2\n3,4\n".encode("utf-16"))
    assert read_series(tmp_path / "a.csv")[0][0].values.tolist() == [[1, 2], [3, 4]]
    for content, message in (
        (b"PK\x03\x04", "is an Excel workbook or a zip archive: save its table as a CSV file"),
        (b"\x1f\x8b\x08", "is compressed by gzip"),
        ("a\n1\n".encode("utf-16-le"), "not text in UTF-8"),
        (bytes(range(128, 256)), "not text in UTF-8"),
    ):
        (tmp_path / "a.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_series(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n,4\n", "row 3, column 'a': the value is missing: .*data.fill"),
        ("a,b\n1,2\n3\n", r"row 3: 1 cell\(s\), but 2 in the first row"),
        ("a\n1\n\n3\n", r"row 3: 0 cell\(s\)"),
        ("Source: me\n\na,b\n1,2\n", r"row 2: 0 cell\(s\) \(remove empty lines\), .* a line above the header"),
        ("day,sales\n0,100,00\n", r"row 2: 3 cell\(s\), but 2 in the first row; .* or a ','"),
        ('a,b\n1,2\n3,"4\n5,6\n', "not a CSV file"),
        ('a,b\n1,"2\n3,4"\n5,6\n', "row 2: a line break in a cell"),
        ("a;b\n1;2,5\n", "row 2, column 'b': '2,5' is not a number.*; set data.decimal to ','"),
        ('a,b\n1,"26,046.0"\n', r"'26,046.0' is .*; set data.thousands to ',' and data.decimal to '\.'"),
        ('a;b\n1;"3.807,12"\n', r"'3\.807,12' is .*; set data.thousands to '\.' and data.decimal to ','"),
        ('a,b\n1,"1,234"\n', "set data.thousands to ',' if it separates thousands, or data.decimal"),
        ("a;b\n1;3.807\n1;1.250\n", r"row 2, column 'b': '3\.807' may be a fraction or thousands.* data.decimal"),
        ("a b\n1 2\n", "'1 2' is not a number.* data.separator"),
        ("a,b\n1,2\n1,?\n", r"row 3, column 'b': '\?' is .* set data.missing to '\?'"),
        ("a,b\n1,12 kWh\n", "'12 kWh' is not a number.* without units"),
        ("a,b\n1,12%\n", "'12%' is not a number.* without units"),
        ("a,b\n1,true\n", "'true' is not a number.* 1 for true"),
        ("a,b\n1,1_000\n", "'1_000' is not a number"),
        ("a,b\n1,1e39\n", "row 2, column 'b': '1e39' is not a number, or not a finite one"),
        ("a,b\n1,n.v.\n", "choose the columns of numbers with data.columns, or say with data.missing"),
        ("a,a\n1,2\n", "the columns to use are a, a; name each once"),
        ("a,b\n1,2\n3,NaN\n", "row 3, column 'b': the value is missing"),
        ("a,b\n1,2\n3,inf\n", "row 3, column 'b': 'inf' is not a number"),
        ("a,b\n1,2\n3,3.1.4\n", "row 3, column 'b': '3.1.4' is not a number"),
        ("1,2\n3,x\n", "row 2, column '2': 'x' is not a number"),
        ("A,1\nA,2\n", "row 1, column '1': 'A' is not a number.*; set data.header to true"),
        ("a,b\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_gaps_and_words_are_named_with_row_and_column(text, message, tmp_path):
    if text.startswith("a,a"):
        with pytest.raises(ValueError, match=r"several columns 'a': choose one by its number in data.columns, 1 or 2"):
            read(tmp_path, text, columns=["a"])
        return
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_the_way_out_of_points_is_one(tmp_path):
    rows = [(987, "987"), (1234, "1.234"), (1234567, "1.234.567")]
    for count in (2, 3):
        text = "day;v\n" + "\n".join(f"{day};{number}" for day, (_, number) in enumerate(rows[:count]))
        path = write(tmp_path / "points.csv", text)
        with pytest.raises(ValueError, match=r"'1\.234\S* .*set .*data\.thousands to '\.'"):
            read_series(path)
        (one,), _ = read_series(path, thousands=".")
        assert one.values[:, 0].tolist() == [value for value, _ in rows[:count]]
    TimeSeriesDataModule(str(path), thousands=".")
    fractions = write(tmp_path / "fractions.csv", "day;v\n1;0.125\n2;0.250\n3;1.125")
    assert read_series(fractions)[0][0].values[:, 0].tolist() == [0.125, 0.25, 1.125]
    quoted = write(tmp_path / "quoted.csv", '"day","v"\n"1","3.807,12"\n"2","9,5"')
    assert read_series(quoted, thousands=".")[0][0].values[:, 0].tolist() == [3807.12, 9.5]


def test_a_text_for_no_value_that_looks_like_a_number(tmp_path, recwarn):
    text = "DATE,v\n" + "\n".join(f"{1950 + row}-01-01,{'.' if row == 1 else row}" for row in range(9))
    path = write(tmp_path / "fred.csv", text)
    with pytest.raises(ValueError, match=r"row 3, column 'v': .* set data\.missing to '\.'"):
        read_series(path)
    (one,), _ = read_series(path, missing=["."], fill="interpolate")
    assert one.values[:, 0].tolist() == list(range(9))
    marked = write(tmp_path / "marked.csv", "v\n" + "\n".join(["3.5", "-999.0", "4", "-999.0"]))
    assert not recwarn
    with pytest.warns(UserWarning, match=r"column 'v' is -999\.0 in 2 row\(s\): .*data\.missing to '-999\.0'"):
        read_series(marked)


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("sep=;\nday;v\n2020-01-01;1\n2020-01-02;2", ["v"], 2),
        ("day,v\r\r\n2020-01-01,1\r\r\n2020-01-02,2\r\r\n", ["v"], 2),
        ("0,1,2\n0.5,1.5,2.5\n0.6,1.6,2.6", ["0", "1", "2"], 2),
        ("0,1,2\n1,2,3\n4,5,6", ["1", "2", "3"], 3),
    ],
)
def test_what_other_programs_write_around_the_rows(text, names, rows, tmp_path):
    path = tmp_path / "file.csv"
    path.write_bytes(text.encode())
    (one,), found = read_series(path)
    assert (found, len(one.values)) == (names, rows)


def test_a_column_that_counts_is_warned_of_unless_named(tmp_path, recwarn):
    text = "unix,v\n" + "\n".join(f"{1499040000 + 60 * row},{row % 3}" for row in range(9))
    path = write(tmp_path / "unix.csv", text)
    read_series(path, ["unix", "v"])
    read_series(path, time_column="unix")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"unix\.csv: unix seem to count .*, but are forecast: .*time_column"):
        read_series(path)
    text = "Year,Month,v\n" + "\n".join(f"{2000 + row // 12},{row % 12 + 1},{row % 5}" for row in range(30))
    with pytest.warns(UserWarning, match=r"Year, Month seem to count .* all parts of a date in one column"):
        read_series(write(tmp_path / "parts.csv", text))


def test_gaps_at_the_ends_are_not_filled(tmp_path):
    for values, fill, row in (("?\n2\n3", "previous", 2), ("?\n2\n3", "interpolate", 2), ("1\n2\n?", "interpolate", 4)):
        with pytest.raises(ValueError, match=rf"row {row}, column 'a': the value is missing, and there is none"):
            read(tmp_path, f"a\n{values}\n", missing=["?"], fill=fill)
    assert read(tmp_path, "a\n1\n2\n?\n", missing=["?"], fill="previous")[0].values.tolist() == [[1], [2], [2]]


def test_missing_files_and_columns(tmp_path):
    file = write(tmp_path / "a.csv", "day,temperature\n1,2\n")
    with pytest.raises(ValueError, match="no column 'temp'; its columns are day, temperature"):
        read_series(file, ["temp"])
    with pytest.raises(ValueError, match="no column 'time'"):
        read_series(file, time_column="time")
    with pytest.raises(ValueError, match="are none"):
        read_series(file, [])
    with pytest.raises(ValueError, match=r"none of them in data.time_column"):
        read_series(file, ["day"], time_column="day")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_series(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("times", "step", "after"),
    [
        (["2017-03-31", "2017-04-30", "2017-05-31"], "month (last day)", ["2017-06-30", "2017-07-31", "2017-08-31"]),
        (["2017-01-30", "2017-02-28", "2017-03-30"], "month (day 30)", ["2017-04-30", "2017-05-30"]),
        (["2017-01-15", "2017-02-15", "2017-04-15"], "month (day 15)", ["2017-05-15", "2017-06-15"]),
        (["2017-03-31", "2017-04-28", "2017-05-31"], "month (last weekday)", ["2017-06-30", "2017-07-31"]),
        (["2016-07-01", "2016-08-01", "2016-09-01"], "month", ["2016-10-01", "2016-11-01"]),
        (["2017-09-30", "2017-12-31"], "quarter (last day)", ["2018-03-31", "2018-06-30"]),
        (["2017-07-01", "2017-10-01"], "quarter", ["2018-01-01", "2018-04-01"]),
        (["2015-12-31", "2016-12-31"], "year (last day)", ["2017-12-31", "2018-12-31"]),
        (["2017-01-01", "2017-07-01"], "6 months", ["2018-01-01", "2018-07-01"]),
        (["2024-01-01", "2024-01-08"], "week", ["2024-01-15", "2024-01-22"]),
        (
            ["2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09"],
            "weekday",
            ["2024-01-10", "2024-01-11", "2024-01-12", "2024-01-15"],
        ),
        (["2024-02-27", "2024-02-28"], "day", ["2024-02-29", "2024-03-01"]),
        (["2024-01-01T22:00", "2024-01-01T23:30"], "90 minutes", ["2024-01-02T01:00", "2024-01-02T02:30"]),
        (["2024-03-31 01:00+01:00", "2024-03-31 03:00+02:00"], "hour", ["2024-03-31 04:00+02:00"]),
        (["2024-03-30T00:00+0100", "2024-03-31T00:00+0100", "2024-04-01T00:00+0200"], "day", ["2024-04-02T00:00+0200"]),
        (["2024-01-01T00:00:00Z", "2024-01-01T00:15:00Z"], "15 minutes", ["2024-01-01T00:30:00Z"]),
        (["2024-01-01 00:00:00.500", "2024-01-01 00:00:01.500"], "second", ["2024-01-01 00:00:02.500"]),
        (["20241230", "20241231"], "day", ["20250101"]),
        (["202411", "202412"], "month", ["202501"]),
        (["2017-11", "2017-12"], "month", ["2018-01"]),
        (["2017.11", "2017.12"], "month", ["2018.01"]),
        (["2017/03/31", "2017/04/30"], "month (last day)", ["2017/05/31"]),
        (["31.03.2017 14:00", "31.03.2017 15:00"], "hour", ["31.03.2017 16:00"]),
        (["01/19/2018", "01/20/2018"], "day", ["01/21/2018"]),
        (["9/1/2018 5:00", "9/13/2018 5:00"], "12 days", ["9/25/2018 5:00"]),
        (["1/13/2018 11:30 PM", "1/14/2018 12:30 AM"], "hour", ["1/14/2018 1:30 AM"]),
        (["Jan 2018", "Feb 2018"], "month", ["Mar 2018"]),
        (["MAY-2018", "JUN-2018"], "month", ["JUL-2018"]),
        (["May 2018", "May 2019"], "year", ["May 2020"]),
        (["1 March 2024", "2 March 2024"], "day", ["3 March 2024"]),
        (["2017Q3", "2017Q4"], "quarter", ["2018Q1"]),
        (["Q3 2017", "Q4 2017"], "quarter", ["Q1 2018"]),
        (["2020-W52", "2020-W53"], "week", ["2021-W01"]),
        (["1700", "1701"], "1", ["1702"]),
        (["1704067200", "1704070800"], "3600", ["1704074400"]),
        (["1749.042", "1749.123", "1749.204", "1749.288"], "0.081", ["1749.370"]),
        (["1", "3"], "2", ["5", "7"]),
        (["0.1", "0.2"], "0.1", ["0.3", "0.4"]),
        (["-0.5", "0.0"], "0.5", ["0.5", "1.0"]),
        (["9999-12-30", "9999-12-31"], "day", ["+1", "+2"]),
    ],
)
def test_times_go_on_with_the_calendar_in_their_own_format(times, step, after):
    values, form = read_times(times)
    steps = find_steps(values)
    assert (steps.name, steps.regular) == (step, True)
    assert later_times(steps, form, len(after)) == after


@pytest.mark.parametrize(
    ("free", "step"), [({5, 6}, "weekday"), ({6}, "day without Sun"), ({4, 5}, "day without Fri and Sat")]
)
def test_days_of_rest_are_left_out(free, step):
    days = [date(2024, 1, 1) + timedelta(day) for day in range(40)]
    working = [str(day) for day in days if day.weekday() not in free]
    values, form = read_times(working[:-5])
    steps = find_steps(values)
    assert (steps.name, steps.missing) == (step, 0)
    assert later_times(steps, form, 5) == working[-5:]
    assert find_steps(values[:9] + values[10:]).missing == 1


@pytest.mark.parametrize(
    ("times", "row", "message"),
    [
        (["06/04/2024", "07/04/2024"], 0, "several ways: set data.time_format to '%d/%m/%Y' or '%m/%d/%Y'"),
        (["1/2/2018 5:00", "1/3/2018 5:00"], 0, "'%d/%m/%Y %H:%M' or '%m/%d/%Y %H:%M'"),
        (["25/12/18", "26/12/18"], 0, "'%d/%m/%y' or '%y/%m/%d'"),
        (["Jan-49", "Feb-49"], 0, "year of two digits: set data.time_format to '%b-%y'"),
        (["2024-01-01", "2024-01-02", "2024/01/03"], 2, "'2024/01/03' is not written as the times before it"),
        (["13/01/2018", "01/14/2018"], 1, "'01/14/2018' is not written as"),
        (["2024-01-01", "2024-01-02 12:00"], 1, "is not written as"),
        (["2024-01-01T00:00", "2024-01-02T00:00+00:00"], 1, "is not written as"),
        (["2024-02-28", "2024-02-30"], 1, "is not written as"),
        (["2024-01-01", ""], 1, "the time is missing"),
        (["1", "x"], 1, r"'x' is not written as .*\(a number\)"),
        (["1", "nan"], 1, "is not written as"),
        (["spring", "summer"], 0, "not understood as a time: .* data.time_format"),
        (["14:00", "15:00"], 0, "not understood"),
    ],
)
def test_times_are_understood_or_refused(times, row, message):
    with pytest.raises(TimeError, match=message) as error:
        read_times(times)
    assert error.value.row == row


def test_a_second_header_is_one(tmp_path):
    path = write(tmp_path / "units.csv", "time,load\nUTC,MW\n" + "\n".join(f"2020-01-0{n},{n}" for n in range(1, 9)))
    with pytest.raises(ValueError, match=r"row 2, column 'time': 'UTC' is no time, .*: leave a second header or units"):
        read_series(path)


def test_a_given_format_decides(tmp_path):
    text = "Date,Price\n06/04/2024,1\n07/04/2024,2\n08/04/2024,3\n"
    for form, after in (("%d/%m/%Y", "09/04/2024"), ("%m/%d/%Y", "09/04/2024")):
        one, _ = read(tmp_path, text, time_format=form)
        assert one.later_times(1) == [after]
    assert one.steps.name == "month (day 4)"
    assert read(tmp_path, text, time_format="%d/%m/%Y")[0].steps.name == "day"
    with pytest.raises(ValueError, match=r"row 2, column 'Date': '06/04/2024' does not fit data.time_format '%Y'"):
        read(tmp_path, text, time_format="%Y", time_column="Date")
    with pytest.raises(ValueError, match=r"row 2, column 'Date': .* set data.time_format to '%d/%m/%Y' or '%m/%d/%Y'"):
        read(tmp_path, text, columns=["Price"])


@pytest.fixture
def said(caplog):
    """What is said while a series is read."""
    caplog.set_level(logging.INFO, "lit_models")
    return lambda: [record.getMessage() for record in caplog.records]


def test_newest_first_is_sorted_and_said(tmp_path, said):
    one, names = read(tmp_path, "Date,Price\n01/19/2018,3\n01/18/2018,2\n01/17/2018,1\n")
    assert (names, one.values[:, 0].tolist(), one.times[0]) == (["Price"], [1, 2, 3], "01/17/2018")
    assert one.later_times(1) == ["01/20/2018"]
    (line,) = said()
    assert line.endswith("3 rows of Price, 01/17/2018 to 01/19/2018, step day; sorted, the newest came first")
    one, _ = read(tmp_path, "t,x\n2,2\n3,3\n1,1\n", time_column="t")
    assert one.values[:, 0].tolist() == [1, 2, 3]
    assert "sorted, the times went to and fro" in said()[-1]


def test_a_column_of_times_is_found(tmp_path, said):
    for text, column in (
        ("x,when\n5,2024-01-01\n6,2024-01-02\n", "when"),
        ("2024-01-01,5\n2024-01-02,6\n", "1"),
        ("year,x\n1700,5\n1701,6\n", "year"),
        ("YEAR,x\n1701,6\n1700,5\n", "YEAR"),
        ("shipped,Date,x\n2023-01-01,2024-01-01,5\n2023-01-01,2024-01-02,6\n", "Date"),
    ):
        header = text.splitlines()[0].split(",")
        columns = ["2"] if column == "1" else ["x"]
        one, _ = read(tmp_path, text, columns=columns)
        place = 0 if column == "1" else header.index(column)
        cells = [line.split(",")[place] for line in text.splitlines()[column != "1" :]]
        assert one.times == sorted(cells)
        assert one.values[:, 0].tolist() == [5, 6]
    one, names = read(tmp_path, "month,x\n1,5\n2,6\n1,7\n")  # no time: it comes twice
    assert (names, one.times) == (["month", "x"], ["2", "3", "4"])
    with pytest.warns(UserWarning, match="'Date': 'Mon' is not understood as a time.* rows are taken in their order"):
        assert read(tmp_path, "Date,x\nMon,5\nTue,6\n", columns=["x"])[0].times == ["2", "3"]


STORES = "date,store,sales\n" + "\n".join(
    f"2024-01-{day:02},{s},{day + 100 * (s == 'B')}" for s in "AB" for day in (1, 2, 3)
)


def test_series_below_one_another_are_refused_or_told_apart(tmp_path, said):
    with pytest.raises(ValueError, match=r"rows 2 and 5: both are of the time '2024-01-01'.* set data.group_column"):
        read(tmp_path, STORES, columns=["sales"])
    with pytest.raises(ValueError, match=r"rows 2 and 5: .* if 'store' tells several series apart"):
        read(tmp_path, STORES.replace("A", "1").replace("B", "2"))
    with pytest.raises(ValueError, match="if 'store' tells several series apart"):  # times that only count
        read(tmp_path, STORES.replace("2024-01-0", "").replace("date", "day"), columns=["sales"])
    with pytest.raises(ValueError, match=r"rows 2 and 3: .* write date and 'time' into one column"):
        read(tmp_path, "date,time,x\n2024-01-01,10:00,1\n2024-01-01,11:00,2\n", columns=["x"])
    with pytest.warns(UserWarning, match=r"read as one series: if column 'store' tells 2 apart \(A, B\)"):
        read(tmp_path, "store,x\nA,1\nA,2\nB,3\nB,4\n", columns=["x"])
    lines = STORES.splitlines()
    (a, b), names = read_series(write(tmp_path / "a.csv", "\n".join([lines[0], *lines[:0:-1]])), group_column="store")
    assert (b.group, a.group, names) == ("A", "B", ["sales"])
    assert (a.values[:, 0].tolist(), b.values[:, 0].tolist()) == ([101, 102, 103], [1, 2, 3])
    assert b.later_times(1) == ["2024-01-04"]
    assert "6 rows of sales in 2 series (B, A), 2024-01-01 to 2024-01-03, step day" in said()[-1]
    one, _ = read(tmp_path, STORES, group_column="store", group=["B"])
    assert one.values[:, 0].tolist() == [101, 102, 103]
    with pytest.raises(ValueError, match="no group 'C' in column 'store', but A, B"):
        read(tmp_path, STORES, group_column="store", group=["C"])


def test_missing_times_are_warned_of_or_filled_in(tmp_path, said):
    text = "week,x\n2024-01-01,1\n2024-01-08,2\n2024-01-29,5\n2024-02-05,6\n"
    with pytest.warns(
        UserWarning, match=r"2 time\(s\) are missing in 1 gap\(s\), the first after 2024-01-08: .*data.fill"
    ):
        assert read(tmp_path, text)[0].values[:, 0].tolist() == [1, 2, 5, 6]
    one, _ = read(tmp_path, text, fill="interpolate")
    assert one.values[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert one.times[1:5] == ["2024-01-08", "2024-01-15", "2024-01-22", "2024-01-29"]
    assert "6 rows of x, 2024-01-01 to 2024-02-05, step week; 2 row(s) added" in said()[-1]
    assert read(tmp_path, text, fill="previous")[0].values[:, 0].tolist() == [1, 2, 2, 2, 5, 6]
    with pytest.warns(UserWarning, match="not evenly spaced"):
        read(tmp_path, "t,x\n1,2\n2,3\n5,4\n9,3\n11,4\n")
    with pytest.raises(ValueError, match=r"data.fill would add"):
        read(tmp_path, "t,x\n1,2\n2,3\n3,3\n4,3\n100,4\n", fill="previous")


def test_windows_of_several_series_do_not_cross(tmp_path, said):
    rows = [
        f"{day},{name},{start + day}" for name, start, days in (("A", 0, 60), ("B", 1000, 40)) for day in range(days)
    ]
    file = write(tmp_path / "a.csv", "\n".join(["day,store,x", *rows]))
    data = TimeSeriesDataModule(
        str(file), group_column="store", context_length=3, horizon=2, val_fraction=0.2, test_fraction=0.2
    )
    data.setup("fit")
    data.setup("test")
    assert data.column_names == ["x"]  # day only rises in each
    bounds = {"train": [(0, 35), (1000, 1023)], "val": [(33, 47), (1021, 1031)], "test": [(45, 59), (1029, 1039)]}
    for part, expected in bounds.items():
        dataset = getattr(data, f"{part}_set")
        windows = torch.cat(dataset.__getitems__(list(range(len(dataset)))), dim=1)[:, :, 0]
        assert (windows.diff(dim=1) == 1).all()
        assert [
            (int(w.min()), int(w.max())) for w in (windows[windows[:, 0] < 500], windows[windows[:, 0] > 500])
        ] == expected
    trained = np.array([*range(36), *range(1000, 1024)])
    assert data.mean == pytest.approx([trained.mean()])
    assert data.std == pytest.approx([trained.std()])
    assert "train 60 rows, 52 windows; val 20 rows, 18 windows; test 20 rows, 18 windows" in said()[1]
    for size, message in (
        ((6, 9), "the val part of series 'B' has 8 rows, and one window takes 9 of them"),
        ((25, 8), "the part before the val rows of series 'B' has 24 rows, and one window takes 25 of them"),
    ):
        data = TimeSeriesDataModule(str(file), group_column="store", context_length=size[0], horizon=size[1])
        data.hparams.update(val_fraction=0.2, test_fraction=0.2)
        with pytest.raises(ValueError, match=message):
            data.setup("validate")


def test_forecasts_of_several_series_name_each(tmp_path):
    rows = [f"2024-01-{day:02},{name},{day % 5}" for name, days in (("A", 31), ("B", 20)) for day in range(1, days + 1)]
    file = write(tmp_path / "a.csv", "\n".join(["day,store,x", *rows]))
    logs = f"--trainer.default_root_dir={tmp_path / 'logs'}"
    flags = [f"--data.path={file}", "--data.group_column=store", "--data.horizon=2", "--trainer.max_epochs=1", logs]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert (
            cli.main(
                [
                    "fit",
                    f"--config={ROOT / 'configs/rnn_csv.yaml'}",
                    "--data.val_fraction=0.2",
                    *flags,
                    "--data.context_length=1",
                ]
            )
            == 0
        )
        last = next((tmp_path / "logs").rglob("last.ckpt"))
        assert cli.main(["predict", f"--ckpt_path={last}", f"--output={tmp_path / 'f.csv'}"]) == 0
    with (tmp_path / "f.csv").open() as opened:
        found = list(csv.DictReader(opened))
    assert list(found[0]) == ["store", "time", "x", "x_forecast"]
    assert [(row["store"], row["time"]) for row in found] == [
        *(("A", f"2024-01-{day}") for day in range(27, 32)),
        *(("A", f"2024-02-0{day}") for day in (1, 2)),
        *(("B", f"2024-01-{day}") for day in (18, 19, 20, 21, 22)),
    ]
    assert [row["x"] for row in found[:7]] == ["2", "3", "4", "0", "1", "", ""]


@pytest.mark.parametrize(
    ("train", "evaluated", "given", "season", "size"),
    [
        (10_000, 2000, (None, None), 1, (24, 20)),
        (10_000, 2000, (None, None), 12, (26, 12)),
        (10_000, 2000, (None, None), 52, (106, 52)),
        (160, 30, (None, None), 52, (80, 15)),
        (100, 40, (None, None), 1, (24, 20)),
        (100, 20, (None, None), 1, (24, 10)),
        (100, 20, (None, None), 20, (42, 20)),
        (70, 15, (None, None), 1, (24, 7)),
        (22, 22, (None, None), 1, (11, 5)),
        (22, 4, (12, None), 1, (12, 2)),
        (22, 6, (None, 6), 1, (11, 6)),
        (22, 20, (None, 15), 1, (7, 15)),
        (22, 4, (30, 5), 1, (30, 5)),
        (2, 1, (None, None), 1, (1, 1)),
    ],
)
def test_windows_fit_the_length_of_the_parts(train, evaluated, given, season, size):
    assert window_size(train, evaluated, *given, season) == size


SERIES = ROOT / "datamodules" / "files"


def test_a_series_of_the_package_is_named_and_ones_own_file_comes_first(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    TimeSeriesDataModule("nile.csv").setup("fit")
    assert said()[-2].startswith(f"{SERIES / 'nile.csv'}: 100 rows of volume")
    write(tmp_path / "nile.csv", "\n".join(["x", *(str(row % 7) for row in range(80))]))
    TimeSeriesDataModule("nile.csv").setup("fit")
    assert said()[-2].startswith("nile.csv: 80 rows of x")
    with pytest.raises(FileNotFoundError, match=r"no file datamodules/nile.csv"):
        TimeSeriesDataModule("datamodules/nile.csv").setup("fit")


@pytest.mark.parametrize(
    ("name", "columns", "time", "step", "later", "season"),
    [
        ("air_passengers", "Passengers", "Month", "month", "1961-01-01", 12),
        ("sunspots", "SUNACTIVITY", "YEAR", "1", "2009", 11),
        ("nile", "volume", "year", "1", "1971", 1),
        ("co2_weekly", "co2", "week", "week", "2002-01-05", 52),
    ],
)
def test_published_series_need_no_further_options(name, columns, time, step, later, season):
    path, fill = str(SERIES / f"{name}.csv"), None
    if name == "co2_weekly":
        with pytest.raises(ValueError, match=r"row 8, column 'co2': the value is missing: .*data.fill"):
            TimeSeriesDataModule(path).setup("fit")
        fill = "interpolate"
    for options in ({}, {"columns": columns, "time_column": time}):
        data = TimeSeriesDataModule(path, fill=fill, **options)
        data.setup("fit")
        assert len(data.train_set) > len(data.val_set) >= 3
        data.setup("predict")
        assert (data.column_names, data.step, data.season) == ([columns], step, season)
        assert data.times[-data.hparams.horizon] == later


def test_options_of_a_file_from_the_command_line(tmp_path, capsys):
    rows = [f"{day:02}.03.2024;{'?' if day == 9 else f'1.{day:03},5'}" for day in range(1, 32)]
    file = write(tmp_path / "a.csv", "\n".join(["Tag;Wert", *rows]))
    fit = ["fit", f"--config={ROOT / 'configs/rnn_csv.yaml'}", f"--data.path={file}"]
    fit += ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.max_epochs=1"]
    assert "set data.thousands to '.' and data.decimal to ','" in fails(capsys, *fit)
    fit += ["--data.decimal", ",", "--data.thousands", ".", "--data.separator", ";"]
    assert "row 10, column 'Wert': '?' is not a number, or not a finite one; if it stands for" in fails(capsys, *fit)
    assert "the value is missing: leave the row out, or set data.fill" in fails(capsys, *fit, "--data.missing", "?")
    assert cli.main([*fit, "--data.missing", "?", "--data.fill", "previous"]) == 0


def test_short_or_constant_series_are_refused(ramp, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"train part .* 70 rows, .* takes 71 .*: make data.context_length \(61\) or",
    ):
        TimeSeriesDataModule(ramp, context_length=61, horizon=10).setup("fit")
    with pytest.raises(ValueError, match=r"val part .* 15 rows, and one window takes 16 .*: make data.horizon \(16"):
        TimeSeriesDataModule(ramp, context_length=20, horizon=16).setup("fit")
    with pytest.raises(ValueError, match="test part"):
        TimeSeriesDataModule(ramp, context_length=20, horizon=16, val_fraction=0).setup("test")
    with pytest.raises(ValueError, match=r"no rows to test on: data\.test_fraction is 0"):
        TimeSeriesDataModule(ramp, context_length=5, horizon=3, test_fraction=0).setup("test")
    with pytest.raises(ValueError, match="has 85 rows, and one window takes 90"):
        TimeSeriesDataModule(ramp, context_length=90).setup("predict")
    flat = write(tmp_path / "flat.csv", "x,y\n" + "\n".join(f"{row},0.1" for row in range(100)))
    with pytest.raises(ValueError, match=r"column 'y' is constant .*\(0\.1, standard deviation 0\).* the others, x, "):
        TimeSeriesDataModule(str(flat), context_length=3, horizon=3).setup("fit")
    tiny = write(tmp_path / "tiny.csv", "x\n1\n5\n2\n6\n3\n7\n4\n8\n5")
    data = TimeSeriesDataModule(str(tiny))
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (4, 1)


def test_validation_can_be_left_out(ramp):
    data = TimeSeriesDataModule(ramp, context_length=5, horizon=3, val_fraction=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    assert len(data.train_set) == 85 - 7


@pytest.mark.parametrize(
    "options",
    [
        {"context_length": 0},
        {"stride": 0},
        {"season": 0},
        {"val_fraction": 0.6, "test_fraction": 0.4},
        {"columns": "x"},
        {"decimal": ","},
        {"path": "a.csv", "group": "A"},
        {"path": "a.csv", "separator": "tabs"},
        {"path": "a.csv", "thousands": ".", "decimal": "."},
        {"path": "a.csv", "thousands": ",", "decimal": ","},
        {"path": "a.csv", "length": 500},
        {"path": "a.csv", "series_seed": 1},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(
        ValueError,
        match=r"must be|give its path|give that too|decimal character|length and series_seed are .*: leave them out",
    ):
        TimeSeriesDataModule(**options)
