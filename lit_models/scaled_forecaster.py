"""What stands around a forecaster's layers: the scale of each window, a season, an autoregression, and quantiles.

Rows `(batch, time, input_dim)` and a state -> predictions `(batch, time, output_dim)` of the rows after each, and the
new state.

Forecasts of series with a trend and a season need a scale of each window (Kim et al., "Reversible instance
normalization for accurate time-series forecasting against distribution shift", 2022), the row a season ago, and a
linear autoregression beside the layers (Lai et al., "Modeling long- and short-term temporal patterns with deep neural
networks", 2018).
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_models.forecaster import Forecaster, State, window_scale
from lit_models.layers import Hidden, Stateful
from lit_models.module import ExportSpec, TensorSpec
from lit_models.training.quantiles import window_error

GAIN = 10  # of `damping`: Adam moves all parameters equally far in a step, and this one has further to go


class ScaledForecaster(Forecaster):
    """The base of forecasters of layers: a subclass makes these, then `add_head`, and gives their `features`."""

    def add_head(self, width: int) -> None:
        """Makes what stands behind the layers, whose features are so wide, and beside them: after they are made."""
        hp = self.hparams
        forecasts = {"residual": hp.residual, "scale": hp.scale == "window", "log": hp.log, "season": hp.season != 1}
        forecasts |= {"ar_order": hp.ar_order > 0, "free_running": hp.free_running}
        forecasts |= {"quantiles": hp.quantiles is not None, "known_dim": hp.known_dim > 0}
        wrong = [name for name, on in forecasts.items() if on]
        if hp.output_dim + hp.known_dim > hp.input_dim and wrong:
            raise ValueError(
                f"{wrong[0]}: output_dim ({hp.output_dim}) and known_dim ({hp.known_dim}) must not be more than "
                f"input_dim ({hp.input_dim})"
            )
        self.head = nn.Linear(width, hp.output_dim * len(hp.quantiles or [0.5]))
        if hp.ar_order:
            self.ar = nn.Linear(hp.ar_order, 1, bias=False)
            for weight in (self.ar.weight, *self.head.parameters()):
                nn.init.zeros_(weight)
        self.damping = nn.Parameter(torch.zeros(())) if hp.residual and hp.ar_order else None

    @abstractmethod
    def features(self, inputs: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Features `(batch, time, width)` of `(batch, time, inputs)`, scaled, and what the layers keep of them."""

    @property
    @abstractmethod
    def hidden_spec(self) -> dict[str, TensorSpec]:
        """What the layers keep, by name; the second axis is the batch."""

    @property
    def inputs(self) -> int:
        """Number of columns that the layers see."""
        return self.hparams.input_dim + (0 if self.hparams.season == 1 else self.hparams.output_dim)

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
        features, hidden = self.features(inputs.to(self.normalize.dtype), hidden)
        heads = self.head(features)
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

    @override
    def export_spec(self) -> ExportSpec:
        """Prediction and new state from rows and state, for any number of rows."""
        hp, scale = self.hparams, self.normalize
        state = dict(self.hidden_spec)
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
