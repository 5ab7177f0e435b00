from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

if find_spec("openvino") is None:
    pytest.skip("needs the extra 'prepared'", allow_module_level=True)

from medxai.explain.enlarge import enlarge, enlarging
from medxai.predict import openvino_engine, reach
from medxai.predict.blends import Blends, Pair, Sums
from medxai.predict.openvino_engine import Engine, convert, fix
from medxai.predict.reach import Waist, affine_end, deep_from, waists


class _Network(nn.Module):
    """Scaled input, a strided stem with normalisation, and layers whose weights outweigh what they give."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(dims)
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.stem = conv(2, 8, 7, stride=2, padding=3)
        self.norm = norm(8)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        self.second = conv(8, 8, 3, stride=2, padding=1)
        self.third = conv(8, 64, 3, stride=4, padding=1)
        self.fourth = conv(64, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.norm(self.stem(2 * x - 1)).relu()).relu()
        x = self.fourth(self.third(x).relu()).relu()
        return self.head(x.flatten(2).mean(-1))


SHAPES = {2: (2, 45, 62), 3: (2, 20, 33, 26)}
GRIDS = {2: (3, 4), 3: (2, 3, 4)}


@pytest.fixture(scope="module", params=[2, 3])
def made(request: pytest.FixtureRequest) -> tuple[_Network, Engine]:
    network, shape = _Network(request.param).eval(), SHAPES[request.param]
    graph, weights = convert(network, torch.zeros(2, *shape))
    return network, Engine(graph, weights, shape, 2, "float32")


def _pair(shape: tuple[int, ...], seed: int = 0) -> Pair:
    source = torch.Generator().manual_seed(seed)
    clean, base = torch.randn(2, *shape, generator=source)
    return Pair(clean, base, enlarging(GRIDS[len(shape) - 1], shape[1:]))


def _close(got: torch.Tensor | None, expected: torch.Tensor) -> None:
    assert got is not None
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("total", "kind"), [(4, Pair), (1000, Sums)])
def test_the_same_as_mixing_the_images(made: tuple[_Network, Engine], total: int, kind: type) -> None:
    network, engine = made
    blends, pair = Blends(engine), _pair(engine.shape)
    ready = blends.ready(pair, total)
    assert type(ready) is kind
    for count in (1, 2, 9, 17):
        masks = torch.rand(count, *GRIDS[len(engine.shape) - 1])
        large = enlarge(masks, engine.shape[1:])[:, None]
        with torch.no_grad():
            expected = network(pair.clean * large + pair.base * (1 - large))
        _close(blends(ready, masks), expected)


def test_another_pair_is_not_taken_for_the_last(made: tuple[_Network, Engine]) -> None:
    network, engine = made
    blends, masks = Blends(engine), torch.rand(3, *GRIDS[len(engine.shape) - 1])
    for total in (4, 1000):
        for seed in (1, 2):
            pair = _pair(engine.shape, seed)
            with torch.no_grad():
                _close(blends(blends.ready(pair, total), masks), network(pair.mixtures(masks)))


def test_a_wrong_result_is_noticed_and_never_used(
    made: tuple[_Network, Engine], caplog: pytest.LogCaptureFixture
) -> None:
    engine = made[1]
    blends, pair, masks = Blends(engine), _pair(engine.shape), torch.rand(3, *GRIDS[len(engine.shape) - 1])
    ready = blends.ready(pair, 1000)
    assert isinstance(ready, Sums)
    with caplog.at_level(logging.WARNING, logger="medxai"):
        assert blends(Sums(pair, ready.rows + 1), masks) is None
    assert "differ from the whole network" in caplog.text
    assert blends(ready, masks) is None
    assert blends(pair, masks) is not None  # the other way was not wrong


def test_many_samples_go_through_the_deep_layers_at_once(
    made: tuple[_Network, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, engine = made
    monkeypatch.setattr(reach, "_LEAST_DEEP", 0.0)  # in 3D the stem does nearly all of the work
    sizes = []
    build = openvino_engine.build

    def watched(model: object, *given: object) -> Callable[..., list[torch.Tensor]]:
        run = build(model, *given)

        def running(*x: torch.Tensor, **more: object) -> list[torch.Tensor]:
            sizes.append(len(x[-1]))
            return run(*x, **more)

        return running

    monkeypatch.setattr(openvino_engine, "build", watched)
    fresh = Engine(engine._graph, engine._weights, engine.shape, engine.batch, "float32")
    x = torch.randn(2 * engine.many + 1, *engine.shape)
    with torch.no_grad():
        _close(fresh(x)[0], network(x))
    assert sizes.count(engine.many) == 2
    assert sizes[-1] == 1


def test_where_weights_outweigh_values() -> None:
    def waist(name: str, work: float, weights: int, values: int) -> Waist:
        return Waist(name, (1, 1), (), work, weights, values)

    found = [waist("input", 0, 0, 0), waist("wide", 50, 100, 90), waist("act", 51, 100, 90), waist("deep", 90, 900, 95)]
    deep = deep_from(found, 100, 4)
    assert deep is not None
    assert deep.name == "act"  # what follows a kernel alone belongs to it
    assert deep_from(found, 100, 1000) is None
    assert deep_from(found, 53, 4) is None  # too little is behind
    assert deep_from(found[:1], 100, 4) is None


@settings(max_examples=20, deadline=None)
@given(
    scaled=st.booleans(),
    stacked=st.booleans(),
    normalised=st.booleans(),
    active=st.booleans(),
    used_twice=st.booleans(),
)
def test_the_affine_layers_end_before_the_first_activation(
    scaled: bool, stacked: bool, normalised: bool, active: bool, used_twice: bool
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one((x * 3 + 1) if scaled else x)
            y = self.norm(y) if normalised else y
            y = self.two(y) if stacked else y.relu() if active else y.sigmoid()
            y = y.flatten(2).mean(-1)
            return y + x.flatten(1).mean(1, keepdim=True) if used_twice else y

    model = fix(Engine(*convert(Net().eval(), torch.zeros(2, 1, 9, 8)), (1, 9, 8), 1, "float32").read(), [1, 1, 9, 8])
    name = affine_end(model)
    if used_twice:
        assert name is None
        return
    kinds = {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
    assert name is not None
    assert kinds[name] in (("BatchNormInference", "Add", "Multiply") if normalised else ("Add", "Convolution"))
    assert [kinds[w.name] for w in waists(model)[0] if w.name == name]
