"""Quantiles that a forecaster predicts: their loss, and rows that are drawn from them."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def pinball(errors: Tensor, levels: Tensor) -> Tensor:
    """The pinball loss of quantiles `(batch, time, quantiles, columns)` of these levels, given truth less quantile."""
    levels = levels[:, None]
    return torch.maximum(levels * errors, (levels - 1) * errors)


def window_error(rows: Tensor, lags: Iterable[int]) -> Tensor:
    """How far each row of a window `(batch, time, columns)` is from its forecast, `(batch, 1, columns)`.

    The forecasts are of no change in the differences of these lags, or, without any, the mean. Given is the standard
    deviation that a normal distribution with their mean absolute error has, which few outliers change little.
    """
    errors = rows if lags else rows - rows.mean(dim=1, keepdim=True)
    for lag in lags:
        errors = errors[:, lag:] - errors[:, :-lag] if errors.shape[1] > lag else errors
    mean = errors.abs().mean(dim=1, keepdim=True)
    return mean.clamp(min=1e-5) * (math.pi / 2) ** 0.5  # a window without errors may be followed by some


def draw_rows(prediction: Tensor, normal: Tensor, generator: torch.Generator) -> Tensor:
    """Rows `(batch, time, columns)` drawn from predicted quantiles `(batch, time, quantiles, columns)`.

    `normal` are the same quantiles of the standard normal distribution. As functions of these, the predicted ones are
    joined, and continued beyond the outer ones, by straight lines.
    """
    values, shape = prediction.sort(dim=2).values, (*prediction.shape[:2], 1, prediction.shape[3])
    drawn = torch.randn(shape, generator=generator, device=prediction.device)
    upper = torch.bucketize(drawn, normal).clamp(1, len(normal) - 1)
    low, high = values.gather(2, upper - 1), values.gather(2, upper)
    share = (drawn - normal[upper - 1]) / (normal[upper] - normal[upper - 1])
    return (low + share * (high - low))[:, :, 0]
