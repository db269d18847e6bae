import pytest
import torch
from torch import nn

from lit_models.layers import AdaptiveAvgPool2d


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (5, 7), (24, 23)])
def test_deterministic_pooling_is_adaptive_average_pooling(size):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    expected = nn.AdaptiveAvgPool2d(4)(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    torch.use_deterministic_algorithms(True)
    try:
        pooled = AdaptiveAvgPool2d(4)(x)
    finally:
        torch.use_deterministic_algorithms(False)
    names, node = set(), [pooled.grad_fn]
    while node:
        names |= {type(one).__name__ for one in node}
        node = [after for one in node for after, _ in one.next_functions if after is not None]
    assert not [name for name in names if "Adaptive" in name]  # whose backward PyTorch refuses on a GPU
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(torch.autograd.grad(pooled.square().sum(), x)[0], gradient)
