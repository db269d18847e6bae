"""Quantiles that a forecaster predicts: their loss, and rows that are drawn from them."""

import torch
from torch import Tensor


def pinball(errors: Tensor, levels: Tensor) -> Tensor:
    """The pinball loss of quantiles `(batch, time, quantiles, columns)` of these levels, given truth less quantile."""
    levels = levels[:, None]
    return torch.maximum(levels * errors, (levels - 1) * errors)


def draw_rows(prediction: Tensor, levels: Tensor, generator: torch.Generator) -> Tensor:
    """Rows `(batch, time, columns)` drawn from predicted quantiles `(batch, time, quantiles, columns)` of these levels.

    The quantiles are joined, and continued beyond the outer ones, by straight lines.
    """
    values, shape = prediction.sort(dim=2).values, (*prediction.shape[:2], 1, prediction.shape[3])
    drawn = torch.rand(shape, generator=generator, device=prediction.device)
    upper = torch.bucketize(drawn, levels).clamp(1, len(levels) - 1)
    low, high = values.gather(2, upper - 1), values.gather(2, upper)
    share = (drawn - levels[upper - 1]) / (levels[upper] - levels[upper - 1])
    return (low + share * (high - low))[:, :, 0]
