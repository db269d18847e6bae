"""Windows of series: the rows of a context, and those of the target after it."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.common.tensors import indices_on


def usual_size(season: int) -> tuple[int, int]:
    """Context length and horizon where all parts are long enough."""
    return max(24, 2 * season + 2), season if season > 1 else 20


def window_size(
    train: int, evaluated: int, context_length: int | None, horizon: int | None, season: int
) -> tuple[int, int]:
    """Context length and horizon, where they are not given: the usual ones, or less where parts are short.

    Of `train` rows, the context takes no more than half, so that windows remain to train on; of the fewest `evaluated`,
    a horizon takes no more than half, but for that of a season.
    """
    usual = usual_size(season)
    if horizon is None:
        room = train // 4 if context_length is None else (train - context_length) // 2
        horizon = max(1, min(usual[1], room, season if 1 < season <= evaluated else evaluated // 2))
    return context_length or max(1, min(usual[0], train // 2, train - horizon)), horizon


def shift(table: Tensor, known: int) -> Tensor:
    """Rows `(rows, F)` in float32 whose last columns are those of the row after each."""
    own, ahead = table.float().split([table.shape[1] - known, known], dim=1)
    return torch.cat([own, torch.cat([ahead[1:], ahead[-1:]])], dim=1) if known else own


class WindowDataset(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a series `(T, F)` in memory, from the rows `starts` on; fetches a batch with one index operation."""

    def __init__(self, series: Tensor, starts: Tensor, context_length: int, horizon: int) -> None:
        self.series, self.starts = series, starts
        self.context_length, self.horizon = context_length, horizon
        self.offsets = torch.arange(context_length + horizon, device=series.device)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Context `(batch, context_length, F)` and target `(batch, horizon, F)`."""
        chosen = indices_on(self.series.device, indices)
        rows = self.series[self.starts[chosen, None] + self.offsets]  # (batch, context_length + horizon, F)
        return rows[:, : self.context_length], rows[:, self.context_length :]

    def to(self, device: torch.device) -> "WindowDataset":
        """The same dataset in a device's memory."""
        return WindowDataset(self.series.to(device), self.starts.to(device), self.context_length, self.horizon)


class SeriesDataset(Dataset[tuple[Tensor, Tensor]]):
    """One window for each series, `(context_length, F)` and target `(rows, F)`, fetched one by one."""

    def __init__(self, windows: list[tuple[Tensor, Tensor]]) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Context `(1, context_length, F)` and target `(1, rows, F)`."""
        (index,) = indices
        context, target = self.windows[index]
        return context[None], target[None]
