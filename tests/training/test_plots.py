import pytest
import torch
from conftest import ROOT
from lightning import Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, StackDataset

from lit_models import CNN, RNN
from lit_models.cli import main as cli
from lit_models.training import figures
from lit_models.training.plots import EvaluationPlots, ForecastPlots, filter_sheet


def test_filters_stand_side_by_side_each_from_black_to_white():
    weights = torch.randn(64, 3, 7, 7)
    sheet = filter_sheet(weights)
    assert sheet.shape == (3, 8 * 60 + 4, 8 * 60 + 4)  # 7 pixels, 8 times as large, and 4 to the next
    shown = sheet[:, 4 + 60 : 60 + 60 : 8, 4 + 120 : 60 + 120 : 8]  # second row, third column
    chosen = weights[8 + 2]
    torch.testing.assert_close(shown, (chosen - chosen.min()) / (chosen.max() - chosen.min()), atol=1e-4, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_filters_of_any_number_of_channels(channels):
    layer = next(layer for layer in CNN(in_channels=channels).modules() if isinstance(layer, torch.nn.Conv2d))
    assert filter_sheet(layer.weight.detach()).shape[0] == 3


def test_error_is_that_of_each_row_ahead_over_all_windows():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 9, 2, generator=draw) * 5
    data = StackDataset(rows[:, :5], rows[:, 5:])
    model, callback = RNN(2, 10, 2, std=[5.0, 2.0]), ForecastPlots()
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    Trainer(accelerator="cpu", callbacks=[callback], **options).test(
        model, DataLoader(data, batch_size=3), verbose=False
    )
    with torch.no_grad():
        error = (model.forecast(rows[:, :5], 4) - rows[:, 5:]) / torch.tensor([5.0, 2.0])
    torch.testing.assert_close(callback.errors.compute(), error.square().mean(dim=(0, 2)).sqrt())
    for shown, first in zip(callback.first, (rows[0, :5], rows[0, 5:]), strict=False):
        assert torch.equal(shown, first)


def test_forecast_begins_where_the_truth_is_last_known():
    past, future = torch.arange(4.0)[:, None], torch.arange(4.0, 7.0)[:, None]
    bands = torch.stack([future - 2, future + 1, future + 3], dim=1)
    figure = figures.plot_forecast(past, future, future + 1, {"seasonal_naive": future - 1}, ["sales"], bands)
    truth, simple, ahead, border = figure.axes[0].get_lines()
    assert (simple.get_label(), ahead.get_label()) == ("seasonal naive", "forecast")
    assert simple.get_xydata().tolist() == [[-1, 3], [0, 3], [1, 4], [2, 5]]
    assert truth.get_xydata().tolist() == [[row - 4, row] for row in range(7)]
    assert ahead.get_xydata().tolist() == [[-1, 3], [0, 5], [1, 6], [2, 7]]
    assert border.get_xdata()[0] == -0.5
    (band,) = figure.axes[0].collections
    assert {(0, 2), (0, 7), (2, 4), (2, 9)} <= {tuple(point) for point in band.get_paths()[0].vertices.tolist()}
    assert figure.axes[0].get_ylabel() == "sales"


def test_horizon_shows_a_point_a_row():
    line = figures.plot_error_by_horizon(torch.tensor([0.1, 0.2, 0.4])).axes[0].get_lines()[0]
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.4])


def test_classifiers_and_forecasters_get_their_own_pictures_only(tmp_path):
    flags = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", f"--trainer.default_root_dir={tmp_path}"]
    command = cli.CLI(["fit", f"--config={ROOT / 'configs' / 'rnn_mnist.yaml'}", *flags])
    kinds = {type(callback).__name__ for callback in command.trainer.callbacks}
    assert {"ClassificationPlots", "ForecastPlots"} & kinds == {"ClassificationPlots"}
    off = cli.CLI(["fit", f"--config={ROOT / 'configs' / 'rnn_mnist.yaml'}", *flags, "--trainer.logger=false"])
    assert not {"ClassificationPlots", "ForecastPlots"} & {
        type(callback).__name__ for callback in off.trainer.callbacks
    }


def test_a_horizon_of_one_row(tmp_path):
    flags = [
        "--data.horizon=1",
        "--data.length=1000",
        "--trainer.max_steps=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert cli.main(["fit", f"--config={ROOT / 'configs' / 'rnn_mackey_glass.yaml'}", *flags]) == 0


def test_mistakes_of_images_without_colours():
    wrong = (torch.tensor([0.9]), torch.tensor([1]), torch.tensor([0]), torch.rand(1, 2, 8, 8))
    assert len(figures.plot_misclassified(*wrong, ["cat", "dog"]).axes[0].texts) == 1


BREEDS = [
    "Staffordshire_bullterrier",
    "American_Staffordshire_terrier",
    "German_short-haired_pointer",
    "STAFFORDSHIRE_BULLTERRIER",
]


@pytest.mark.parametrize("names", [["0", "1"], ["plane", "horse"], ["automobile", "motorcycle", "dog"], BREEDS])
@pytest.mark.parametrize("count", [1, 4, 20])
def test_captions_of_mistakes_do_not_overprint_one_another(names, count):
    labels = torch.arange(count) % len(names)
    images = torch.rand(count, 3, 32, 32)
    predicted = (labels + 1) % len(names)
    figure = figures.plot_misclassified(torch.ones(count), predicted, labels, images, names)
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in (*figure.axes[0].texts, figure.axes[0].title)]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
    shown = figure.axes[0].get_window_extent().width / len(names)
    assert shown > 20  # pixels: the captions have not shrunk the images
    first, last = names[predicted[0]][:10], names[predicted[0]][-10:]
    assert figure.axes[0].texts[0].get_text().startswith(first)
    assert last in figure.axes[0].texts[0].get_text()


def test_names_are_shown_as_they_are():
    names = ["$a_$", "b\udcff"]
    figure = figures.plot_confusion_matrix(torch.eye(2), names)
    figure.canvas.draw()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [r"\$a_\$", "b?"]


@pytest.mark.parametrize(("seconds", "drawn"), [(1e6, [1, 4]), (0.0, [1, 2, 3, 4])])
def test_pictures_of_a_validation_are_left_out_where_they_cost_too_much(seconds, drawn, tmp_path, monkeypatch):
    write = EvaluationPlots._draw_timed

    def costly(self, *args):
        write(self, *args)
        self.seconds = seconds

    monkeypatch.setattr(EvaluationPlots, "_draw_timed", costly)
    flags = ["--trainer.max_epochs=4", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    config = f"--config={ROOT / 'configs' / 'mnist.yaml'}"
    assert cli.main(["fit", config, *flags, f"--trainer.default_root_dir={tmp_path}"]) == 0
    board = EventAccumulator(str(tmp_path / "mnist" / "version_0"), size_guidance={"images": 0}).Reload()
    # The first, since nothing is known of their cost, and the last.
    assert [event.step for event in board.Images("val/confusion")] == [2 * epoch - 1 for epoch in drawn]
    assert len(board.Scalars("val/accuracy")) == 4


def test_own_plots_of_a_config_take_the_place_of_the_models(tmp_path, capsys):
    own = "class_path: lit_models.training.plots.ClassificationPlots, init_args: {misclassified: 3}"
    (tmp_path / "own.yaml").write_text(f"trainer: {{callbacks: [{{{own}}}]}}")
    flags = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", f"--trainer.default_root_dir={tmp_path}"]
    config = [f"--config={ROOT / 'configs' / 'mnist.yaml'}", f"--config={tmp_path / 'own.yaml'}"]
    command = cli.CLI(["fit", *config, *flags])
    plots = [callback for callback in command.trainer.callbacks if isinstance(callback, EvaluationPlots)]
    assert [plot.misclassified for plot in plots] == [3]
    printed = capsys.readouterr().out.splitlines()[-1].split()
    assert printed[:5] == ["python", "-m", "lit_models", "test", "--ckpt_path"]
    assert len(printed) == 6  # it needs no --modules
    assert cli.main(["fit", "--ckpt_path", printed[5]]) == 0
