from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

if find_spec("openvino") is None:
    pytest.skip("needs the extra 'prepared'", allow_module_level=True)

from medxai.predict.openvino_engine import Engine, convert, fix, openvino
from medxai.predict.short_convolution import axis, choose_tile, shorten


@given(positions=st.integers(3, 20), tile=st.sampled_from([3, 4, 5, 6]), seed=st.integers(0, 1000))
def test_an_axis_is_a_padded_convolution(positions: int, tile: int, seed: int) -> None:
    made = axis(positions, tile)
    draws = np.random.default_rng(seed)
    x, kernel = draws.normal(size=positions), draws.normal(size=3)
    products = np.einsum("pth,h->pt", made.into, x) * (made.kernel @ kernel)[:, None]
    got = np.einsum("hpt,pt->h", made.back, products)
    np.testing.assert_allclose(got, np.correlate(np.pad(x, 1), kernel, "valid"), atol=1e-9)


class _Deep(nn.Module):
    """A convolution that pays to replace, one with a stride and one of a large plane, which do not."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = nn.Conv2d(3, 128, 3, padding=1, bias=bias)
        self.strided = nn.Conv2d(128, 128, 3, stride=2, padding=1, bias=bias)
        self.deep = nn.Conv2d(128, 160, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(160)
        self.last = nn.Conv2d(160, 128, 3, padding=1, bias=bias)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.deep(self.strided(self.large(x)).relu())).relu()
        return self.last(x).flatten(2).mean(-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(18, 22), (14, 12), (30, 28)])
def test_replaced_convolutions_give_the_same_outputs(bias: bool, size: tuple[int, int]) -> None:
    network = _Deep(bias).eval()
    x = torch.randn(16, 3, *size)
    graph, weights = convert(network, x)
    model = openvino().Core().read_model(graph, weights)
    model.reshape({0: list(x.shape)})
    assert shorten(openvino(), model) == 2
    with torch.no_grad():
        expected = network(x)
    (got,) = Engine(graph, weights, x.shape[1:], 16, "float32")(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


class _Block(nn.Module):
    """Two residual blocks of convolutions that are replaced, between one that stays and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(3, 128, 3, stride=2, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(128, 128, 3, padding=1) for _ in range(4))
        self.side = nn.Conv2d(128, 128, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        x = (self.body[1](self.body[0](x).relu()) + self.side(x)).relu()
        x = (self.body[3](self.body[2](x).relu()) + x).relu()
        return x.flatten(2).mean(-1)


@pytest.mark.parametrize("size", [(24, 20), (12, 14)])
def test_axes_are_swapped_once_for_a_chain(size: tuple[int, int]) -> None:
    network, x = _Block().eval(), torch.randn(16, 3, *size)
    graph, weights = convert(network, x)
    model = fix(openvino().Core().read_model(graph, weights), list(x.shape))
    assert shorten(openvino(), model) == 4
    swaps = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Transpose" and node.input_value(0).get_node().get_type_name() != "Constant"
    ]
    assert len(swaps) == 3  # into the chain, of the side branch, and out of it
    with torch.no_grad():
        expected = network(x)
    (got,) = Engine(graph, weights, x.shape[1:], 16, "float32")(x)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


@settings(max_examples=50)
@given(batch=st.integers(1, 64), channels=st.integers(1, 512), height=st.integers(1, 40), width=st.integers(1, 40))
def test_only_what_saves_multiplications_is_replaced(batch: int, channels: int, height: int, width: int) -> None:
    tile = choose_tile(batch, (channels, channels), (height, width))
    if tile is not None:
        tiles = -(-height // tile) * -(-width // tile)
        assert (tile + 2) ** 2 * tiles <= 0.4 * 9 * height * width
        assert channels >= 128
