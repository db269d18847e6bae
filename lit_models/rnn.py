"""The article's recurrent network, a GRU and a linear layer, as a forecaster: one step ahead or free-running.

Sequences `(batch, time, input_dim)` and a hidden state -> predictions `(batch, time, output_dim)` and the new state.

The cells and their papers are in `lit_models.layers.make_rnn`. The article's module is the bare network; scale,
residual connection, season, autoregression, and training on windows with a warm-up of the hidden state are those of
every `ScaledForecaster`.
"""

from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lit_models.common.arguments import NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval, check_arguments
from lit_models.layers import Cell, Hidden, make_rnn
from lit_models.module import TensorSpec
from lit_models.scaled_forecaster import ScaledForecaster
from lit_models.training.schedule import LRSchedulerCallable


class RNN(ScaledForecaster):
    """Recurrent layers and a linear layer over a series in its own units, each prediction being the next row.

    The first `output_dim` columns of a row are forecast. Of the others, which are only inputs, the last `known_dim` are
    known ahead, as a holiday is, and each row holds those of the row after it. What is not known ahead stays, in a
    free-running forecast, as it last was. How it is trained, and its errors: see `Forecaster`.

    Args:
        input_dim: Number of columns of the series, all together.
        hidden_dim: Hidden size.
        output_dim: Number of predicted columns, the first ones of the series. If there are more than it has, this is a
            bare network: `mean` and `std` are of its input alone, and it has no training of its own.
        known_dim: Number of columns that are known one row ahead, the last ones.
        cell: Kind of recurrent layer.
        num_layers: Number of recurrent layers.
        dropout: Probability of dropping a feature after each recurrent layer.
        residual: Predict the change from the current row to the next; with a season, by how much it differs from the
            change a season ago. Better for smooth series, and where there is a trend.
        scale: Scale by the mean and standard deviation of the `series` alone, or the forecast columns also by those of
            each `window`'s context, so that a forecast follows levels that the training rows never had.
        log: Forecast the logarithm of the columns, whose values must be positive: for swings that grow with the level.
        season: Number of rows of a season; the network sees the row a season before the one that it predicts, too. The
            data module's, if None, where it has one; 1 is none.
        ar_order: Number of latest rows that a linear autoregression, which is added to the recurrent layers, sees of
            each column; 0 is none. With it, both begin at zero, so that training starts from the `residual` alone,
            whose part of the current row is damped as far as that helps.
        free_running: Train on the free-running forecast, instead of one step ahead.
        criterion: Training loss, the mean squared or the mean absolute error.
        quantiles: Levels of quantiles to forecast, in order, among them 0.5, the point forecast: [0.1, 0.5, 0.9] for an
            interval that holds 80%. Their distances from the median begin as those of a normal distribution as wide as
            the errors of the `residual` alone over the window, and are trained on the pinball loss one step ahead
            (Koenker and Bassett, "Regression quantiles", 1978), to which the criterion of the `free_running` median is
            added. Point forecasts alone, if not given.
        mean: Mean of the series, a number or one for each column, those too that are only inputs. The data module's, if
            not given, else 0.
        std: Standard deviation of the series, likewise. The data module's, if not given, else 1.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.

    Raises:
        ValueError: An argument is out of range; the numbers of columns don't fit each other or the data's.
    """

    def __init__(
        self,
        input_dim: PositiveInt = 1,
        hidden_dim: PositiveInt = 100,
        output_dim: PositiveInt = 1,
        known_dim: NonNegativeInt = 0,
        cell: Cell = "gru",
        num_layers: PositiveInt = 1,
        dropout: UnitInterval = 0.0,
        residual: bool = False,
        scale: Literal["series", "window"] = "series",
        log: bool = False,
        season: PositiveInt | None = 1,
        ar_order: NonNegativeInt = 0,
        free_running: bool = False,
        criterion: Literal["mse", "mae"] = "mse",
        quantiles: list[float] | None = None,
        mean: float | list[float] | None = None,
        std: PositiveFloat | list[PositiveFloat] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=3e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_arguments(RNN, locals())
        super().__init__(input_dim, output_dim, log, quantiles, mean, std, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.example_input_array = torch.ones(1, 10, input_dim)
        self.rnn = make_rnn(cell, self.inputs, hidden_dim, num_layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.add_head(hidden_dim)

    @property
    @override
    def hidden_spec(self) -> dict[str, TensorSpec]:
        hp = self.hparams
        names = ("hidden", "cell") if hp.cell == "lstm" else ("hidden",)
        return dict.fromkeys(names, TensorSpec((hp.num_layers, "batch", hp.hidden_dim), torch.float32))

    @override
    def features(self, inputs: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        features, hidden = self.rnn(inputs, hidden)
        return self.dropout(features), hidden
