"""Forecasts of series with a trend and a season, beside simple ones."""

import csv
import math
from functools import partial

import pytest
import torch
import yaml
from conftest import ROOT, fails
from lightning import Trainer
from torch.utils.data import DataLoader, StackDataset

from datamodules import TimeSeriesDataModule
from lit_models import RNN
from lit_models.cli import main as cli
from lit_models.training.baselines import baselines
from lit_models.training.quantiles import pinball

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
FORMS = {
    "season": {"season": 4},
    "season and window": {"season": 4, "scale": "window", "ar_order": 7},
    "autoregression": {"ar_order": 3},
    "logarithm": {"log": True, "season": 4, "scale": "window"},
    "logarithm alone": {"log": True},
}


def positive(batch=3, rows=20, columns=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(batch, rows, columns, generator=draw) * 40 + torch.tensor([100.0, 300.0])[:columns]


def model(**options):
    """A model with random weights, those too that begin at zero."""
    made = RNN(2, 8, 2, residual=True, mean=[120.0, 320.0], std=[10.0, 20.0], **options).eval()
    draw = torch.Generator().manual_seed(1)
    for weight in made.parameters():
        weight.data = torch.randn(weight.shape, generator=draw) * 0.1
    return made


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_rows_one_by_one_give_what_they_give_at_once(form, cell):
    made, rows = model(cell=cell, **FORMS[form]), positive()
    _, state = made(rows[:, :12])
    whole, _ = made(rows[:, 12:], state)
    for row in range(12, 20):
        prediction, state = made(rows[:, row : row + 1], state)
        torch.testing.assert_close(prediction[:, 0], whole[:, row - 12], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_the_future_reaches_the_past(form):
    made, rows = model(**FORMS[form]), positive(batch=1)
    context, target = rows[:, :12], rows[:, 12:].clone()
    target[:, 6:] = math.nan
    before = made.continue_series(context, target)
    assert before.shape == target.shape
    target[:, 4:6] *= 3
    after = made.continue_series(context, target)
    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert (after[:, 5] != before[:, 5]).all()
    assert not after.isnan().any()


@pytest.mark.parametrize("form", FORMS)
def test_a_series_is_continued_by_forecasts_of_its_windows(form):
    made, rows = model(**FORMS[form]), positive(batch=2)
    target = torch.cat([rows[:, 12:16], torch.full((2, 3, 2), math.nan)], dim=1)
    found = made.continue_series(rows[:, :12], target)
    if made.hparams.scale == "window":
        for row in range(4):
            torch.testing.assert_close(found[:, row], made.forecast(rows[:, row : 12 + row], 1)[:, 0])
        torch.testing.assert_close(found[:, 4:], made.forecast(rows[:, 4:16], 3))
    else:
        torch.testing.assert_close(found, made.forecast(rows[:, :16], 7, known=4))


def test_what_training_starts_from_is_last_years_change():
    context = positive()
    for log in (False, True):
        fresh = RNN(2, 8, 2, residual=True, scale="window", log=log, season=4, ar_order=5, mean=200.0, std=30.0)
        expected = context.log() if log else context
        for _ in range(6):
            expected = torch.cat([expected, expected[:, -1:] + expected[:, -4:-3] - expected[:, -5:-4]], dim=1)
        expected = expected[:, -6:].exp() if log else expected[:, -6:]
        torch.testing.assert_close(fresh.forecast(context, 6), expected, rtol=1e-4, atol=0)


def test_autoregression_and_damping_by_hand():
    made = RNN(1, 8, 1, residual=True, season=3, ar_order=2, mean=50.0, std=10.0)
    made.ar.weight.data = torch.tensor([[0.3, -0.2]])  # of the row before the last, and the last
    made.damping.data.fill_(0.04)
    x = torch.tensor([47.0, 52.0, 58.0, 49.0, 51.0])
    z = (x - 50) / 10
    expected = z[2] + 0.6 * (z[4] - z[1]) + 0.3 * z[3] - 0.2 * z[4]
    assert made.forecast(x.view(1, 5, 1), 1).item() == pytest.approx(50 + 10 * expected.item(), rel=1e-5)


def test_a_window_carries_its_level_into_the_forecast():
    context, offset = positive(), torch.tensor([500.0, -70.0])
    windowed, plain = model(scale="window", season=4, ar_order=7), model(season=4, ar_order=7)
    torch.testing.assert_close(
        windowed.forecast(context + offset, 9), windowed.forecast(context, 9) + offset, rtol=1e-4, atol=1e-2
    )
    assert (plain.forecast(context + offset, 9) - plain.forecast(context, 9) - offset).abs().max() > 1


@pytest.mark.parametrize("log", [False, True])
def test_a_constant_window_is_continued(log):
    made = RNN(1, 8, 1, residual=True, scale="window", log=log, ar_order=3, mean=120.0, std=10.0)
    context = torch.full((1, 20, 1), 87.5)
    forecast = made.forecast(context, 5)
    torch.testing.assert_close(forecast, torch.full((1, 5, 1), 87.5))
    (forecast - 90).square().mean().backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in made.parameters())


def test_baselines_by_hand():
    context = torch.tensor([2.0, 4.0, 3.0, 8.0, 6.0]).view(1, 5, 1)
    found = {name: forecast[0, :, 0].tolist() for name, forecast in baselines(context, 4, season=3).items()}
    assert found == {
        "persistence": [6, 6, 6, 6],
        "drift": [7, 8, 9, 10],  # (6 - 2) / 4 a row
        "seasonal_naive": [3, 8, 6, 3],
    }
    assert list(baselines(context, 2)) == ["persistence", "drift"]


def write(path, values):
    path.write_text("\n".join(["x", *map(str, values)]))
    return str(path)


def test_errors_are_scaled_and_compared_as_by_hand_and_as_utilsforecast_has_it(tmp_path):
    values = [(row % 4) * 3 + row / 10 + (row * 7 % 5) / 3 for row in range(100)]
    data = TimeSeriesDataModule(write(tmp_path / "a.csv", values), context_length=8, horizon=4, season=4, batch_size=3)
    made = RNN(1, 8, 1, residual=True, season=4, ar_order=1)
    trainer = Trainer(accelerator="cpu", max_epochs=0, **QUIET)
    with pytest.warns(UserWarning, match=r"the forecasts are worse than the seasonal naive one: mase \d\.\d+ against"):
        (found,) = trainer.test(made, data, verbose=False)
    x = torch.tensor(values)
    past, truth = x.unfold(0, 8, 1)[77:89], x.unfold(0, 4, 1)[85:97]  # (windows, rows)
    last = past[:, -1:]
    forecasts = {
        "mase": past[:, -4:] + last - past[:, -5:-4],
        "mase_persistence": last.expand(-1, 4),
        "mase_drift": last + (last - past[:, :1]) / 7 * torch.arange(1.0, 5),
        "mase_seasonal_naive": past[:, -4:],
    }
    unit = (x[4:70] - x[:66]).abs().mean()  # over the training rows
    expected = {name: ((forecast - truth).abs().mean() / unit).item() for name, forecast in forecasts.items()}
    ours = {name: found[f"test/{name}"] for name in forecasts}
    assert ours == pytest.approx(expected, rel=1e-4)
    assert found["test/skill"] == pytest.approx(1 - expected["mase"] / expected["mase_seasonal_naive"], rel=1e-3)
    pandas = pytest.importorskip("pandas", reason="needs the extra bench")
    losses = pytest.importorskip("utilsforecast.losses", reason="needs the extra bench")
    rows = {"y": truth.flatten()} | {name: forecast.flatten() for name, forecast in forecasts.items()}
    table, train = (pandas.DataFrame(columns).assign(unique_id="a") for columns in (rows, {"y": x[:70]}))
    theirs = losses.mase(table, list(forecasts), seasonality=4, train_df=train)
    assert ours == pytest.approx({name: theirs[name].item() for name in forecasts}, rel=1e-4)


def test_what_cannot_be_forecast_so_is_said_in_a_line(tmp_path, capsys):
    file = write(tmp_path / "a.csv", [row % 7 for row in range(200)])
    config = ["fit", f"--config={ROOT / 'configs' / 'rnn_csv.yaml'}", f"--data.path={file}", "--trainer.logger=false"]
    assert "column 'x' has 0, which has no logarithm: set model.log to false" in fails(
        capsys, *config, "--model.log=true"
    )
    said = fails(capsys, *config, "--data.season=52", "--data.context_length=20")
    assert "season is 52, but a context has 20 rows: make data.season smaller, or data.context_length larger" in said
    assert "mean is 0.0: with log, it must be above 0" in fails(capsys, *config, "--model.log=true", "--model.mean=0")
    said = fails(capsys, *config, "--model.season=52", "--data.context_length=40")
    assert "a season of 52 rows does not fit into a context of 40: make data.context_length 53 or more" in said
    said = fails(capsys, *config, "--model.output_dim=2", "--model.residual=false")
    assert "scale: output_dim (2) and known_dim (0) must not be more than input_dim (1)" in said


def test_the_season_of_the_data_is_the_models(tmp_path):
    for season in (6, 1):
        noise = torch.rand(120, generator=torch.Generator().manual_seed(0)).tolist()
        values = [(row % season) ** 2 + noise[row] for row in range(120)]
        data = TimeSeriesDataModule(write(tmp_path / f"{season}.csv", values), windows_per_epoch=20, batch_size=8)
        made = RNN(1, 4, 1, season=None, residual=True, optimizer=partial(torch.optim.SGD, lr=0.01))
        trainer = Trainer(accelerator="cpu", max_epochs=1, **QUIET)
        trainer.fit(made, data)
        assert (data.season, made.season, made.hparams.season) == (season, season, season if season > 1 else None)
        assert trainer.global_step == 3
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        again = RNN.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
        rows = torch.rand(1, 30, 1)
        torch.testing.assert_close(again.forecast(rows, 3), made.eval().forecast(rows, 3))


def test_an_epoch_draws_as_many_windows_as_asked():
    data = TimeSeriesDataModule(
        length=200, context_length=20, horizon=5, season=1, windows_per_epoch=500, batch_size=50
    )
    data.setup("fit")
    drawn = torch.cat([context[:, 0, 0] for context, _ in data.train_dataloader()])
    counts = drawn.unique(return_counts=True)[1]
    assert (len(drawn), len(counts)) == (500, len(data.train_set))
    assert counts.max() - counts.min() <= 1
    assert drawn[:150].tolist() != drawn[len(data.train_set) :][:150].tolist()
    data = TimeSeriesDataModule(length=200, context_length=20, horizon=5, season=1, windows_per_epoch=30, batch_size=50)
    data.setup("fit")
    loader = data.train_dataloader()
    first, second = (next(iter(loader))[0][:, 0, 0] for _ in range(2))
    assert len(first.unique()) == len(second.unique()) == 30
    assert set(first.tolist()) != set(second.tolist())


@pytest.mark.parametrize("criterion", ["mse", "mae"])
@pytest.mark.parametrize("scale", ["series", "window"])
def test_the_training_loss_is_of_free_running_forecasts(criterion, scale):
    rows = positive(batch=6, rows=15)
    made = model(season=4, scale=scale, free_running=True, criterion=criterion)
    windows = StackDataset(rows[:, :10], rows[:, 10:])
    made.optimizer = partial(torch.optim.SGD, lr=0.0)
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(made, DataLoader(windows, batch_size=6))
    with torch.no_grad():
        errors = (made.forecast(rows[:, :10], 5) - rows[:, 10:]) / torch.tensor([10.0, 20.0])
    if scale == "window":
        errors /= ((rows[:, :10] / torch.tensor([10.0, 20.0])).var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = errors.abs().mean() if criterion == "mae" else errors.square().mean()
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def stepping(offsets, levels=(0.1, 0.5, 0.9)):
    """A random walk, and a window that ends at 70 after steps as those of a standard deviation of 10.

    The next row's quantiles are those of a normal distribution, moved by these offsets in standard deviations.
    """
    made = RNN(1, 4, 1, residual=True, quantiles=list(levels), mean=50.0, std=10.0).eval()
    made.head.weight.data.zero_()
    made.head.bias.data = torch.tensor(offsets)
    step = 10 * math.sqrt(2 / math.pi)  # the mean absolute value of normal ones
    return made, torch.tensor([70, 70 + step, 70 + 2 * step, 70 + step, 70, 70 + step, 70]).view(1, 7, 1)


def test_bands_begin_with_what_is_predicted_and_grow():
    made, context = stepping([0.2, 0.0, -0.2])
    context = context.repeat(2, 1, 1)
    bands = made.forecast_quantiles(context, 16)
    assert bands.shape == (2, 16, 3, 1)
    assert bands[0, 0, :, 0].tolist() == pytest.approx([70 - 10.816, 70, 70 + 10.816], rel=1e-4)
    torch.testing.assert_close(made.forecast(context, 16), torch.full((2, 16, 1), 70.0))
    for row in (4, 16):
        width = (bands[:, row - 1, 2] - bands[:, row - 1, 0]).mean().item()
        assert width == pytest.approx(2 * 10.816 * row**0.5, rel=0.25)
    assert torch.equal(bands, made.forecast_quantiles(context, 16))


@pytest.mark.parametrize("form", [*FORMS, "lstm"])
def test_paths_go_on_from_what_the_window_left(form):
    made = model(**FORMS.get(form, {"cell": "lstm"}), quantiles=[0.1, 0.5, 0.9])
    made.head.weight.data = made.head.weight.view(3, 2, -1)[1:2].expand(3, 2, -1).flatten(0, 1).clone()
    made.head.bias.data = (made.head.bias.view(3, 2)[1] - made.normal[:, None]).flatten()  # nothing is left to chance
    context = positive()
    torch.testing.assert_close(made.forecast_quantiles(context, 5)[:, :, 1], made.forecast(context, 5))


def test_quantiles_in_sixteen_bits():
    made = model(quantiles=[0.1, 0.5, 0.9], scale="window").to(torch.bfloat16)
    bands = made.forecast_quantiles(positive(), 3)
    assert (bands.shape, bands.isfinite().all()) == ((3, 3, 3, 2), True)
    assert (bands[:, :, 0] <= bands[:, :, 2]).all()


def test_crossing_quantiles_are_put_in_order():
    made, context = stepping([1.2816 + 0.5, 0.0, -1.2816 - 0.5])
    assert made.forecast_quantiles(context, 3)[0, 0, :, 0].tolist() == pytest.approx([65, 70, 75], rel=1e-4)


@pytest.mark.parametrize("season", [1, 4])
def test_bands_are_as_wide_as_the_errors_over_the_window_before_any_training(season):
    fresh = RNN(2, 8, 2, residual=True, scale="window", season=season, ar_order=3, quantiles=[0.1, 0.5, 0.9])
    x = positive(rows=24)
    for _ in range(2):
        changes = x - x.roll(1, dims=1) if season == 1 else x - x.roll(4, dims=1) - (x - x.roll(4, dims=1)).roll(1, 1)
        error = changes[:, season + (season > 1) :].abs().mean(1) * (math.pi / 2) ** 0.5
        bands = fresh.forecast_quantiles(x, 1)[:, 0]
        torch.testing.assert_close(bands[:, 2] - bands[:, 0], 2 * 1.28155 * error, rtol=1e-3, atol=0)
        x = x * 3  # a window that is wilder has wider bands


def test_pinball_loss_by_hand_and_as_scikit_learn_has_it():
    truth, found = torch.tensor([3.0, 5.0]), torch.tensor([[1.0, 4.0], [6.0, 7.0]])  # of two rows, two quantiles
    errors = (truth[:, None] - found).view(1, 2, 2, 1)
    loss = pinball(errors, torch.tensor([0.1, 0.5]))
    assert loss.flatten().tolist() == pytest.approx([0.1 * 2, 0.5 * 1, 0.9 * 1, 0.5 * 2])
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra bench")
    for level, column in ((0.1, 0), (0.5, 1)):
        expected = metrics.mean_pinball_loss(truth, found[:, column], alpha=level)
        assert loss[0, :, column].mean().item() == pytest.approx(expected)


@pytest.mark.parametrize("quantiles", [[0.9, 0.5, 0.1], [0.5], [0.1, 0.9], [0.0, 0.5], [0.5, 0.5, 0.9], [0.5, 1.2]])
def test_quantiles_that_are_none_are_refused(quantiles):
    with pytest.raises(ValueError, match=r"quantiles are .*: they must be 2 or more in 0\.\.1, in order, with 0\.5"):
        RNN(quantiles=quantiles)


def test_bands_of_noise_hold_as_much_as_they_say(tmp_path):
    noise = torch.randn(1500, generator=torch.Generator().manual_seed(0)) * 3 + 20
    data = TimeSeriesDataModule(write(tmp_path / "noise.csv", noise.tolist()), context_length=20, horizon=5, season=1)
    torch.manual_seed(0)
    made = RNN(1, 4, 1, quantiles=[0.1, 0.5, 0.9], optimizer=partial(torch.optim.Adam, lr=0.01))
    trainer = Trainer(accelerator="cpu", max_epochs=5, **QUIET)
    trainer.fit(made, data)
    (found,) = trainer.test(made, data, verbose=False)
    assert 0.7 < found["test/coverage"] < 0.9
    # Of the true quantiles, by their integral: (2 * 0.1755 + 0.3989) / 3 standard deviations.
    unit = sum(data.naive_error)
    assert found["test/pinball"] == pytest.approx((2 * 0.1755 + 0.3989) / 3 * 3 / unit, rel=0.1)


def test_quantiles_are_columns_of_the_forecast(tmp_path):
    file = write(tmp_path / "a.csv", [(row % 7) + (row * row % 11) / 5 for row in range(150)])
    config = f"--config={ROOT / 'configs' / 'rnn_csv.yaml'}"
    flags = [f"--data.path={file}", "--model.quantiles=[0.1,0.5,0.9]", "--trainer.max_epochs=1"]
    assert cli.main(["fit", config, *flags, f"--trainer.default_root_dir={tmp_path / 'logs'}"]) == 0
    last = next(tmp_path.rglob("last.ckpt"))
    assert cli.main(["predict", f"--ckpt_path={last}", f"--output={tmp_path / 'out.csv'}"]) == 0
    with (tmp_path / "out.csv").open() as out:
        rows = list(csv.DictReader(out))
    assert list(rows[0]) == ["time", "x", "x_forecast", "x_q0.1", "x_q0.5", "x_q0.9"]
    found = [[float(row[name]) for name in ("x_q0.1", "x_q0.5", "x_q0.9", "x_forecast")] for row in rows]
    assert all(low <= middle <= high for low, middle, high, _ in found)
    known = sum(row["x"] != "" for row in rows)
    assert (known, len(rows) - known) == (22, 7)
    made = RNN.load_from_checkpoint(last, weights_only=True).eval()
    x = torch.tensor([[float(line)] for line in (tmp_path / "a.csv").read_text().split()[1:]])[None]
    with torch.no_grad():
        one, free = made.forecast_quantiles(x[:, 126:150], 7)[0], made.forecast_quantiles(x[:, 104:128], 1)[0]
    assert found[0][:3] == pytest.approx(free[0, :, 0].tolist(), rel=1e-4)
    assert [row[:3] for row in found[known:]] == [pytest.approx(row[:, 0].tolist(), rel=1e-4) for row in one]


def test_the_configs_of_series_share_one_recipe():
    configs = {
        name: yaml.safe_load((ROOT / "configs" / f"rnn_{name}.yaml").read_text())
        for name in ("csv", "air_passengers", "sunspots", "co2")
    }
    recipes = []
    for config in configs.values():
        of_file = {"path", "horizon", "test_fraction", "fill"}
        options = {name: value for name, value in config["data"]["init_args"].items() if name not in of_file}
        recipes.append(config | {"data": config["data"] | {"init_args": options}})
    assert all(recipe == recipes[0] for recipe in recipes)


@pytest.mark.slow
def test_air_passengers_are_forecast_better_than_by_last_year(tmp_path):
    args = ["fit", f"--config={ROOT / 'configs' / 'rnn_air_passengers.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    assert cli.main(args) == 0
    command = cli.CLI(["test", f"--ckpt_path={next(tmp_path.rglob('epoch*.ckpt'))}"])
    metrics = command.trainer.callback_metrics
    assert metrics["test/mase"] / metrics["test/mase_seasonal_naive"] < 0.7
