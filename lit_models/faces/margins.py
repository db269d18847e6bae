"""Additive-margin softmax (ArcFace, CosFace) over the people to train on.

ArcFace: Deng, Guo, Xue and Zafeiriou, 2019, https://arxiv.org/abs/1801.07698, adds to the angle between an embedding
and its person's row of the head. CosFace: Wang et al., 2018, https://arxiv.org/abs/1801.09414, subtracts from the
cosine.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Margin = Literal["arcface", "cosface", "none"]
PAPER_SIZES = {"arcface": 0.5, "cosface": 0.35, "none": 0.0}


def with_margin(cosines: Tensor, labels: Tensor, margin: Margin, size: float | None) -> Tensor:
    """Cosines `(batch, people)`, the true person's reduced by an angle in radians (ArcFace), or a difference."""
    size = PAPER_SIZES[margin] if size is None else size
    index = labels[:, None]
    target = cosines.gather(1, index)
    if margin == "cosface":
        target = target - size
    elif margin == "arcface":
        sine = (1 - target.square()).clamp(min=1e-9).sqrt()  # its slope is infinite at 0
        added = target * math.cos(size) - sine * math.sin(size)
        # Beyond an angle of pi the cosine would rise again: there a constant is subtracted instead.
        target = torch.where(target > -math.cos(size), added, target - size * math.sin(size))
    return cosines.scatter(1, index, target)
