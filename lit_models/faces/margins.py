"""Softmax losses over cosines with an additive margin, which make training harder than what it is for.

"ArcFace", Deng, Guo, Xue and Zafeiriou, 2019 (https://arxiv.org/abs/1801.07698), adds to the angle between an embedding
and its person's row of the head; "CosFace", Wang et al., 2018 (https://arxiv.org/abs/1801.09414), subtracts from the
cosine.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Margin = Literal["arcface", "cosface", "none"]
MARGINS = {"arcface": 0.5, "cosface": 0.35, "none": 0.0}  # with their sizes in the papers


def with_margin(cosines: Tensor, labels: Tensor, margin: Margin, size: float) -> Tensor:
    """Cosines in which the true person's is made less.

    Args:
        cosines: `(batch, people)`, in -1..1.
        labels: `(batch,)`, int64, the true people.
        margin: "arcface", "cosface", or "none", which leaves them as they are.
        size: Of the margin: for ArcFace an angle in radians, for CosFace what is subtracted.
    """
    own = labels[:, None]
    true = cosines.gather(1, own)
    if margin == "cosface":
        true = true - size
    elif margin == "arcface":
        sine = (1 - true.square()).clamp(min=1e-9).sqrt()  # its slope is infinite at 0
        added = true * math.cos(size) - sine * math.sin(size)
        # Where the angles come to more than half a circle, whose cosine would rise again, it is subtracted.
        true = torch.where(true > -math.cos(size), added, true - size * math.sin(size))
    return cosines.scatter(1, own, true)
