"""The base of all forecasters: scale, training on windows, free-running forecasts and their errors.

Rows `(batch, time, input_dim)` and a state -> predictions `(batch, time, output_dim)` of the rows after each, and the
new state.

Legend: context, horizon - number of rows that are looked back on, and that are forecast; a row is scaled by the series'
mean and standard deviation, and then by those of its window.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lit_models.common.arguments import plain_value
from lit_models.layers import Hidden, Normalize
from lit_models.module import LitModule
from lit_models.training.baselines import baselines
from lit_models.training.data_checks import check_window, context_and_target, match_columns
from lit_models.training.means import EpochMeans
from lit_models.training.plots import ForecastPlots
from lit_models.training.predictions import time_rows
from lit_models.training.quantiles import draw_rows, pinball
from lit_models.training.schedule import LRSchedulerCallable

Window = tuple[Tensor, Tensor]  # context (batch, context, input_dim) and target (batch, horizon, input_dim)
Choose = Callable[[Tensor], Tensor]  # makes the rows (batch, rows, output_dim) that are fed back, of predictions
State = Hidden | tuple[Hidden, tuple[Tensor, ...]]  # the hidden state, and what `memory` names, if that is anything
BASELINES = ("persistence", "drift", "seasonal_naive")
PATHS = 100  # that quantiles are taken of
CHUNK = 1024  # windows that are forecast at once
FLAT = 1e-5  # added to the variance of a window, as in Kim et al., since it may be 0


class Forecaster(LitModule):
    """The base of the forecasters: a subclass adds layers, a `forward` from rows and state, and its `memory`.

    Training is one step ahead on windows, or `free_running`: the context only warms up the hidden state, the loss is
    over the target. Validation and test also forecast free-running, with predictions fed back. Errors are in units of
    `std`: `loss` is the mean squared error one step ahead, `nrmse` its root, `nrmse_free` the root mean squared error
    of the free-running forecast at the last row of the horizon.

    `mase` is the mean absolute error of the free-running forecast over all rows of the horizon, divided by that of
    forecasting the training rows one step ahead by the row a season before (Hyndman and Koehler, "Another look at
    measures of forecast accuracy", 2006). The same of the baselines (`lit_models.training.baselines`) is in
    `mase_persistence`, `mase_drift` and `mase_seasonal_naive`. `skill` is 1 less the ratio of the model's to the best
    baseline's: 0 is as good as that, 1 without error.

    With quantiles, `coverage` is the share of rows between the first of them and the last, and `pinball` the mean
    pinball loss, in the unit of `mase`, both of the free-running forecast over all rows of the horizon.

    Its hyperparameters are those of `RNN` but for the layers: their names, and meanings, are the same.

    Raises:
        ValueError: The mean of a series with logarithms is not positive; quantiles are out of order.
    """

    task = "forecasting"
    shown_metrics = ("loss", "nrmse_free", "mase")
    from_data = frozenset({"mean", "std", "season"})
    any_length: ClassVar[bool] = True  # whether contexts may be longer than those of training

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        log: bool,
        quantiles: list[float] | None,
        mean: float | list[float] | None,
        std: float | list[float] | None,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        if log and mean is not None and torch.tensor(plain_value("mean", mean)).view(-1)[:output_dim].min() <= 0:
            raise ValueError(f"mean is {mean}: with log, it must be above 0, as the series")
        if quantiles is not None:
            levels = [0.0, *map(float, quantiles), 1.0]
            if len(levels) < 4 or 0.5 not in levels or any(after <= before for before, after in pairwise(levels)):
                raise ValueError(f"quantiles are {quantiles}: they must be 2 or more in 0..1, in order, with 0.5")
            self.register_buffer("levels", torch.tensor(levels[1:-1]), persistent=False)
            self.register_buffer("normal", torch.special.ndtri(self.levels), persistent=False)
        self.normalize = Normalize(float(log) if mean is None else mean, 1.0 if std is None else std, input_dim)
        evaluated = ("loss", "square_free", "mase", *(f"mase_{name}" for name in BASELINES))
        evaluated += () if quantiles is None else ("coverage", "pinball")
        self.means = EpochMeans(train=("loss",), val=evaluated, test=evaluated)
        self.naive_season, self.naive_error = 1, None  # of the data

    @property
    def memory(self) -> dict[str, int]:
        """What the state holds beside the hidden state, by name, with its number of rows: nothing."""
        return {}

    def by_series(self, x: Tensor) -> Tensor:
        """Rows of the first columns, or of all, by the mean and standard deviation of the series."""
        mean, std = (one[: x.shape[-1]] for one in (self.normalize.mean, self.normalize.std))
        return (x.to(mean.dtype) - mean) / std

    def to_scale(self, x: Tensor) -> Tensor:
        """The same, or of the forecast columns how far their logarithm is from the mean's."""
        if not self.hparams.log:
            return self.by_series(x)
        own = self.hparams.output_dim
        mean, std = self.normalize.mean[:own], self.normalize.std[:own]
        logarithms = (x[..., :own].to(mean.dtype) / mean).log() * (mean / std)
        return torch.cat([logarithms, self.by_series(x)[..., own:]], dim=-1)

    def from_scale(self, scaled: Tensor) -> Tensor:
        """The inverse of `to_scale`, of the forecast columns."""
        mean, std = (one[: self.hparams.output_dim] for one in (self.normalize.mean, self.normalize.std))
        return (scaled * (std / mean)).exp() * mean if self.hparams.log else scaled * std + mean

    def forecast(self, context: Tensor, horizon: int, known: int = 0, ahead: Tensor | None = None) -> Tensor:
        """The rows `(batch, horizon, output_dim)` after `context`, `(batch, context, input_dim)`, free-running.

        The last `known` rows of `context` count among these; each is predicted from the true ones before it. `ahead`,
        `(batch, horizon, known_dim)`, are the columns known ahead in all of them, if there are any. A season, and an
        autoregression, take the mean for rows before a context that is too short for them.
        """
        return self._run_on(context, horizon, known, ahead, self.point)

    def known_ahead(self, rows: Tensor) -> Tensor:
        """The columns that are known ahead, `(batch, time, known_dim)`, of rows `(batch, time, input_dim)`."""
        return rows[:, :, rows.shape[2] - self.hparams.known_dim :]

    def forecast_quantiles(self, context: Tensor, horizon: int, ahead: Tensor | None = None) -> Tensor:
        """Quantiles `(batch, horizon, quantiles, output_dim)` of the rows after `context`.

        Those of the next row are predicted. Those of later ones are of paths that run free, each row drawn from what is
        predicted after the ones drawn before it, so that the bands grow with the horizon.
        """
        generator = torch.Generator(context.device).manual_seed(0)  # evaluation leaves the global one as it is
        prediction, state = self(context)
        following = prediction[:, -1:].sort(dim=2).values
        if horizon == 1:
            return following
        many, state = following.repeat_interleave(PATHS, dim=0), repeated(state, PATHS, bool(self.memory))
        others, normal = self._others(context, horizon, ahead).repeat_interleave(PATHS, dim=0), self.normal.float()
        paths = self._run_free(many, state, others, lambda prediction: draw_rows(prediction, normal, generator))
        bands = paths.unflatten(0, (-1, PATHS)).float().quantile(self.levels.float(), dim=1)  # quantiles first
        return torch.cat([following, bands.permute(1, 2, 0, 3)[:, 1:]], dim=1)

    def point(self, prediction: Tensor) -> Tensor:
        """The point forecast of a prediction: itself, or of quantiles the median."""
        return prediction[:, :, self.hparams.quantiles.index(0.5)] if self.hparams.quantiles else prediction

    def _run_on(self, context: Tensor, horizon: int, known: int, ahead: Tensor | None, choose: Choose) -> Tensor:
        """See `forecast`."""
        past = context[:, : context.shape[1] - known] if self.memory else context  # the rows that the scale is of
        prediction, state = self(past)
        if self.memory and known:
            later, state = self(context[:, -known:], state)
            prediction = torch.cat([prediction, later], dim=1)
        prediction = prediction[:, -known - 1 :]
        if known + 1 >= horizon:
            return choose(prediction[:, :horizon])
        return self._run_free(prediction, state, self._others(context, horizon, ahead), choose)

    def _others(self, context: Tensor, horizon: int, ahead: Tensor | None) -> Tensor:
        """The columns that are only inputs, in the rows to forecast: `(batch, horizon, input_dim - output_dim)`."""
        hp = self.hparams
        stay = context[:, -1:, hp.output_dim : hp.input_dim - hp.known_dim].expand(-1, horizon, -1)
        if not hp.known_dim:
            return stay
        if ahead is None:
            raise ValueError(f"ahead is missing: known_dim is {hp.known_dim}")
        return torch.cat([stay, ahead], dim=2)

    def _run_free(self, prediction: Tensor, state: State, others: Tensor, choose: Choose) -> Tensor:
        """The rows made of predictions, and of those after them, as many as there are `others` of."""
        rows = [choose(prediction)]
        for row in range(prediction.shape[1], others.shape[1]):
            prediction, state = self(torch.cat([rows[-1][:, -1:], others[:, row - 1 : row]], dim=2), state)
            rows.append(choose(prediction))
        return torch.cat(rows, dim=1)

    def continue_series(self, context: Tensor, target: Tensor, quantiles: bool = False) -> Tensor:
        """Predictions of the rows of `target`: one step ahead while they are known, free-running from the first NaN.

        With the scale of windows, with quantiles, or where contexts must not get longer, each is predicted from a
        context of its own. Context `(batch, context, input_dim)`, target `(batch, rows, input_dim)` and predictions
        `(batch, rows, output_dim)`; `quantiles` are `(batch, rows, quantiles, output_dim)`.
        """
        method = self.forecast_quantiles if quantiles else self.forecast
        unknown = target[:, :, : self.hparams.output_dim].isnan().any(dim=2).any(dim=0)
        known = int(unknown.logical_not().cumprod(dim=0).sum())
        rows, length, ahead = torch.cat([context, target[:, :known]], dim=1), context.shape[1], self.known_ahead(target)
        if self.any_length and self.hparams.scale == "series" and not self.hparams.quantiles:
            return self.forecast(rows, target.shape[1], known, ahead)
        windows = rows.unfold(1, length, 1).transpose(2, 3)  # (batch, known + 1, context, input_dim)
        parts = windows[:, :known].split(CHUNK, dim=1) if known else []
        one_step = [method(part.flatten(0, 1), 1).unflatten(0, part.shape[:2])[:, :, 0] for part in parts]
        rest = target.shape[1] - known
        free = [method(windows[:, -1], rest, ahead=ahead[:, known:])] if rest else []
        return torch.cat(one_step + free, dim=1)

    @override
    def plots(self) -> list[Callback]:
        return [ForecastPlots()]

    def setup(self, stage: str) -> None:
        """Checks the data module's columns against the model's, and takes over their scale and season."""
        super().setup(stage)
        data, hp = self.trainer.datamodule, self.hparams
        match_columns(self, data)
        for name in ("mean", "std"):
            if hp[name] is None and hasattr(data, name):
                hp[name] = getattr(data, name)
                self.normalize.fill(name, hp[name])
        if hp.season is None and stage == "fit" and getattr(data, "season", 1) > 1:
            hp.season = data.season
        check_window(self, data)
        self.naive_season = getattr(data, "season", 1)
        error = getattr(data, "naive_error", None)
        self.naive_error = None if error is None else torch.tensor(error, device=self.device)

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The loss over the target of a batch of windows."""
        context, target = context_and_target(self, batch)
        hp, unit, loss = self.hparams, 1.0, 0.0
        truth = self.to_scale(target[:, :, : hp.output_dim])
        if hp.scale == "window":
            unit = window_scale(self.to_scale(context[:, :, : hp.output_dim]))[1]
        if hp.quantiles:
            found = self._one_step_ahead(batch, lambda prediction: prediction)
            errors = (truth.unsqueeze(2) - self.to_scale(found)) / (unit if hp.scale == "series" else unit.unsqueeze(2))
            loss = pinball(errors, self.levels).mean()
        if hp.free_running or not hp.quantiles:
            free, ahead = hp.free_running, self.known_ahead(target)
            found = self.forecast(context, target.shape[1], ahead=ahead) if free else self._one_step_ahead(batch)
            errors = (self.to_scale(found) - truth) / unit
            loss = loss + (errors.square().mean() if hp.criterion == "mse" else errors.abs().mean())
        self.log_loss(loss)
        self.means.update("train", len(context), loss=loss.detach() * len(context))
        return loss

    def validation_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The free-running forecast `(batch, horizon, output_dim)` of a batch of windows."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The free-running forecast `(batch, horizon, output_dim)` of a batch of windows."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Window, batch_idx: int) -> list[dict[str, Any]]:
        """A row per time step: its group, if any, `time`, and of each column value, None if unknown, and forecast.

        With quantiles, these follow their column's forecast, as `sales_q0.1`.
        """
        prediction = self.continue_series(*context_and_target(self, batch))
        truth = batch[1][:, :, : self.hparams.output_dim].flatten(0, 1)
        bands, levels = None, self.hparams.quantiles or []
        if levels:
            bands = self.continue_series(*batch, quantiles=True).flatten(0, 1)
        data, (windows, rows, width) = self.trainer.datamodule, prediction.shape
        columns = getattr(data, "column_names", None) or [str(i + 1) for i in range(width)]
        labels = [{"time": row} for row in range(1, rows + 1)] * windows
        if hasattr(data, "target_labels"):
            labels = data.target_labels(batch_idx)
        return time_rows(labels, columns, truth, prediction.flatten(0, 1), bands, levels)

    @override
    def epoch_metrics(self, stage: str) -> dict[str, Any]:
        metrics = super().epoch_metrics(stage)
        if stage == "train":
            return metrics
        metrics |= {"nrmse": metrics["loss"].sqrt(), "nrmse_free": metrics.pop("square_free").sqrt()}
        if self.naive_season == 1:
            del metrics["mase_seasonal_naive"]
        known = [name for name in metrics if name.startswith("mase_")]
        best = min(known, key=lambda name: float(metrics[name]))
        metrics["skill"] = 1 - metrics["mase"] / metrics[best].clamp(min=1e-9)
        if self.trainer.state.fn in ("validate", "test") and metrics["skill"] < 0:
            name = best.removeprefix("mase_").replace("_", " ")
            rank_zero_warn(
                f"the forecasts are worse than the {name} one: mase {metrics['mase']:.3f} against {metrics[best]:.3f}"
            )
        return metrics

    def _one_step_ahead(self, batch: Window, choose: Choose | None = None) -> Tensor:
        """Predictions of the target's rows from the true ones before them; of quantiles the median, if not chosen."""
        context, target = batch
        horizon = target.shape[1]
        rows = torch.cat([context, target[:, :-1]], dim=1)
        return self._run_on(rows, horizon, horizon - 1, None, choose or self.point)

    def _evaluate(self, stage: str, batch: Window) -> Tensor:
        context, target = context_and_target(self, batch)
        horizon, own, ahead = target.shape[1], self.hparams.output_dim, self.known_ahead(target)
        target, forecast = target[:, :, :own], self.forecast(context, horizon, ahead=ahead)
        truth = self.by_series(target)
        loss = F.mse_loss(self.by_series(self._one_step_ahead(batch)), truth)
        free = F.mse_loss(self.by_series(forecast[:, -1]), truth[:, -1])
        others = baselines(context[:, :, :own], horizon, self.naive_season)
        errors = {"mase": forecast} | {f"mase_{name}": other for name, other in others.items()}
        unit = self.normalize.std[:own] if self.naive_error is None else self.naive_error.to(target.device)
        errors = {name: ((other - target).abs() / unit).mean() * len(target) for name, other in errors.items()}
        if self.hparams.quantiles:
            bands = self.forecast_quantiles(context, horizon, ahead)
            inside = (target >= bands[:, :, 0]) & (target <= bands[:, :, -1])
            lost = pinball((target.unsqueeze(2) - bands) / unit, self.levels)
            errors |= {"coverage": inside.float().mean() * len(target), "pinball": lost.mean() * len(target)}
        self.means.update(stage, len(truth), loss=loss * len(truth), square_free=free * len(truth), **errors)
        return forecast


def repeated(state: State, times: int, with_memory: bool) -> State:
    """A state in which each item of the batch comes so many times."""
    hidden, memory = state if with_memory else (state, ())
    hidden = hidden if isinstance(hidden, tuple) else (hidden,)
    hidden = tuple(part.repeat_interleave(times, dim=1) for part in hidden)
    hidden = hidden if len(hidden) == 2 else hidden[0]
    return (hidden, tuple(part.repeat_interleave(times, dim=0) for part in memory)) if with_memory else hidden


def window_scale(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of windows `(batch, time, columns)`, each `(batch, 1, columns)`."""
    spread = (scaled.var(dim=1, keepdim=True, correction=0) + FLAT).sqrt()
    return scaled.mean(dim=1, keepdim=True), spread
