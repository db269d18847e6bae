"""The article's recurrent network, a GRU and a linear layer, that forecasts series one step ahead or running free.

Sequences `(batch, time, input_dim)` and a hidden state -> predictions `(batch, time, output_dim)` and the new state.

GRU: Cho et al., "Learning phrase representations using RNN encoder-decoder for statistical machine translation", 2014.
LSTM: Hochreiter and Schmidhuber, "Long short-term memory", 1997.
Plain cell, with tanh: Elman, "Finding structure in time", 1990.

Legend: window, horizon - rows of the past that is looked back on, and of the future that is forecast.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError

from lit_models.training.checkpoint import record_classes
from lit_models.training.machine import keep_input_precision, keep_sums_precise
from lit_models.training.resume import kept_progress, record_progress, resume_progress
from lit_models.training.schedule import optimizer_and_schedule, refuse_longer_training

Cell = Literal["gru", "lstm", "rnn"]
Hidden = Tensor | tuple[Tensor, Tensor]  # each (num_layers, batch, hidden_dim); two of them for the LSTM
Window = tuple[Tensor, Tensor]


def recurrent(cell: Cell, input_dim: int, hidden_dim: int, num_layers: int, dropout: float) -> nn.RNNBase:
    """The recurrent layers, over `(batch, time, input_dim)`; dropout between them, if there are several."""
    kinds = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
    if cell not in kinds:
        raise ValueError(f"cell is {cell!r}: it must be one of {', '.join(kinds)}")
    return kinds[cell](input_dim, hidden_dim, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)


class RNN(LightningModule):
    """Recurrent layers and a linear layer over a series in its own units, each prediction being the next row.

    It is trained one step ahead on windows: the past of a window only brings the hidden state up, the loss is over
    its future. In validation and test it also runs free over the future, fed with its own predictions. The errors are
    over `std`: the loss is a mean square, `nrmse` a root mean square one step ahead, `nrmse_free` that of running free
    at the last row of the horizon.

    Args:
        input_dim: Columns of the series.
        hidden_dim: Width of the hidden state.
        output_dim: Columns that are predicted; to forecast, as many as come in. Otherwise this is a bare network:
            `mean` and `std` are of its input alone, and it can't be trained by its own steps.
        cell: The kind of recurrent layer.
        num_layers: Number of recurrent layers.
        dropout: Probability of dropping a feature after each recurrent layer.
        residual: Predict the change from the current row to the next one; smooth series are forecast better so.
        mean: Mean of the series, a number or one a column. The data module's, if not given, or else 0.
        std: Its standard deviation. The data module's, if not given, or else 1.
        optimizer: Called with the parameters, returns the optimizer.
        lr_scheduler: Called with the optimizer, returns the schedule: stepped per batch if it wants `total_steps`
            that are not given (such as OneCycleLR), else per epoch.

    Raises:
        ValueError: An option is out of range; the numbers of columns don't fit each other or the data's.
    """

    def __init__(
        self,
        input_dim: int = 1,
        hidden_dim: int = 100,
        output_dim: int = 1,
        cell: Cell = "gru",
        num_layers: int = 1,
        dropout: float = 0.0,
        residual: bool = False,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, lr=3e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        if residual and output_dim != input_dim:
            raise ValueError(f"residual: output_dim ({output_dim}) must be input_dim ({input_dim})")
        if std is not None and min(std if isinstance(std, Sequence) else [std]) <= 0:
            raise ValueError(f"std is {std}: it must be above 0")
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.resumed: list[dict[str, Any]] | None = None
        self.example_input_array = torch.zeros(1, 10, input_dim)
        self.core = recurrent(cell, input_dim, hidden_dim, num_layers, dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, output_dim)
        # Not persistent: they are rebuilt from the hyperparameters, which every checkpoint holds.
        self.register_buffer("mean", self._each_column("mean", 0.0 if mean is None else mean), persistent=False)
        self.register_buffer("std", self._each_column("std", 1.0 if std is None else std), persistent=False)
        self.metrics = nn.ModuleDict()
        for stage in ("val", "test"):
            self.metrics[f"{stage}_loss"] = MeanSquaredError()
            for name in ("nrmse", "nrmse_free"):
                self.metrics[f"{stage}_{name}"] = MeanSquaredError(squared=False)
        self.metrics["train_loss"] = MeanMetric(nan_strategy="disable")

    def forward(self, x: Tensor, hidden: Hidden | None = None) -> tuple[Tensor, Hidden]:
        """Predictions `(batch, time, output_dim)` of the rows after each of `x`, `(batch, time, input_dim)`, and state.

        The state after the last row goes on where `x` has ended; without one, the past is taken to be all zeros.
        """
        scaled = self.normalize(x)
        features, hidden = self.core(scaled.to(self.head.weight.dtype), hidden)  # (batch, time, hidden_dim)
        prediction = self.head(self.dropout(features))
        if self.hparams.residual:
            prediction = prediction + scaled
        if self.hparams.output_dim == self.hparams.input_dim:
            prediction = prediction * self.std + self.mean
        return prediction, hidden

    def normalize(self, x: Tensor) -> Tensor:
        """Rows less mean and over standard deviation, in the precision that these two have."""
        return (x.to(self.mean.dtype) - self.mean) / self.std

    def forecast(self, past: Tensor, horizon: int) -> Tensor:
        """The rows `(batch, horizon, output_dim)` after `past`, `(batch, window, input_dim)`, each from the last."""
        prediction, hidden = self(past)
        return torch.cat(self._run_free(prediction[:, -1:], hidden, horizon), dim=1)

    def setup(self, stage: str) -> None:
        """Checks the data module's columns against the model's, and takes over their scale."""
        data, options = self.trainer.datamodule, self.hparams
        keep_input_precision(self.trainer)
        if hasattr(data, "num_classes"):
            raise ValueError(
                f"{type(data).__name__} has classes, not a series to forecast: --model RNNClassifier does that"
            )
        features = getattr(data, "num_features", options.input_dim)
        if features != options.input_dim or options.output_dim != options.input_dim:
            raise ValueError(
                f"{'the data' if data is None else type(data).__name__} has {features} column(s), but input_dim is "
                f"{options.input_dim} and output_dim {options.output_dim}: to forecast, set model.input_dim and "
                f"model.output_dim to {features}"
            )
        for name in ("mean", "std"):
            if options[name] is None and hasattr(data, name):
                options[name] = getattr(data, name)
                getattr(self, name).copy_(self._each_column(name, options[name]))

    def on_train_start(self) -> None:
        """Goes on where the checkpoint was written, if there is one."""
        refuse_longer_training(self.trainer)
        self._empty_sums()
        if "train_loss" in (progress := resume_progress(self)):
            self.train_windows, self.train_loss = progress["train_windows"], progress["train_loss"].to(self.device)

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The mean square of the errors one step ahead, over the future of a batch of windows."""
        if batch_idx == 0:  # on_train_epoch_start is left out where a run is resumed
            self._empty_sums()
        loss = F.mse_loss(*self._one_step_ahead(batch))
        self.log("train/loss_step", loss, prog_bar=True)
        self.train_windows += len(batch[0])
        self.train_loss.add_(loss.detach(), alpha=len(batch[0]))
        return loss

    def on_train_epoch_end(self) -> None:
        """Logs the loss over the epoch's windows, each as it was when it was trained on."""
        # Once a window: torchmetrics forgets a weight where nan_strategy is "disable".
        self.metrics["train_loss"].update((self.train_loss / self.train_windows).expand(self.train_windows))
        self.log("train/loss", self.metrics["train_loss"], on_step=False, on_epoch=True)

    def validation_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The forecast `(batch, horizon, output_dim)` of a batch of windows, running free; its errors are logged."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Window, batch_idx: int) -> Tensor:
        """The forecast `(batch, horizon, output_dim)` of a batch of windows, running free; its errors are logged."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Window, batch_idx: int) -> Tensor:
        """Predictions of the rows of the future: one step ahead while they are known, running free from the first NaN.

        Args:
            batch: Past `(batch, window, input_dim)`, and future `(batch, rows, input_dim)`, NaN where unknown.
            batch_idx: Not used.

        Returns:
            `(batch, rows, output_dim)`.
        """
        past, future = batch
        known = int(future.isnan().any(dim=2).any(dim=0).logical_not().cumprod(dim=0).sum())
        prediction, hidden = self(torch.cat([past, future[:, :known]], dim=1))
        ahead = prediction[:, past.shape[1] - 1 : -1]  # of the known rows
        return torch.cat([ahead, *self._run_free(prediction[:, -1:], hidden, future.shape[1] - known)], dim=1)

    def configure_optimizers(self) -> dict[str, Any]:
        """The injected optimizer and schedule."""
        return optimizer_and_schedule(self, self.optimizer, self.lr_scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Names the classes of the model and its data, and says how far the epoch in progress is."""
        record_classes(self, checkpoint)
        sums = {name: getattr(self, name) for name in ("train_windows", "train_loss") if hasattr(self, name)}
        record_progress(self, checkpoint, sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps how far the epoch was, for when training starts."""
        self.resumed = kept_progress(self, checkpoint)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RNN":
        """Moves and casts the model; mean, standard deviation and metrics keep their digits, which 16 bits lack."""
        kept = {name: getattr(self, name) for name in ("mean", "std")}
        super()._apply(fn, recurse)
        keep_sums_precise(self.metrics)
        for name, value in kept.items():
            if getattr(self, name).dtype.itemsize < value.dtype.itemsize:
                setattr(self, name, value.to(getattr(self, name).device))
        return self

    def _each_column(self, name: str, values: float | Sequence[float]) -> Tensor:
        columns = torch.tensor(values, dtype=torch.float32).view(-1)
        if len(columns) not in (1, self.hparams.input_dim):
            raise ValueError(f"{name} has {len(columns)} numbers, but input_dim is {self.hparams.input_dim}")
        return columns.repeat(self.hparams.input_dim // len(columns))

    def _empty_sums(self) -> None:
        self.train_windows, self.train_loss = 0, torch.zeros((), dtype=torch.float32, device=self.device)

    def _run_free(self, latest: Tensor, hidden: Hidden, rows: int) -> list[Tensor]:
        """The latest prediction and those that follow from it, `rows` in all, each `(batch, 1, output_dim)`."""
        predictions = [latest][:rows]
        while len(predictions) < rows:
            latest, hidden = self(latest, hidden)
            predictions.append(latest)
        return predictions

    def _one_step_ahead(self, batch: Window) -> Window:
        """Scaled predictions of the future's rows from the true ones before them, and the scaled truth."""
        past, future = batch
        prediction, _ = self(torch.cat([past, future[:, :-1]], dim=1))
        return self.normalize(prediction[:, past.shape[1] - 1 :]), self.normalize(future)

    def _evaluate(self, stage: str, batch: Window) -> Tensor:
        prediction, truth = self._one_step_ahead(batch)
        forecast = self.forecast(batch[0], batch[1].shape[1])  # (batch, horizon, output_dim)
        # Flat, because torchmetrics takes views, which not every slice allows.
        for name in ("loss", "nrmse"):
            self.metrics[f"{stage}_{name}"].update(prediction.flatten(), truth.flatten())
        last = self.normalize(forecast[:, -1])
        self.metrics[f"{stage}_nrmse_free"].update(last.flatten(), truth[:, -1].flatten())
        for name in ("loss", "nrmse", "nrmse_free"):
            metric = self.metrics[f"{stage}_{name}"]
            self.log(f"{stage}/{name}", metric, on_step=False, on_epoch=True, prog_bar=name != "loss")
        return forecast
