"""Online linear discriminant analysis of a network's features.

Fisher, "The use of multiple measurements in taxonomic problems", 1936; for faces: Belhumeur, Hespanha and Kriegman,
"Eigenfaces vs. Fisherfaces", 1997. Whitens the variation within classes, then keeps the directions of the largest
variation between them. Images of one person vary in much the same way for everybody (light, pose, expression), so this
also separates people who were not trained on.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

MOMENTUM = 0.01  # of the running statistics, as in BatchNorm
SHRINKAGE = 1.0  # added to the within-class variances, in units of their mean: there are few images to estimate them


class OnlineLDA(nn.Module):
    """A linear projection of features of mean 0 that is computed from running statistics instead of trained.

    It is computed when training stops for an evaluation, and when the state is read, so that a checkpoint never lags
    behind; before that, the first features are kept. As in BatchNorm, with several processes the statistics are those
    of the first.
    """

    within_class_scatter: Tensor  # (features, features), running mean over batches of the scatter around class means
    dof: Tensor  # its degrees of freedom, images minus classes, likewise a running mean
    total_scatter: Tensor  # (features, features), running mean of the covariance
    projection: Tensor  # (features, components)

    def __init__(self, features: int, components: int) -> None:
        super().__init__()
        self.register_buffer("within_class_scatter", torch.zeros(features, features, dtype=torch.float32))
        self.register_buffer("dof", torch.zeros((), dtype=torch.float32))
        self.register_buffer("total_scatter", torch.zeros(features, features, dtype=torch.float32))
        self.register_buffer("projection", torch.eye(features, components, dtype=torch.float32))
        self.stale = False

    def forward(self, features: Tensor) -> Tensor:
        """Discriminants `(batch, components)`, float32, of `(batch, features)`."""
        with torch.autocast(features.device.type, enabled=False):
            return features.float() @ self.projection

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Updates the statistics with `(batch, features)` and labels `(batch,)`; an image may be there twice."""
        features = features.float()
        same = (labels[:, None] == labels).float()  # (batch, batch)
        same /= same.sum(dim=1, keepdim=True)
        with torch.autocast(features.device.type, enabled=False):
            differences = features - same @ features
            self.within_class_scatter.lerp_(differences.T @ differences, MOMENTUM)
            self.total_scatter.lerp_(features.T @ features / len(features), MOMENTUM)
        self.dof.lerp_(len(labels) - same.trace(), MOMENTUM)  # the trace is the number of classes
        self.stale = True

    @torch.no_grad()
    def refresh(self) -> None:
        """Computes the projection, if the statistics have changed; it is NaN where they are not finite."""
        if not self.stale:
            return
        within, total = self.within_class_scatter.cpu().double(), self.total_scatter.cpu().double()
        if within.isfinite().all() and total.isfinite().all():
            within /= self.dof.item() or 1.0
            mean = within.diagonal().mean().item()
            # With one image per class there is no within-class scatter: the floor makes these principal components.
            within.diagonal().add_(SHRINKAGE * max(mean, 1e-3))
            lower = torch.linalg.cholesky(within)
            half = torch.linalg.solve_triangular(lower, total, upper=False)
            whitened = torch.linalg.solve_triangular(lower, half.T, upper=False)  # total, where within is the identity
            directions = torch.linalg.eigh(whitened).eigenvectors[:, -self.projection.shape[1] :]
            self.projection.copy_(torch.linalg.solve_triangular(lower.T, directions, upper=True))
        else:
            self.projection.fill_(torch.nan)
        self.stale = False

    @override
    def train(self, mode: bool = True) -> "OnlineLDA":
        if not mode:
            self.refresh()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "OnlineLDA":
        # Moved, never cast: 16 bits are too few for running sums.
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)

    def _save_to_state_dict(self, *args: Any) -> None:
        self.refresh()
        super()._save_to_state_dict(*args)
