import pytest
import torch

from datamodules import TimeSeriesDataModule
from datamodules.common.csv_series import continue_times, read_csv
from datamodules.mackey_glass import mackey_glass


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
def test_no_window_reaches_past_its_part(ramp, stride):
    data = TimeSeriesDataModule(ramp, context_length=5, horizon=3, val_fraction=0.2, test_fraction=0.1, stride=stride)
    data.setup("fit")
    data.setup("test")
    seen = {}
    for part in ("train", "val", "test"):
        dataset = getattr(data, f"{part}_set")
        rows = torch.cat(dataset.__getitems__(list(range(len(dataset)))), dim=1)
        seen[part] = (int(rows.min()), int(rows.max()))
    assert (seen["train"][0], seen["val"][0], seen["test"][0]) == (0, 70, 90)
    assert seen["train"][1] <= 69
    assert seen["val"][1] <= 89
    if stride == 1:
        assert (seen["train"][1], seen["val"][1], seen["test"][1]) == (69, 89, 99)


def test_order_of_training_and_validation(ramp):
    data = TimeSeriesDataModule(ramp, context_length=5, horizon=3, batch_size=100)
    data.setup("fit")
    loader = data.train_dataloader()
    first, second = (next(iter(loader))[0][:, 0, 0] for _ in range(2))  # without a Trainer, each is another epoch
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    assert next(iter(data.val_dataloader()))[0][:, 0, 0].tolist() == list(range(70, 78))


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
    found, column_names, _ = read_csv(write(tmp_path / "a.csv", text), columns, None, None)
    assert (found.tolist(), column_names) == (values, names)


def test_numbers_may_be_a_header(tmp_path):
    file = write(tmp_path / "years.csv", "1990,1991\n1,2\n3,4\n")
    assert read_csv(file, None, True, None)[0].tolist() == [[1, 2], [3, 4]]
    assert read_csv(file, None, False, None)[0].tolist() == [[1990, 1991], [1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n,4\n", "row 3, column 'a': the value is missing"),
        ("a,b\n1,2\n3\n", r"row 3: 1 cell\(s\), but 2 in the first row"),
        ("a\n1\n\n3\n", r"row 3: 0 cell\(s\)"),
        ("day,sales\n0,100,00\n", r"row 2: 3 cell\(s\), but 2 in the first row; .* or a ','"),
        ('a,b\n1,2\n3,"4\n5,6\n', "not a CSV file"),
        ('a,b\n1,"2\n3,4"\n5,6\n', "row 2: a line break in a cell"),
        ("a;b\n1;2,5\n", "row 2, column 'b': '2,5' is not a number.*; write decimals with a point"),
        ("a,b\n1,1e39\n", "row 2, column 'b': '1e39' is not a number, or not a finite one"),
        ("day,a\n2024-01-01,2\n", r"column 'day': .*; choose the columns of numbers with data\.columns"),
        ("a,a\n1,2\n", "the columns to use are a, a; name each once"),
        ("a,b\n1,2\n3,NaN\n", "row 3, column 'b': the value is missing"),
        ("a,b\n1,2\n3,inf\n", "row 3, column 'b': 'inf' is not a number"),
        ("a,b\n1,2\n3,3.1.4\n", "row 3, column 'b': '3.1.4' is not a number"),
        ("1,2\n3,x\n", "row 2, column '2': 'x' is not a number"),
        ("day,1\n2,3\n", "row 1, column '1': 'day' is not a number.*; set data.header to true"),
        ("a,b\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_gaps_and_words_are_named_with_row_and_column(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_csv(write(tmp_path / "a.csv", text), None, None, None)


def test_missing_files_and_columns(tmp_path):
    file = write(tmp_path / "a.csv", "day,temperature\n1,2\n")
    with pytest.raises(ValueError, match="no column 'temp'; its columns are day, temperature"):
        read_csv(file, ["temp"], None, None)
    with pytest.raises(ValueError, match="no column 'time'"):
        read_csv(file, None, None, "time")
    with pytest.raises(ValueError, match="are none"):
        read_csv(file, [], None, None)
    newest_first = write(tmp_path / "c.csv", "day,x\n2024-01-03,1\n2024-01-02,1\n")
    with pytest.raises(ValueError, match="newest row first"):
        read_csv(newest_first, ["x"], None, "day")
    with pytest.raises(FileNotFoundError, match="no file"):
        read_csv(tmp_path / "b.csv", None, None, None)
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_csv(tmp_path / "binary.csv", None, None, None)


@pytest.mark.parametrize(
    ("times", "after"),
    [
        (["1", "3"], ["5", "7"]),
        (["0.1", "0.2"], ["0.3", "0.4"]),
        (["2024-02-27", "2024-02-28"], ["2024-02-29", "2024-03-01"]),
        (["2024-01-01T22:00", "2024-01-01T23:30"], ["2024-01-02 01:00:00", "2024-01-02 02:30:00"]),
        (["spring", "summer"], ["+1", "+2"]),
        (["7"], ["+1", "+2"]),
        (["20241230", "20241231"], ["20250101", "20250102"]),
        (["2016-07-01", "2016-08-01", "2016-09-01"], ["2016-10-01", "2016-11-01"]),
        (["2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09"], ["2024-01-10", "2024-01-11"]),
        (["9999-12-30", "9999-12-31"], ["+1", "+2"]),
        (["2024-01-01T00:00", "2024-01-02T00:00+00:00"], ["+1", "+2"]),
        (["1", "nan"], ["+1", "+2"]),
        (["-1", "0"], ["1", "2"]),
        (["-0.5", "0.0"], ["0.5", "1"]),
    ],
)
def test_times_continue_by_the_usual_step(times, after):
    assert continue_times(times, 2) == after


def test_short_or_constant_series_are_refused(ramp, tmp_path):
    with pytest.raises(
        ValueError, match=r"val part .* has 15 rows, and one window takes 30: make data.context_length \(20\)"
    ):
        TimeSeriesDataModule(ramp, context_length=20, horizon=10).setup("fit")
    with pytest.raises(ValueError, match="test part"):
        TimeSeriesDataModule(ramp, context_length=20, horizon=10, val_fraction=0).setup("test")
    with pytest.raises(ValueError, match=r"no rows to test on: data\.test_fraction is 0"):
        TimeSeriesDataModule(ramp, context_length=5, horizon=3, test_fraction=0).setup("test")
    with pytest.raises(ValueError, match="has 85 rows, and one window takes 90"):
        TimeSeriesDataModule(ramp, context_length=90).setup("predict")
    flat = write(tmp_path / "flat.csv", "x,y\n" + "\n".join(f"{row},0.1" for row in range(100)))
    with pytest.raises(ValueError, match=r"column 'y' is constant .*\(0\.1, standard deviation 0\)"):
        TimeSeriesDataModule(str(flat), context_length=3, horizon=3).setup("fit")


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
        {"val_fraction": 0.6, "test_fraction": 0.4},
        {"columns": "x"},
        {"path": "a.csv", "length": 500},
        {"path": "a.csv", "series_seed": 1},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=r"must be|give its path|length and series_seed are .*: leave them out"):
        TimeSeriesDataModule(**options)
