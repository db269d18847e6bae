import copy
import csv
import math
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, StackDataset

from datamodules import TimeSeriesDataModule
from lit_models import RNN, RNNClassifier
from lit_models.cli import main as cli
from lit_models.training.predictions import format_cell

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Article(nn.Module):
    """The article's network, written out: time comes first, as it does in torch by default."""

    def __init__(self, input_dim, hidden_dim, output_dim):
        super().__init__()
        self.gru = nn.GRU(input_dim, hidden_dim)
        self.linear = nn.Linear(hidden_dim, output_dim)

    def forward(self, x, hidden):
        output, hidden = self.gru(x, hidden)
        return self.linear(output), hidden


def test_parameters_are_the_articles_counted_by_hand():
    model = RNN(input_dim=2, hidden_dim=100, output_dim=3)
    gates = 3 * (2 * 100 + 100 * 100 + 100 + 100)
    assert sum(weight.numel() for weight in model.parameters()) == gates + 100 * 3 + 3


def test_computes_what_the_article_draws():
    model, article = RNN(2, 100, 3), Article(2, 100, 3)
    article.load_state_dict(dict(zip(article.state_dict(), model.state_dict().values(), strict=True)))
    x, hidden = torch.randn(4, 7, 2), torch.randn(1, 4, 100)
    expected, expected_hidden = article(x.transpose(0, 1), hidden)
    prediction, new_hidden = model(x, hidden)
    torch.testing.assert_close(prediction, expected.transpose(0, 1))
    torch.testing.assert_close(new_hidden, expected_hidden)


def test_the_gru_is_chos_with_torchs_reset_gate():
    # Cho et al. 2014, but for the reset gate, which torch applies after the matrix product.
    model, x = RNN(2, 5, 1), torch.randn(1, 2)
    core, h = model.rnn, torch.randn(1, 5)
    from_x = (x @ core.weight_ih_l0.T + core.bias_ih_l0).chunk(3, dim=1)
    from_h = (h @ core.weight_hh_l0.T + core.bias_hh_l0).chunk(3, dim=1)
    reset, update = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
    expected = (1 - update) * torch.tanh(from_x[2] + reset * from_h[2]) + update * h
    torch.testing.assert_close(model(x[:, None], h[None])[1][0], expected)


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("residual", [False, True])
def test_stepwise_equals_the_whole_sequence(cell, residual):
    model = RNN(2, 20, 2, cell=cell, num_layers=2, residual=residual, mean=[1.0, -2.0], std=[3.0, 0.5])
    x, hidden, steps = torch.randn(3, 9, 2), None, []
    for time in range(9):
        prediction, hidden = model(x[:, time : time + 1], hidden)
        steps.append(prediction)
    whole, last = model(x)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)
    torch.testing.assert_close(hidden, last)


def test_predicts_in_the_units_that_it_is_given():
    plain, scaled = RNN(1, 10, 1), RNN(1, 10, 1, mean=100.0, std=20.0)
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 1)
    torch.testing.assert_close(scaled(x * 20 + 100)[0], plain(x)[0] * 20 + 100, rtol=1e-5, atol=1e-4)


def test_residual_adds_the_change():
    model = RNN(1, 10, 1, residual=True, mean=5.0, std=2.0)
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias, 0.5)
    x = torch.randn(2, 5, 1)
    torch.testing.assert_close(model(x)[0], x + 0.5 * 2)


def test_forecast_feeds_its_own_predictions():
    model, past = RNN(2, 10, 2), torch.randn(3, 6, 2)
    rows = past
    for _ in range(4):
        rows = torch.cat([rows, model(rows)[0][:, -1:]], dim=1)
    torch.testing.assert_close(model.forecast(past, 4), rows[:, 6:])


@pytest.mark.parametrize("unknown", [0, 1, 3])
def test_predict_step_looks_one_step_ahead_while_it_can_then_runs_free(unknown):
    model, series = RNN(1, 10, 1).eval(), torch.randn(1, 12, 1)
    future = series[:, 4:].clone()
    future[:, 8 - unknown :] = torch.nan
    found = model.continue_series(series[:, :4], future)
    torch.testing.assert_close(found[:, : 8 - unknown], model(series)[0][:, 3 : 11 - unknown])
    torch.testing.assert_close(
        found[:, 8 - unknown :], model.forecast(series[:, : 12 - unknown], unknown or 1)[:, :unknown]
    )


def test_dropout_reaches_a_single_layer_and_goes_between_several():
    x = torch.randn(2, 5, 1)
    for layers in (1, 2):
        model = RNN(1, 50, 1, dropout=0.5, num_layers=layers)
        assert not torch.equal(model(x)[0], model(x)[0])
        assert torch.equal(model.eval()(x)[0], model(x)[0])
    assert model.rnn.dropout == 0.5


def windows(count=6, window=5, horizon=3, columns=1):
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(count, window + horizon, columns, generator=draw) * 4 + 10
    return StackDataset(rows[:, :window], rows[:, window:])


def test_errors_are_right_over_all_windows():
    # 6 windows in batches of 4 and 2, so that a mean of batches would differ.
    model = RNN(1, 10, 1, mean=10.0, std=4.0, optimizer=partial(torch.optim.SGD, lr=0.0))
    data = windows()
    trainer = Trainer(max_epochs=1, accelerator="cpu", **QUIET)
    trainer.fit(model, DataLoader(data, batch_size=4), DataLoader(data, batch_size=4))
    past, future = data[:]
    with torch.no_grad():
        ahead = model(torch.cat([past, future], dim=1))[0][:, 4:7]
        free = model.forecast(past, 3)
    loss = (((ahead - future) / 4) ** 2).mean().item()
    found = trainer.callback_metrics
    assert found["val/loss"] == pytest.approx(loss, rel=1e-4)
    assert found["train/loss"] == pytest.approx(loss, rel=1e-4)
    assert found["val/nrmse"] == pytest.approx(loss**0.5, rel=1e-4)
    assert found["val/nrmse_free"] == pytest.approx((((free - future)[:, -1] / 4) ** 2).mean().sqrt().item(), rel=1e-4)


def test_the_past_only_warms_up():
    model = RNN(1, 10, 1)
    model.log_loss = lambda loss: None
    past, future = windows()[:]
    loss = model.training_step((past, future), 0)
    # The same windows, a row of the past far off: it moves the predictions, but its own error is not counted.
    far = past.clone()
    far[:, 2] += 1000
    assert model.training_step((far, future), 0) < 100 * loss


def test_every_parameter_gets_a_gradient_and_one_batch_is_learnt():
    torch.manual_seed(0)
    model, batch = RNN(2, 50, 2, mean=10.0, std=4.0), windows(columns=2)[:]
    model.log_loss = lambda loss: None
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(300):
        optimizer.zero_grad()
        loss = model.training_step(batch, 0)
        loss.backward()
        if not step:
            assert all(weight.grad.any() for weight in model.parameters())
        optimizer.step()
    assert loss < 0.01


def test_scale_comes_from_the_data_and_travels_with_the_checkpoint(tmp_path):
    data = TimeSeriesDataModule(length=1000)
    model = RNN()
    trainer = Trainer(max_steps=2, accelerator="cpu", limit_val_batches=1, default_root_dir=tmp_path, **QUIET)
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(tmp_path / "rnn.ckpt")
    assert model.normalize.mean.tolist() == pytest.approx(data.mean)
    loaded = RNN.load_from_checkpoint(tmp_path / "rnn.ckpt", weights_only=True).cpu()
    past = data.series[None, :50]
    assert torch.equal(loaded.forecast(past, 5), model.cpu().forecast(past, 5))
    # Other data do not change the scale that it was trained with.
    other = copy.deepcopy(loaded)
    trainer.validate(other, datamodule=TimeSeriesDataModule(length=1000, series_seed=5))
    assert torch.equal(other.cpu().normalize.std, loaded.normalize.std)


def test_columns_that_do_not_fit_are_refused(tmp_path):
    trainer = Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, **QUIET)
    for model in (RNN(3, output_dim=3), RNN(1, output_dim=2)):
        with pytest.raises(ValueError, match=r"1 column.*set .*model.output_dim to 1"):
            trainer.fit(model, datamodule=TimeSeriesDataModule(length=1000))
    with pytest.raises(ValueError, match=r"residual: output_dim \(2\) and known_dim \(0\) must not be more than"):
        RNN(1, output_dim=2, residual=True)
    with pytest.raises(ValueError, match=r"known_dim: output_dim \(1\) and known_dim \(2\) must not be more than"):
        RNN(2, output_dim=1, known_dim=2)
    with pytest.raises(ValueError, match="must be above 0"):
        RNN(std=0.0)
    with pytest.raises(ValueError, match="mean has 3 numbers"):
        RNN(2, output_dim=2, mean=[1.0, 2.0, 3.0])


def test_predict_writes_time_truth_and_forecast_in_the_files_units(tmp_path):
    rows = [(f"2024-01-{day:02}", 50 + 10 * (day % 3), -1000 + day) for day in range(1, 32)]
    (tmp_path / "series.csv").write_text("day;sales;stock\n" + "\n".join(f"{a};{b};{c}" for a, b, c in rows))
    flags = [
        f"--data.path={tmp_path / 'series.csv'}",
        "--data.time_column=day",
        "--data.context_length=3",
        "--data.horizon=2",
    ]
    flags += ["--model.scale=series", "--model.input_dim=2", "--model.output_dim=2"]
    flags += [f"--trainer.default_root_dir={tmp_path / 'logs'}"]
    assert cli.main(["fit", f"--config={ROOT / 'configs/rnn_csv.yaml'}", *flags, "--trainer.max_epochs=1"]) == 0
    last = next((tmp_path / "logs").rglob("last.ckpt"))
    output = tmp_path / "forecast.csv"
    assert cli.main(["predict", f"--ckpt_path={last}", f"--output={output}"]) == 0
    with output.open() as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["time", "sales", "sales_forecast", "stock", "stock_forecast"]
    assert [row["time"] for row in found] == [*(day for day, _, _ in rows[-5:]), "2024-02-01", "2024-02-02"]
    assert [row["sales"] for row in found] == [*(str(sales) for _, sales, _ in rows[-5:]), "", ""]
    assert all(0 < float(row["sales_forecast"]) < 120 and -1100 < float(row["stock_forecast"]) < -900 for row in found)
    series_file = tmp_path / "series.csv"
    before = series_file.read_text()
    assert cli.main(["predict", f"--ckpt_path={last}", f"--output={series_file}"]) == 1
    assert series_file.read_text() == before
    model = RNN.load_from_checkpoint(last, weights_only=True).cpu().eval()
    series = torch.tensor([(b, c) for _, b, c in rows], dtype=torch.float32)[None]
    with torch.no_grad():
        ahead, free = model(series[:, 23:])[0][0, 2:], model.forecast(series[:, 23:], 2)[0]
    stock = [float(row["stock_forecast"]) for row in found]
    assert stock == pytest.approx([*ahead[:5, 1].tolist(), *free[:, 1].tolist()], rel=1e-5)


def test_numbers_are_written_with_no_more_and_no_less_digits_than_float32_has():
    assert [format_cell(np.float32(value)) for value in (0.1, 60.0, 12346348.0, -1e-7, math.nan)] == [
        "0.1",
        "60",
        "12346348",
        "-0.0000001",
        "nan",
    ]


@pytest.mark.parametrize(("by", "order"), [("row", "rows"), ("pixel", "pixels"), ("permuted_pixel", "permuted")])
def test_classifier_reads_the_image_in_its_order(by, order):
    model, images = RNNClassifier(in_channels=2, image_size=6, scan_order=by), torch.rand(3, 2, 6, 6)
    seen = []
    model.rnn.register_forward_hook(lambda layer, args, output: seen.append(args[0]))
    model(images)
    sequence = seen[0]
    if order == "rows":
        assert sequence.shape == (3, 6, 12)
        assert torch.equal(sequence[1, 4], torch.cat([images[1, 0, 4], images[1, 1, 4]]))
        return
    assert sequence.shape == (3, 36, 2)
    place = int(model.order[20]) if order == "permuted" else 20
    assert torch.equal(sequence[1, 20], images[1, :, place // 6, place % 6])


def test_permutation_is_drawn_once_and_travels_with_the_weights():
    model, other = (
        RNNClassifier(scan_order="permuted_pixel"),
        RNNClassifier(scan_order="permuted_pixel", permutation_seed=1),
    )
    assert torch.equal(model.order, RNNClassifier(scan_order="permuted_pixel").order)
    assert model.order.sort().values.tolist() == list(range(784))
    assert not torch.equal(model.order, other.order)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.order, other.order)


def test_pixel_reader_has_the_papers_size():
    model = RNNClassifier(scan_order="pixel", hidden_dim=150)
    assert 65_000 < sum(weight.numel() for weight in model.parameters()) < 75_000


def learnt(config, epochs, tmp_path):
    """The test metrics of a config from the command line, trained for fewer epochs than it states."""
    flags = [f"--trainer.max_epochs={epochs}", f"--trainer.default_root_dir={tmp_path}"]
    command = cli.CLI(["fit", f"--config={ROOT / 'configs' / config}", *flags])
    return command.trainer.test(command.model, datamodule=command.datamodule)[0]


@pytest.mark.slow
def test_rows_of_mnist_are_learnt(tmp_path):
    assert learnt("rnn_mnist.yaml", 3, tmp_path)["test/accuracy"] >= 0.975


@pytest.mark.slow
def test_mackey_glass_is_forecast(tmp_path):
    found = learnt("rnn_mackey_glass.yaml", 5, tmp_path)
    assert found["test/nrmse"] <= 0.001
    assert found["test/nrmse_free"] <= 0.05
