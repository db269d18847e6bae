"""Columns that are only inputs of a forecast: what is known ahead, the calendar, and the rest."""

import csv
import logging
import math
from datetime import date, timedelta
from functools import partial

import pytest
import torch
from conftest import ROOT, fails
from lightning import Trainer

from datamodules import TimeSeriesDataModule
from datamodules.common.csv_series import read_series
from lit_models import RNN
from lit_models.cli import main as cli

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
FORMS = {
    "series": {"cell": "lstm"},
    "window": {"scale": "window", "season": 4, "ar_order": 7, "residual": True},
    "logarithm": {"log": True, "season": 4, "residual": True},
    "quantiles": {"quantiles": [0.1, 0.5, 0.9], "scale": "window", "residual": True},
}
DAYS = [(date(2024, 1, 1) + timedelta(days)).isoformat() for days in range(60)]


def model(**options):
    """A model with random weights: two columns to forecast, one that is only an input, two known ahead."""
    made = RNN(5, 8, 2, 2, mean=[120.0, 320.0, 5.0, 0.5, 0.0], std=[10.0, 20.0, 2.0, 0.4, 1.0], **options).eval()
    draw = torch.Generator().manual_seed(1)
    for weight in made.parameters():
        weight.data = torch.randn(weight.shape, generator=draw) * 0.2
    return made


def windows(rows=20):
    low, high = torch.tensor([[100.0, 300, 1, 0, 0], [140, 340, 9, 1, 1]])
    return low + (high - low) * torch.rand(3, rows, 5, generator=torch.Generator().manual_seed(0))


def write(path, rows, names):
    path.write_text("\n".join(",".join(map(str, row)) for row in [names, *rows]))
    return str(path)


@pytest.fixture
def shop(tmp_path):
    """50 days of sales, and 10 more of which only the price is known."""
    rows = [(DAYS[row], 100 + row if row < 50 else "", row % 7, row % 5 if row < 50 else "") for row in range(60)]
    return write(tmp_path / "shop.csv", rows, ("day", "sales", "price", "stock"))


SHOP = {"columns": "sales", "known_columns": "price", "input_columns": ["stock"], "context_length": 8, "horizon": 6}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_fed_back_with_what_is_known_and_what_stays(form):
    made, rows = model(**FORMS[form]), windows()
    context, ahead = rows[:, :12], made.known_ahead(rows[:, 12:])
    found = made.forecast(context, 8, ahead=ahead)
    assert found.shape == (3, 8, 2)
    stay = context[:, -1:, 2:3].expand(-1, 8, -1)
    first, state = made(context)
    later, _ = made(torch.cat([found, stay, ahead], dim=2), state)
    whole = made.point(torch.cat([first[:, -1:], later[:, :-1]], dim=1))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_the_future_reaches_the_past_of_inputs_too(form):
    made, rows = model(**FORMS[form]), windows()[:1]
    context, target = rows[:, :12], rows[:, 12:].clone()
    target[:, 4:, :3] = math.nan
    before = made.continue_series(context, target)
    target[:, 5, 3:] += 1  # known ahead of the row after it
    after = made.continue_series(context, target)
    torch.testing.assert_close(after[:, :6], before[:, :6])
    assert (after[:, 6] != before[:, 6]).all()
    target[:, 4:, 2] = 1000.0  # what no one can know
    torch.testing.assert_close(made.continue_series(context, target), after)
    target[:, 2, 2] += 1
    changed = made.continue_series(context, target)
    torch.testing.assert_close(changed[:, :3], after[:, :3])
    assert (changed[:, 3] != after[:, 3]).all()
    assert not changed.isnan().any()


def test_bands_see_what_is_known_ahead():
    made, rows = model(**FORMS["quantiles"]), windows()
    ahead = made.known_ahead(rows[:, 12:])
    bands = made.forecast_quantiles(rows[:, :12], 8, ahead)
    assert bands.shape == (3, 8, 3, 2)
    ahead[:, 3] += 2
    other = made.forecast_quantiles(rows[:, :12], 8, ahead)
    torch.testing.assert_close(other[:, :4], bands[:, :4])
    assert (other[:, 4] - bands[:, 4]).abs().amin() > 1e-3
    with pytest.raises(ValueError, match="ahead is missing: known_dim is 2"):
        made.forecast(rows[:, :12], 8)
    assert made.forecast(rows[:, :12], 1).shape == (3, 1, 2)


def test_only_the_columns_to_forecast_are_scaled_by_their_window():
    made, rows = model(**FORMS["window"]), windows()
    context, ahead, offset = rows[:, :12], made.known_ahead(rows[:, 12:]), torch.tensor([500.0, -70.0, 0, 0, 0])
    before, after = (made.forecast(part, 8, ahead=ahead) for part in (context, context + offset))
    torch.testing.assert_close(after, before + offset[:2], rtol=1e-4, atol=1e-2)
    flag = context.clone()
    flag[:, :, 3] = 0.0  # a holiday that the window has not seen
    assert (made.forecast(flag, 8, ahead=ahead) - before).abs().max() < 200


def test_rows_of_a_window_hold_what_is_known_of_the_next(shop):
    data = TimeSeriesDataModule(shop, season=1, **SHOP)
    data.setup("fit")
    assert (data.column_names, data.num_features, data.num_targets, data.num_known) == (["sales"], 3, 1, 1)
    assert len(data.train_set) == 34 - 14 + 1  # of 50 rows, not 60
    context, target = data.train_set.__getitems__([0, 4])
    rows = torch.cat([context, target], dim=1)
    assert rows[1, :, 0].tolist() == [100 + row for row in range(4, 18)]
    assert rows[1, :, 1].tolist() == [row % 5 for row in range(4, 18)]
    assert rows[1, :, 2].tolist() == [row % 7 for row in range(5, 19)]
    assert data.mean == pytest.approx([100 + 33 / 2, 66 / 34, 99 / 34])
    assert len(data.naive_error) == 1


def test_forecasts_reach_as_far_as_what_is_known(shop):
    data = TimeSeriesDataModule(shop, season=1, **SHOP)
    data.setup("predict")
    ((context, target),) = data.predict_dataloader()
    assert (context.shape, target.shape) == ((1, 8, 3), (1, 8 + 6, 3))
    assert context[0, :, 0].tolist() == [100 + row for row in range(34, 42)]
    assert target[0, :8, 0].tolist() == [100 + row for row in range(42, 50)]
    assert target[0, 8:, :2].isnan().all()
    assert target[0, :13, 2].tolist() == [row % 7 for row in range(43, 56)]
    assert [label["time"] for label in data.target_labels(0)] == DAYS[42:56]
    none = {"columns": "price", "known_columns": [], "input_columns": [], "context_length": 8, "horizon": 6}
    TimeSeriesDataModule(shop, season=1, **none).setup("predict")  # none is known ahead, and none need be
    with pytest.raises(
        ValueError, match=r"ends 10 row\(s\) after the last value of 'sales', but data.horizon is 12: set"
    ):
        TimeSeriesDataModule(shop, season=1, **SHOP | {"horizon": 12}, test_fraction=0.3).setup("predict")


def test_rows_ahead_are_filled_like_others_but_for_what_is_forecast(tmp_path):
    rows = [(DAYS[row], row if row < 5 else "", "" if row in (1, 6) else row) for row in (0, 1, 2, 4, 5, 6, 8)]
    path = write(tmp_path / "gaps.csv", rows, ("day", "x", "price"))
    (one,), names = read_series(tmp_path / "gaps.csv", known_columns=["price"], fill="interpolate")
    assert (names, one.ahead, one.times) == (["x"], 4, DAYS[:9])
    assert one.values[:, 1].tolist() == list(range(9))
    assert one.values[:5, 0].tolist() == list(range(5))
    assert torch.from_numpy(one.values[5:, 0]).isnan().all()
    with pytest.raises(ValueError, match="row 3, column 'price': the value is missing"):
        TimeSeriesDataModule(path, known_columns="price").setup("fit")
    write(tmp_path / "inner.csv", [*rows[:2], (DAYS[2], "", 2), *rows[3:]], ("day", "x", "price"))
    with pytest.raises(ValueError, match="row 4, column 'x': the value is missing"):
        read_series(tmp_path / "inner.csv", columns=["x"], known_columns=["price"])
    write(tmp_path / "end.csv", [*rows[:-1], (DAYS[8], "", "")], ("day", "x", "price"))
    with pytest.raises(ValueError, match="row 8, column 'price': the value is missing, and there is none after it"):
        read_series(tmp_path / "end.csv", known_columns=["price"], fill="interpolate")


def test_several_series_know_each_their_own_ahead(tmp_path):
    ends = {"a": 46, "b": 43}
    rows = [(shop, DAYS[row], row if row < 40 else "", row % 3) for shop in ends for row in range(ends[shop])]
    path = write(tmp_path / "shops.csv", rows, ("shop", "day", "sales", "price"))
    options = {"columns": "sales", "known_columns": "price", "group_column": "shop", "context_length": 6, "season": 1}
    data = TimeSeriesDataModule(path, horizon=3, **options)
    data.setup("predict")
    for batch, (_, target) in enumerate(data.predict_dataloader()):
        assert target[0, :-1, 1].tolist() == [row % 3 for row in range(35, 43)]
        assert data.target_labels(batch)[-1] == {"shop": "ab"[batch], "time": DAYS[42]}
    with pytest.raises(ValueError, match=r"known ahead of series 'b' ends 3 row\(s\) after"):
        TimeSeriesDataModule(path, horizon=4, **options).setup("predict")


def test_the_calendar_by_hand(tmp_path):
    hours = [f"2024-03-{day:02} {hour:02}:00" for day in range(1, 6) for hour in range(0, 24, 6)]
    path = write(tmp_path / "hours.csv", [(hour, row * row) for row, hour in enumerate(hours)], ("time", "x"))
    data = TimeSeriesDataModule(path, calendar=True, context_length=3, horizon=2, season=1)
    data.setup("predict")
    assert (data.num_features, data.num_known, data.mean[1:], data.std[1:]) == (7, 6, [0.0] * 6, [1.0] * 6)
    ((_, target),) = data.predict_dataloader()
    last = target[0, -2, 1:]  # of 2024-03-06 06:00, a Wednesday, two rows after the file's last
    turns = [(2 + 5 / 31) / 12, 2 / 7, 6 / 24]
    expected = [turn for part in turns for turn in (math.sin(2 * math.pi * part), math.cos(2 * math.pi * part))]
    assert last.tolist() == pytest.approx(expected, abs=1e-6)
    monthly = [(f"20{row // 12 + 10}-{row % 12 + 1:02}-01", row * row) for row in range(40)]
    data = TimeSeriesDataModule(write(tmp_path / "months.csv", monthly, ("time", "x")), calendar=True)
    data.setup("fit")
    assert data.series[:, 3:].eq(0).all()  # weekday and hour of months say nothing
    assert data.series[2, 1:3].tolist() == pytest.approx([math.sin(math.pi / 2), math.cos(math.pi / 2)], abs=1e-6)


def test_what_is_known_ahead_is_learnt(tmp_path):
    draw = torch.Generator().manual_seed(0)
    offer, noise = torch.rand(600, generator=draw) < 0.3, torch.randn(600, generator=draw)
    sales = 100 + 10 * offer + noise
    rows = zip(sales.tolist(), offer.int().tolist(), strict=True)
    path = write(tmp_path / "offers.csv", rows, ("sales", "offer"))
    data = TimeSeriesDataModule(path, known_columns="offer", context_length=10, horizon=5, season=1)
    torch.manual_seed(0)
    made = RNN(2, 8, 1, 1, free_running=True, optimizer=partial(torch.optim.Adam, lr=0.02))
    trainer = Trainer(max_epochs=6, accelerator="cpu", **QUIET)
    trainer.fit(made, data)
    (found,) = trainer.test(made, data, verbose=False)
    # The noise alone has a mean absolute error of 0.8; a day that knows of no offer one of 4.
    assert found["test/mase"] * data.naive_error[0] < 1.3


def test_from_the_command_line(shop, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO, "lit_models")
    config = [f"--config={ROOT / 'configs' / 'rnn_csv.yaml'}", f"--data.path={shop}", "--data.columns=sales"]
    flags = ["--data.known_columns=price", "--data.input_columns=[stock]", "--data.calendar=true", "--data.horizon=6"]
    flags += ["--model.quantiles=[0.1,0.5,0.9]", "--trainer.max_epochs=1", "--data.context_length=8", "--data.season=1"]
    flags += [f"--trainer.default_root_dir={tmp_path / 'logs'}"]
    said = fails(capsys, "fit", *config, *flags)
    assert (
        "has 9 column(s), 1 to forecast and 7 known ahead, but input_dim is 1, output_dim is 1, known_dim is 0" in said
    )
    assert "set model.input_dim to 9, model.known_dim to 7" in said
    assert cli.main(["fit", *config, *flags, "--model.input_dim=9", "--model.known_dim=7"]) == 0
    assert "; inputs: stock, price; known ahead: price, 10 row(s)" in caplog.text
    last = next(tmp_path.rglob("last.ckpt"))
    assert cli.main(["test", f"--ckpt_path={last}"]) == 0
    assert cli.main(["predict", f"--ckpt_path={last}", f"--output={tmp_path / 'out.csv'}"]) == 0
    with (tmp_path / "out.csv").open() as out:
        rows = list(csv.DictReader(out))
    assert list(rows[0]) == ["time", "sales", "sales_forecast", "sales_q0.1", "sales_q0.5", "sales_q0.9"]
    assert [row["time"] for row in rows] == DAYS[42:56]
    assert (float(rows[7]["sales"]), rows[8]["sales"]) == (149, "")
    assert all(math.isfinite(float(row["sales_forecast"])) for row in rows)
    said = fails(capsys, "predict", f"--ckpt_path={last}", f"--output={tmp_path / 'a.csv'}", "--data.horizon=11")
    assert "ends 10 row(s) after the last value of 'sales', but data.horizon is 11: set data.horizon to 10, or" in said


def test_wrong_inputs_are_refused_in_a_line(shop, tmp_path):
    for options, message in (
        (
            {"known_columns": "price", "input_columns": "price"},
            r"name each once in data.columns, data.input_columns or",
        ),
        ({"columns": ["sales", "price"], "known_columns": "price"}, r"the columns to use are sales, price, price"),
        ({"known_columns": "prize"}, r"has no column 'prize'.*did you mean 'price'"),
        ({"known_columns": "day", "columns": "sales", "time_column": "day"}, r"none of them in data.time_column"),
    ):
        with pytest.raises(ValueError, match=message):
            TimeSeriesDataModule(shop, **options).setup("fit")
    flat = write(tmp_path / "flat.csv", [(row * row % 7, 3) for row in range(60)], ("x", "holiday"))
    with pytest.raises(ValueError, match=r"column 'holiday' is constant .*leave it out of data.input_columns and"):
        TimeSeriesDataModule(flat, known_columns="holiday").setup("fit")
    with pytest.raises(ValueError, match=r"calendar: the times of .*flat.csv are numbers: name a column of dates"):
        TimeSeriesDataModule(flat, columns="x", calendar=True).setup("fit")
    with pytest.raises(ValueError, match="known_columns, calendar: of a file, so give its path too"):
        TimeSeriesDataModule(known_columns="x", calendar=True)
    gap = [(DAYS[row], "" if 20 <= row < 30 else row * row % 11) for row in range(60)]
    for rows, fill in ((gap, "previous"), ([row for row in gap if row[1] != ""], "interpolate")):
        path = write(tmp_path / "gap.csv", rows, ("day", "x"))
        with pytest.raises(ValueError, match=r"10 rows from 2024-01-21 on were filled in, .* on 10, .*_length 11 or"):
            TimeSeriesDataModule(path, fill=fill, context_length=10).setup("fit")
        TimeSeriesDataModule(path, fill=fill, context_length=11).setup("fit")
