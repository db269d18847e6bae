"""The article's recurrent network, a GRU and a linear layer, as a forecaster: one step ahead or free-running.

Sequences `(batch, time, input_dim)` and a hidden state -> predictions `(batch, time, output_dim)` and the new state.

The cells and their papers are in `lit_models.layers.make_rnn`. The article's module is the bare network; scaling, the
residual connection, and training on windows with a warm-up of the hidden state are added here. So is what forecasts of
series with a trend and a season need: a scale of each window (Kim et al., "Reversible instance normalization for
accurate time-series forecasting against distribution shift", 2022), the row a season ago, and a linear autoregression
beside the recurrent layers (Lai et al., "Modeling long- and short-term temporal patterns with deep neural networks",
2018).
"""

from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lit_models.common.arguments import NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval, check_arguments
from lit_models.forecaster import Forecaster, State, window_scale
from lit_models.layers import Cell, Stateful, make_rnn
from lit_models.module import ExportSpec, TensorSpec
from lit_models.training.quantiles import window_error
from lit_models.training.schedule import LRSchedulerCallable

GAIN = 10  # of `damping`: Adam moves all parameters equally far in a step, and this one has further to go


class RNN(Forecaster):
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
        forecasts = {"residual": residual, "scale": scale == "window", "log": log, "season": season != 1}
        forecasts |= {"ar_order": ar_order > 0, "free_running": free_running, "quantiles": quantiles is not None}
        forecasts |= {"known_dim": known_dim > 0}
        if output_dim + known_dim > input_dim and (wrong := [name for name, on in forecasts.items() if on]):
            raise ValueError(
                f"{wrong[0]}: output_dim ({output_dim}) and known_dim ({known_dim}) must not be more than input_dim "
                f"({input_dim})"
            )
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.example_input_array = torch.ones(1, 10, input_dim)
        inputs = input_dim + (0 if season == 1 else output_dim)
        self.rnn = make_rnn(cell, inputs, hidden_dim, num_layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, output_dim * len(quantiles or [0.5]))
        if ar_order:
            self.ar = nn.Linear(ar_order, 1, bias=False)
            for weight in (self.ar.weight, *self.head.parameters()):
                nn.init.zeros_(weight)
        self.damping = nn.Parameter(torch.zeros(())) if residual and ar_order else None

    @property
    def season(self) -> int:
        """Number of rows of a season, 1 if there is none."""
        return self.hparams.season or 1

    @property
    def kept(self) -> int:
        """Number of rows before the current one that the network sees."""
        return max(self.season if self.season > 1 else 0, self.hparams.ar_order - 1)

    @property
    @override
    def memory(self) -> dict[str, int]:
        """What the state holds beside the hidden state, by name, with its number of rows."""
        windowed = {"level": 1, "spread": 1} if self.hparams.scale == "window" else {}
        error = {"error": 1} if self.hparams.quantiles else {}
        return ({"rows": self.kept} if self.kept else {}) | windowed | error

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Predictions `(batch, time, output_dim)` of the row after each of `x`, `(batch, time, input_dim)`, and state.

        With quantiles, predictions are `(batch, time, quantiles, output_dim)`. The state continues after the last row;
        without one, it starts at zero, and a window's scale and errors are those of `x`.
        """
        hp, kept, season = self.hparams, self.kept, self.season
        rows, hidden, memory = self.to_scale(x), state, {}
        scaled, others = rows[:, :, : hp.output_dim], rows[:, :, hp.output_dim :]
        if self.memory:
            hidden, values = (None, self.empty_memory(x)) if state is None else state
            memory = dict(zip(self.memory, values, strict=True))
        if hp.scale == "window":
            scaled = (scaled - memory["level"]) / memory["spread"]
        rows = torch.cat([memory["rows"], scaled], dim=1) if kept else scaled

        def ago(lag: int) -> Tensor:
            return rows[:, kept - lag : rows.shape[1] - lag]

        inputs = [scaled] + [ago(season - 1)] * (hp.season != 1) + [others] * (others.shape[2] > 0)
        inputs = torch.cat(inputs, dim=2) if len(inputs) > 1 else scaled
        features, hidden = self.rnn(inputs.to(self.normalize.dtype), hidden)  # (batch, time, hidden_dim)
        heads = self.head(self.dropout(features))
        if hp.quantiles:
            heads = heads.unflatten(2, (len(hp.quantiles), hp.output_dim))
        parts = [self.point(heads)]
        if hp.ar_order:
            latest = rows[:, kept - hp.ar_order + 1 :].unfold(1, hp.ar_order, 1)  # (batch, time, output_dim, ar_order)
            latest = latest.to(self.normalize.dtype).contiguous()  # otherwise an export fixes the number of rows
            parts.append(self.ar(latest)[..., 0])
        if hp.residual:
            change = scaled - ago(season) if season > 1 else scaled
            change = change if self.damping is None else change * (1 - GAIN * self.damping)
            parts.append(change + ago(season - 1) if season > 1 else change)
        prediction = sum(parts[1:], parts[0])
        if hp.quantiles:
            distances = heads - parts[0].unsqueeze(2) + self.normal[:, None]
            prediction = prediction.unsqueeze(2) + distances * memory["error"].unsqueeze(2)
        if hp.scale == "window":
            level, spread = (
                memory[name].unsqueeze(2) if hp.quantiles else memory[name] for name in ("level", "spread")
            )
            prediction = prediction * spread + level
        if hp.output_dim <= hp.input_dim:
            prediction = self.from_scale(prediction)
        if kept:
            memory = memory | {"rows": rows[:, -kept:]}
        return prediction, (hidden, tuple(memory.values())) if memory else hidden

    def empty_memory(self, x: Tensor) -> tuple[Tensor, ...]:
        """What the state holds beside the hidden state before a window `(batch, time, input_dim)`."""
        scaled = self.to_scale(x[:, :, : self.hparams.output_dim])
        memory = [scaled.new_zeros(scaled.shape[0], self.kept, scaled.shape[2])] if self.kept else []
        if self.hparams.scale == "window":
            level, spread = window_scale(scaled)
            memory += [level, spread]
            scaled = (scaled - level) / spread
        if self.hparams.quantiles:
            memory.append(window_error(scaled, {1, self.season} if self.hparams.residual else ()))
        return tuple(memory)

    def export_spec(self) -> ExportSpec:
        """Prediction and new state from rows and state, for any number of rows."""
        hp, scale = self.hparams, self.normalize
        state = dict.fromkeys(
            ("hidden", "cell") if hp.cell == "lstm" else ("hidden",),
            TensorSpec((hp.num_layers, "batch", hp.hidden_dim), torch.float32),
        )
        for name, rows in self.memory.items():
            state[name] = TensorSpec(
                ("batch", rows, hp.output_dim), torch.float32, *((1.0, 0.1) if name in ("spread", "error") else ())
            )
        std = scale.std.clone()
        if hp.log:  # of positive values
            std[: hp.output_dim] = torch.minimum(std, scale.mean / 8)[: hp.output_dim]
        inputs = {"x": TensorSpec(("batch", "time", hp.input_dim), torch.float32, scale.mean, std)} | state
        several = [len(hp.quantiles)] if hp.quantiles else []
        outputs = {"prediction": TensorSpec(("batch", "time", *several, hp.output_dim), torch.float32)}
        return ExportSpec(Stateful(self), inputs, outputs | {f"new_{name}": one for name, one in state.items()})
