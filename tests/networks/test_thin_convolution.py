"""Convolutions of thin arrays are those of volumes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medxai.networks.thin_convolution import ThinConv3d


@pytest.mark.parametrize("size", [(11, 9, 1), (7, 5, 1), (6, 9, 4)])
@pytest.mark.parametrize(
    ("kernel", "stride", "bias"), [(3, 1, True), (7, (1, 2, 2), False), (3, 2, False), (1, 2, True)]
)
def test_the_same_as_a_plain_convolution(
    size: tuple[int, int, int], kernel: int, stride: int | tuple[int, int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    thin = ThinConv3d(3, 5, kernel, stride=stride, padding=kernel // 2, bias=bias).double()
    plain = nn.Conv3d(3, 5, kernel, stride=stride, padding=kernel // 2, bias=bias).double()
    plain.load_state_dict(thin.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = thin(x), plain(x)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradient = torch.randn_like(ours)
    mine = torch.autograd.grad(ours, [x, thin.weight], gradient)
    other = torch.autograd.grad(theirs, [x, plain.weight], gradient)
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_other_paddings_are_left_alone() -> None:
    torch.manual_seed(0)
    thin = ThinConv3d(1, 1, (3, 3, 1), padding=(0, 1, 0))
    assert thin(torch.randn(1, 1, 5, 5, 1)).shape == (1, 1, 3, 5, 1)
