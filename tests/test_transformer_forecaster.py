"""The Transformer's blocks as a forecaster."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer, seed_everything
from torch import nn

from datamodules import TimeSeriesDataModule
from lit_models import Transformer, TransformerForecaster

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def drawn(**options):
    """A small one whose branches and head do something."""
    torch.manual_seed(0)
    model = TransformerForecaster(**{"dim": 16, "depth": 2, "heads": 2, "mean": 5.0, "std": 2.0} | options).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.3)
    return model


def test_rows_of_one_hot_tokens_give_what_the_language_model_does():
    model, text = drawn(input_dim=7, output_dim=7, mean=0.0, std=1.0), Transformer(7, 12, 16, 2, 2).eval()
    model.embedding.bias.data.zero_()
    model.head.bias.data.zero_()
    own = model.state_dict() | {"embedding.weight": model.embedding.weight.T}
    text.load_state_dict({name: own[name] for name in text.state_dict()})
    tokens = torch.randint(0, 7, (3, 12))
    torch.testing.assert_close(model(F.one_hot(tokens, 7).float())[0], text(tokens), atol=1e-5, rtol=1e-5)


def test_the_future_does_not_reach_the_past():
    model, x = drawn(), torch.randn(2, 20, 1)
    changed = x.clone()
    changed[:, 12:] += 3.0
    assert torch.equal(model(x)[0][:, :12], model(changed)[0][:, :12])
    assert not torch.equal(model(x)[0][:, 12:], model(changed)[0][:, 12:])


@pytest.mark.parametrize(
    "options", [{}, {"scale": "window"}, {"season": 3, "ar_order": 2}, {"log": True, "quantiles": [0.1, 0.5, 0.9]}]
)
def test_rows_after_a_state_are_the_same_one_by_one_and_together(options):
    model, x = drawn(residual=True, **options), torch.rand(3, 20, 1) + 4.0
    first, start = model(x[:, :9])
    together, _ = model(x[:, 9:], start)
    found, state = [], start
    for row in range(9, 20):
        prediction, state = model(x[:, row : row + 1], state)
        found.append(prediction)
    torch.testing.assert_close(torch.cat(found, dim=1), together, atol=1e-5, rtol=1e-5)
    if not model.memory:  # else the scale, which the state keeps, is that of the first rows alone
        torch.testing.assert_close(torch.cat([first, together], dim=1), model(x)[0], atol=1e-5, rtol=1e-5)


def test_a_row_of_a_long_series_is_forecast_from_the_rows_of_a_context():
    model, series = drawn(), torch.randn(1, 60, 1)
    context, target = series[:, :10], series[:, 10:].clone()
    found = model.continue_series(context, target)
    torch.testing.assert_close(found[:, 30:31], model(series[:, 30:40])[0][:, -1:], atol=1e-5, rtol=1e-5)
    target[:, 40:] = float("nan")
    free = model.continue_series(context, target)[:, 40:]
    torch.testing.assert_close(free, model.forecast(series[:, 40:50], 10), atol=1e-5, rtol=1e-5)


def test_it_learns_to_forecast():
    seed_everything(0)
    data = TimeSeriesDataModule(length=1000, context_length=30, horizon=10, season=1)
    model = TransformerForecaster(dim=16, heads=2, residual=True, optimizer=partial(torch.optim.AdamW, lr=3e-3))
    trainer = Trainer(accelerator="cpu", max_epochs=4, num_sanity_val_steps=0, **QUIET)
    trainer.fit(model, datamodule=data)

    assert trainer.callback_metrics["val/skill"] > 0.3  # of the error of the best simple forecast


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"dim is 20, which 3 heads do not divide: set dim to 21"):
        TransformerForecaster(dim=20, heads=3)
    with pytest.raises(ValueError, match=r"dim is 6, 3 for each head: rotary positions need an even number"):
        TransformerForecaster(dim=6, heads=2)
