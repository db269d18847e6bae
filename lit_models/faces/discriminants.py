"""Fisher's linear discriminants of a network's features, from statistics that are kept while it trains.

"The use of multiple measurements in taxonomic problems", Fisher, 1936; for faces, "Eigenfaces vs. Fisherfaces",
Belhumeur, Hespanha and Kriegman, 1997.

How pictures of one person differ (light, pose, expression) is much the same for everybody, strangers too. So features
are weighed down along the directions in which they do, and of what is left, those directions are kept in which people
differ most: cosines after it tell people apart better than before.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.01  # of the statistics, as of a BatchNorm: they are of some hundred batches
SHRINKAGE = 1.0  # what is added to the variances within people, in means of them, since few pictures are known


class Discriminants(nn.Module):
    """A linear map from features to discriminants, which is not trained but computed.

    In training, `update` takes batches in; the map is computed from them when training stops for an evaluation, and
    when the state is read, so that it never lags behind in a checkpoint. Until then the first features are kept. With
    several processes, as in a BatchNorm, the statistics are of the first one's batches.

    Args:
        features: Numbers that come in, of mean 0.
        kept: Numbers that go out, at most as many.

    Attributes:
        within: `(features, features)`, the sum over a batch of how pictures differ from their person's mean there,
            a running mean over batches.
        freedom: How many differences there are in such a sum: pictures less people.
        total: `(features, features)`, the covariance of the features, a running mean, less the same share of zeros
            as the other two, with which all begin.
        projection: `(features, kept)`.
    """

    within: Tensor
    freedom: Tensor
    total: Tensor
    projection: Tensor

    def __init__(self, features: int, kept: int) -> None:
        super().__init__()
        self.register_buffer("within", torch.zeros(features, features, dtype=torch.float32))
        self.register_buffer("freedom", torch.zeros((), dtype=torch.float32))
        self.register_buffer("total", torch.zeros(features, features, dtype=torch.float32))
        self.register_buffer("projection", torch.eye(features, kept, dtype=torch.float32))
        self.stale = False

    def forward(self, features: Tensor) -> Tensor:
        """`(batch, features)` -> `(batch, kept)`, float32."""
        with torch.autocast(features.device.type, enabled=False):
            return features.float() @ self.projection

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Takes a batch into the statistics; a picture that comes twice differs by its augmentation.

        Args:
            features: `(batch, features)`.
            labels: `(batch,)`, int64, who it is.
        """
        features = features.float()
        same = (labels[:, None] == labels).float()  # (batch, batch)
        same /= same.sum(dim=1, keepdim=True)
        with torch.autocast(features.device.type, enabled=False):
            differences = features - same @ features
            self.within.lerp_(differences.T @ differences, MOMENTUM)
            self.total.lerp_(features.T @ features / len(features), MOMENTUM)
        self.freedom.lerp_(len(labels) - same.trace(), MOMENTUM)  # the trace is the number of people
        self.stale = True

    @torch.no_grad()
    def refresh(self) -> None:
        """Computes the map, if there is something new to compute it from; NaN, where the statistics are not finite."""
        if not self.stale:
            return
        within, total = self.within.cpu().double(), self.total.cpu().double()
        if within.isfinite().all() and total.isfinite().all():
            within /= self.freedom.item() or 1.0
            mean = within.diagonal().mean().item()
            # Where nobody has two pictures, a floor, which makes these the principal components.
            within.diagonal().add_(SHRINKAGE * max(mean, 1e-3))
            lower = torch.linalg.cholesky(within)
            half = torch.linalg.solve_triangular(lower, total, upper=False)
            whitened = torch.linalg.solve_triangular(lower, half.T, upper=False)  # total, where within is 1 all around
            directions = torch.linalg.eigh(whitened).eigenvectors[:, -self.projection.shape[1] :]
            self.projection.copy_(torch.linalg.solve_triangular(lower.T, directions, upper=True))
        else:
            self.projection.fill_(torch.nan)
        self.stale = False

    def train(self, mode: bool = True) -> "Discriminants":
        """Computes the map when training stops."""
        if not mode:
            self.refresh()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Discriminants":
        """Moves the statistics and never casts them, since 16 bits are too few for sums."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def _save_to_state_dict(self, *args: Any) -> None:
        self.refresh()
        super()._save_to_state_dict(*args)
