"""Simple forecasts that a model must beat: the last row, the line through a window, the last season."""

import torch
from torch import Tensor


def persistence(context: Tensor, horizon: int) -> Tensor:
    """The last row of `context`, `(batch, time, columns)`, again and again: `(batch, horizon, columns)`."""
    return context[:, -1:].expand(-1, horizon, -1)


def drift(context: Tensor, horizon: int) -> Tensor:
    """The line through the first row of `context`, `(batch, time, columns)`, and the last, continued."""
    slope = (context[:, -1:] - context[:, :1]) / max(context.shape[1] - 1, 1)
    return context[:, -1:] + slope * torch.arange(1, horizon + 1, device=context.device)[:, None]


def seasonal_naive(context: Tensor, horizon: int, season: int) -> Tensor:
    """The last `season` rows of `context`, `(batch, time, columns)`, again and again: `(batch, horizon, columns)`."""
    return context[:, -season:][:, torch.arange(horizon, device=context.device) % season]


def baselines(context: Tensor, horizon: int, season: int = 1) -> dict[str, Tensor]:
    """The baselines by name, the seasonal one where there is a season of more than one row."""
    found = {"persistence": persistence(context, horizon), "drift": drift(context, horizon)}
    if season > 1:
        found["seasonal_naive"] = seasonal_naive(context, horizon, season)
    return found
