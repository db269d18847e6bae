"""The article's recurrent network, a GRU and a linear layer, as a forecaster: one step ahead or free-running.

Sequences `(batch, time, input_dim)` and a hidden state -> predictions `(batch, time, output_dim)` and the new state.

The cells and their papers are in `lit_models.layers.make_rnn`. The article's module is the bare network; scaling, the
residual connection, and training on windows with a warm-up of the hidden state are added here.

Legend: context, horizon - number of rows that are looked back on, and that are forecast.
"""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lit_models.common.arguments import PositiveFloat, PositiveInt, UnitInterval, check_arguments
from lit_models.layers import Cell, Hidden, Normalize, Stateful, make_rnn
from lit_models.module import ExportSpec, LitModule, TensorSpec
from lit_models.training.data_checks import context_and_target, match_columns
from lit_models.training.means import EpochMeans
from lit_models.training.plots import ForecastPlots
from lit_models.training.predictions import time_rows
from lit_models.training.schedule import LRSchedulerCallable

Window = tuple[Tensor, Tensor]  # context (batch, context, input_dim) and target (batch, horizon, input_dim)


class RNN(LitModule):
    """Recurrent layers and a linear layer over a series in its own units, each prediction being the next row.

    Training is one step ahead on windows: the context only warms up the hidden state, the loss is over the target.
    Validation and test also forecast free-running, with predictions fed back. Errors are in units of `std`: `loss` is
    the mean squared error one step ahead, `nrmse` its root, `nrmse_free` the root mean squared error of the
    free-running forecast at the last row of the horizon.

    Args:
        input_dim: Number of columns of the series.
        hidden_dim: Hidden size.
        output_dim: Number of predicted columns; to forecast, `input_dim`. With another number this is a bare network:
            `mean` and `std` are of its input alone, and it has no training of its own.
        cell: Kind of recurrent layer.
        num_layers: Number of recurrent layers.
        dropout: Probability of dropping a feature after each recurrent layer.
        residual: Predict the change from the current row to the next; better for smooth series.
        mean: Mean of the series, a number or one per column. The data module's, if not given, else 0.
        std: Standard deviation of the series, likewise. The data module's, if not given, else 1.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.

    Raises:
        ValueError: An argument is out of range; the numbers of columns don't fit each other or the data's.
    """

    task = "forecasting"
    shown_metrics = ("loss", "nrmse", "nrmse_free")
    from_data = frozenset({"mean", "std"})

    def __init__(
        self,
        input_dim: PositiveInt = 1,
        hidden_dim: PositiveInt = 100,
        output_dim: PositiveInt = 1,
        cell: Cell = "gru",
        num_layers: PositiveInt = 1,
        dropout: UnitInterval = 0.0,
        residual: bool = False,
        mean: float | list[float] | None = None,
        std: PositiveFloat | list[PositiveFloat] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=3e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        check_arguments(RNN, locals())
        if residual and output_dim != input_dim:
            raise ValueError(f"residual: output_dim ({output_dim}) must be input_dim ({input_dim})")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.example_input_array = torch.zeros(1, 10, input_dim)
        self.normalize = Normalize(0.0 if mean is None else mean, 1.0 if std is None else std, input_dim)
        self.rnn = make_rnn(cell, input_dim, hidden_dim, num_layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, output_dim)
        self.means = EpochMeans(train=("loss",), val=("loss", "square_free"), test=("loss", "square_free"))

    def forward(self, x: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Predictions `(batch, time, output_dim)` of the row after each of `x`, `(batch, time, input_dim)`, and state.

        The state continues after the last row; without one, it starts at zero.
        """
        scaled = self.normalize(x)
        features, hidden = self.rnn(scaled.to(self.normalize.dtype), hidden)  # (batch, time, hidden_dim)
        prediction = self.head(self.dropout(features))
        if self.hparams.residual:
            prediction = prediction + scaled
        if self.hparams.output_dim == self.hparams.input_dim:
            prediction = self.normalize.inverse(prediction)
        return prediction, hidden

    def forecast(self, context: Tensor, horizon: int, known: int = 0) -> Tensor:
        """The rows `(batch, horizon, output_dim)` after `context`, `(batch, context, input_dim)`, free-running.

        The last `known` rows of `context` count among these; each is predicted from the true ones before it.
        """
        prediction, hidden = self(context)
        rows, latest = [prediction[:, -known - 1 :][:, :horizon]], prediction[:, -1:]
        for _ in range(horizon - known - 1):
            latest, hidden = self(latest, hidden)
            rows.append(latest)
        return torch.cat(rows, dim=1)

    def continue_series(self, context: Tensor, target: Tensor) -> Tensor:
        """Predictions of the rows of `target`: one step ahead while they are known, free-running from the first NaN.

        Context `(batch, context, input_dim)`, target and predictions `(batch, rows, input_dim)`.
        """
        known = int(target.isnan().any(dim=2).any(dim=0).logical_not().cumprod(dim=0).sum())
        return self.forecast(torch.cat([context, target[:, :known]], dim=1), target.shape[1], known)

    @override
    def plots(self) -> list[Callback]:
        return [ForecastPlots()]

    def setup(self, stage: str) -> None:
        """Checks the data module's columns against the model's, and takes over their scale."""
        super().setup(stage)
        data = self.trainer.datamodule
        match_columns(self, data)
        for name in ("mean", "std"):
            if self.hparams[name] is None and hasattr(data, name):
                self.hparams[name] = getattr(data, name)
                self.normalize.fill(name, self.hparams[name])

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The mean squared error one step ahead, over the target of a batch of windows."""
        loss = F.mse_loss(*self._one_step_ahead(batch))
        self.log_loss(loss)
        self.means.update("train", len(batch[0]), loss=loss.detach() * len(batch[0]))
        return loss

    def validation_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The free-running forecast `(batch, horizon, output_dim)` of a batch of windows."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The free-running forecast `(batch, horizon, output_dim)` of a batch of windows."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Window, batch_idx: int) -> list[dict[str, Any]]:
        """A row per time step: its group, if any, `time`, and of each column value, None if unknown, and forecast."""
        prediction = self.continue_series(*context_and_target(self, batch))
        data, (windows, rows, _) = self.trainer.datamodule, prediction.shape
        columns = getattr(data, "column_names", None) or [str(i + 1) for i in range(batch[1].shape[2])]
        labels = [{"time": row} for row in range(1, rows + 1)] * windows
        if hasattr(data, "target_labels"):
            labels = data.target_labels(batch_idx)
        return time_rows(labels, columns, batch[1].flatten(0, 1), prediction.flatten(0, 1))

    @override
    def epoch_metrics(self, stage: str) -> dict[str, Any]:
        metrics = super().epoch_metrics(stage)
        if stage != "train":
            metrics |= {"nrmse": metrics["loss"].sqrt(), "nrmse_free": metrics.pop("square_free").sqrt()}
        return metrics

    def export_spec(self) -> ExportSpec:
        """Prediction and new state from rows and state, for any number of rows."""
        hp = self.hparams
        names = ("hidden", "cell") if hp.cell == "lstm" else ("hidden",)
        state = TensorSpec((hp.num_layers, "batch", hp.hidden_dim), torch.float32)
        rows = TensorSpec(("batch", "time", hp.input_dim), torch.float32, self.normalize.mean, self.normalize.std)
        prediction = TensorSpec(("batch", "time", hp.output_dim), torch.float32)
        inputs = {"x": rows} | dict.fromkeys(names, state)
        outputs = {"prediction": prediction} | {f"new_{name}": state for name in names}
        return ExportSpec(Stateful(self), inputs, outputs)

    def _one_step_ahead(self, batch: Window) -> Window:
        """Scaled predictions of the target's rows from the true ones before them, and the scaled truth."""
        context, target = context_and_target(self, batch)
        prediction, _ = self(torch.cat([context, target[:, :-1]], dim=1))
        return self.normalize(prediction[:, context.shape[1] - 1 :]), self.normalize(target)

    def _evaluate(self, stage: str, batch: Window) -> Tensor:
        prediction, truth = self._one_step_ahead(batch)
        forecast = self.forecast(batch[0], batch[1].shape[1])
        loss, free = F.mse_loss(prediction, truth), F.mse_loss(self.normalize(forecast[:, -1]), truth[:, -1])
        self.means.update(stage, len(truth), loss=loss * len(truth), square_free=free * len(truth))
        return forecast
