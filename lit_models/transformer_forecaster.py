"""The blocks of the Transformer as a forecaster: rows of numbers in place of tokens.

Rows `(batch, time, input_dim)` and a state -> predictions `(batch, time, output_dim)` and the new state.

As in `lit_models.transformer`, but a linear layer takes the place of the embeddings, and the head predicts the next row
itself: attention over a series, as in Wu et al. 2020, "Deep transformer models for time series forecasting"
(https://arxiv.org/abs/2001.08317), with a decoder alone. The state holds the keys and values of all rows so far.
"""

from typing import Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from typing_extensions import override

from lit_models.common.arguments import NonNegativeInt, PositiveFloat, PositiveInt, UnitInterval, check_arguments
from lit_models.layers import Hidden
from lit_models.module import TensorSpec
from lit_models.scaled_forecaster import ScaledForecaster
from lit_models.training.schedule import LRSchedulerCallable
from lit_models.transformer import Block, check_heads, rotation_of


class TransformerForecaster(ScaledForecaster):
    """A linear layer, blocks of causal attention, and a linear layer over a series in its own units.

    Each prediction is the next row. How it is trained, and its errors: see `Forecaster`.

    Args:
        input_dim: Number of columns of the series, all together: those to forecast, then those that are only inputs.
        output_dim: Number of predicted columns, the first ones of the series.
        known_dim: Number of columns that are known one row ahead, the last ones.
        dim: Width of a row within the blocks.
        depth: Number of blocks.
        heads: Attention heads of a block, which divide `dim`.
        mlp_ratio: Width of an MLP's hidden layer, over `dim`.
        dropout: Probability of dropping an attention weight, or a feature of a branch.
        residual: Predict the change from the current row to the next; with a season, by how much it differs from the
            change a season ago.
        scale: Scale by the mean and standard deviation of the `series` alone, or the forecast columns also by those of
            each `window`'s context.
        log: Forecast the logarithm of the columns, whose values must be positive.
        season: Number of rows of a season; the network sees the row a season before the one that it predicts, too. The
            data module's, if None, where it has one; 1 is none.
        ar_order: Number of latest rows that a linear autoregression beside the blocks sees of each column; 0 is none.
            With it, both begin at zero.
        free_running: Train on the free-running forecast, instead of one step ahead.
        criterion: Training loss, the mean squared or the mean absolute error.
        quantiles: Levels of quantiles to forecast, in order, among them 0.5, the point forecast. Point forecasts alone,
            if not given.
        mean: Mean of the series, a number or one for each column. The data module's, if not given, else 0.
        std: Standard deviation of the series, likewise. The data module's, if not given, else 1.
        optimizer: Factory: parameters -> optimizer.
        lr_scheduler: Factory: optimizer -> schedule. OneCycleLR rises to the optimizer's `lr`, and steps with the
            optimizer, as others do that take `total_steps` where none are given; the rest step after every epoch.

    Raises:
        ValueError: `heads` do not divide `dim`, or what they leave is odd; an argument is out of range; the numbers of
            columns don't fit each other or the data's.
    """

    any_length = False

    def __init__(
        self,
        input_dim: PositiveInt = 1,
        output_dim: PositiveInt = 1,
        known_dim: NonNegativeInt = 0,
        dim: PositiveInt = 64,
        depth: PositiveInt = 2,
        heads: PositiveInt = 4,
        mlp_ratio: PositiveFloat = 4.0,
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
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-3),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_arguments(TransformerForecaster, locals())
        check_heads(dim, heads)
        super().__init__(input_dim, output_dim, log, quantiles, mean, std, optimizer, lr_scheduler)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
        self.example_input_array = torch.ones(1, 10, input_dim)
        self.embedding = nn.Linear(self.inputs, dim)
        options = {"norm": "rms", "activation": "squared_relu", "qk_norm": True, "bias": False, "dropout": dropout}
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, **options) for _ in range(depth))
        self.norm = nn.RMSNorm(dim)
        for block in self.blocks:  # which begins as the identity
            nn.init.zeros_(block.attention.output.weight)
            nn.init.zeros_(block.mlp[2].weight)
        self.add_head(dim)

    @property
    @override
    def hidden_spec(self) -> dict[str, TensorSpec]:
        hp = self.hparams
        shape = (hp.depth, "batch", hp.heads, "seen", hp.dim // hp.heads)
        return dict.fromkeys(("keys", "values"), TensorSpec(shape, torch.float32))

    @override
    def features(self, inputs: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        x, past = self.embedding(inputs), []
        seen = 0 if hidden is None else hidden[0].shape[3]
        place = torch.arange(seen, seen + x.shape[1], device=x.device)
        rotation = rotation_of(place, self.hparams.dim // self.hparams.heads, x.dtype)
        for number, block in enumerate(self.blocks):
            x, both = block(x, rotation, None if hidden is None else (hidden[0][number], hidden[1][number]))
            past.append(both)
        return self.norm(x), tuple(torch.stack(parts) for parts in zip(*past, strict=True))
