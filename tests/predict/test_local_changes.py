from __future__ import annotations

import logging
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

if find_spec("openvino") is None:
    pytest.skip("needs the extra 'prepared'", allow_module_level=True)

from medxai.explain.windows import Windows
from medxai.predict import local_changes
from medxai.predict.local_changes import LocalChanges, regions
from medxai.predict.openvino_engine import Engine, convert, fix
from medxai.predict.reach import Span, waists


class _Residual(nn.Module):
    def __init__(self, dims: int, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.first = conv(cin, cout, 3, stride=stride, padding=1, bias=False)
        self.norm = norm(cout)
        self.second = conv(cout, cout, 3, padding=1)
        self.short = conv(cin, cout, 1, stride=stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.second(self.norm(self.first(x)).relu()) + self.short(x)).relu()


class _Network(nn.Module):
    """Stem, pooling, residual blocks, a concatenation and a head over positions."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        torch.manual_seed(dims)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.stem = conv(2, 8, 7, stride=2, padding=3)
        self.pool = (nn.MaxPool2d if dims == 2 else nn.MaxPool3d)(3, stride=2, padding=1)
        self.one = _Residual(dims, 8, 8, 1)
        self.grow = conv(8, 4, 3, padding=1)
        self.mean = (nn.AvgPool2d if dims == 2 else nn.AvgPool3d)(2, stride=2)
        self.two = _Residual(dims, 12, 12, 2)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(self.pool(self.stem(x).relu()))
        x = self.mean(torch.cat([x, self.grow(x).sigmoid()], 1))
        return self.head(self.two(x).flatten(2).amax(-1))


@pytest.fixture(autouse=True)
def _anything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """In networks this small moving values costs more than computing them."""
    monkeypatch.setattr(local_changes, "_MOVE", 0.0)
    monkeypatch.setattr(local_changes, "_STEP", 0.005)


SHAPES = {2: (2, 90, 75), 3: (2, 41, 56, 50)}


@pytest.fixture(scope="module", params=[2, 3])
def made(request: pytest.FixtureRequest) -> tuple[_Network, Engine]:
    network = _Network(request.param).eval()
    shape = SHAPES[request.param]
    graph, weights = convert(network, torch.zeros(2, *shape))
    return network, Engine(graph, weights, shape, 3, "float32")


def _local(engine: Engine) -> LocalChanges:
    return LocalChanges(engine.read, engine.shape, engine.batch, engine.arithmetic)


def _versions(shape: tuple[int, ...], size: tuple[int, ...], seed: int, count: int) -> tuple[torch.Tensor, ...]:
    """An image and versions of it with a box of noise at random places, some at the borders."""
    source = torch.Generator().manual_seed(seed)
    clean = torch.randn(*shape, generator=source)
    images = clean.repeat(count, *[1] * len(shape))
    for i in range(count):
        where = [slice(None)]
        for whole, length in zip(shape[1:], size, strict=True):
            free = whole - length
            start = [0, free, int(torch.randint(free + 1, (), generator=source))][(i + len(where)) % 3]
            where.append(slice(start, start + length))
        images[(i, *where)] = torch.randn(images[(i, *where)].shape, generator=source)
    return clean, images


@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_the_whole_network(made: tuple[_Network, Engine], seed: int) -> None:
    network, engine = made
    size = (20, 17) if len(engine.shape) == 3 else (9, 14, 11)
    clean, images = _versions(engine.shape, size, seed, 7)
    local = _local(engine)
    got = local(clean, images, lambda x: engine(x)[0])
    assert got is not None  # it was worth it
    with torch.no_grad():
        expected = network(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    again = local(clean, images.flip(0), lambda x: engine(x)[0])
    assert again is not None
    torch.testing.assert_close(again, expected.flip(0), rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_boxes_of_another_image_need_no_versions(made: tuple[_Network, Engine]) -> None:
    """What shows another image in a box is the same as the version that was made of the two."""
    network, engine = made
    dims = len(engine.shape) - 1
    clean, base = torch.randn(2, *engine.shape, generator=torch.Generator().manual_seed(5))
    size = (20, 17) if dims == 2 else (9, 14, 11)
    windows = Windows(engine.shape[1:], size, tuple(s // 2 for s in size))
    index = torch.tensor([0, 3, windows.count - 1, windows.count // 2])
    masks = windows.masks(index)[:, None]
    local = _local(engine)
    got = local.replaced(clean, base, windows.boxes(index), lambda x: engine(x)[0])
    assert got is not None
    with torch.no_grad():
        expected = network(clean * masks + base * (1 - masks))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert len(local._trusted) == 1  # clipped windows are no kind of their own


def test_another_image_is_not_taken_for_the_last(made: tuple[_Network, Engine]) -> None:
    network, engine = made
    size = (12, 12) if len(engine.shape) == 3 else (8, 8, 8)
    local = _local(engine)
    for seed in (1, 2):
        clean, images = _versions(engine.shape, size, seed, 3)
        got = local(clean, images, lambda x: engine(x)[0])
        with torch.no_grad():
            torch.testing.assert_close(got, network(images), rtol=1e-4, atol=1e-5)


def test_large_and_scattered_changes_run_the_whole_network(made: tuple[_Network, Engine]) -> None:
    engine = made[1]
    clean = torch.randn(engine.shape)
    everywhere = torch.randn(4, *engine.shape)
    scattered = clean.repeat(2, *[1] * len(engine.shape))
    scattered[(..., *[0] * (len(engine.shape) - 1))] = 7
    scattered[(..., *[-1] * (len(engine.shape) - 1))] = 7
    for images in (everywhere, scattered):
        assert _local(engine)(clean, images, lambda x: engine(x)[0]) is None


def test_versions_without_a_difference(made: tuple[_Network, Engine]) -> None:
    network, engine = made
    clean = torch.randn(engine.shape)
    images = clean.repeat(2, *[1] * len(engine.shape))
    images[1][(slice(None), *[slice(0, 5)] * (len(engine.shape) - 1))] = 0
    got = _local(engine)(clean, images, lambda x: engine(x)[0])
    with torch.no_grad():
        torch.testing.assert_close(got, network(images), rtol=1e-4, atol=1e-5)


def test_a_wrong_result_is_noticed_and_never_used(
    made: tuple[_Network, Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = made[1]
    size = (12, 12) if len(engine.shape) == 3 else (8, 8, 8)
    clean, images = _versions(engine.shape, size, 0, 3)
    monkeypatch.setattr(LocalChanges, "_put", staticmethod(lambda *_given: None))
    local = _local(engine)
    with caplog.at_level(logging.WARNING, logger="medxai"):
        assert local(clean, images, lambda x: engine(x)[0]) is None
    assert "differ from the whole network" in caplog.text
    assert local(clean, images, lambda x: engine(x)[0]) is None


def test_only_so_many_kinds_are_compiled(made: tuple[_Network, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made[1]
    monkeypatch.setattr(local_changes, "_KINDS", 1)
    local = _local(engine)
    dims = len(engine.shape) - 1
    small = _versions(engine.shape, (4,) * dims, 0, 2)
    larger = _versions(engine.shape, (16,) * dims, 0, 2)
    assert local(*small, lambda x: engine(x)[0]) is not None
    assert local(*larger, lambda x: engine(x)[0]) is None
    assert local(*small, lambda x: engine(x)[0]) is not None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_reach_is_what_a_change_reaches(seed: int) -> None:
    """One changed pixel changes no waist outside the stated positions, and reaches them for some weights."""
    draws = np.random.default_rng(seed)
    layers: list[nn.Module] = []
    channels = 2
    if draws.random() < 0.5:  # uneven borders, as TensorFlow pads
        layers.append(nn.ConstantPad2d(tuple(draws.integers(0, 4, 4).tolist()), 0.0))
    for _ in range(int(draws.integers(1, 5))):
        kernel, stride = int(draws.integers(1, 6)), int(draws.integers(1, 4))
        padding, dilation = int(draws.integers(0, kernel // 2 + 1)), int(draws.integers(1, 3))
        kind = int(draws.integers(0, 3))
        if kind == 0:
            layers.append(nn.MaxPool2d(kernel, stride, padding=padding, dilation=1))
        elif kind == 1:
            layers.append(nn.AvgPool2d(kernel, stride, padding=padding))
        else:
            layers.append(nn.Conv2d(channels, 3, kernel, stride, padding, dilation))
            channels = 3
        layers.append(nn.Sigmoid())
    body = nn.Sequential(*layers).double()
    x = torch.from_numpy(draws.normal(size=(1, 2, 61, 53)))
    try:
        values = body(x)
    except RuntimeError:
        return  # too small for these layers
    if min(values.shape[2:]) < 1:
        return
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph, weights = convert(network.float().eval(), x.float())
    model = fix(Engine(graph, weights, (2, 61, 53), 1, "float32").read(), [1, 2, 61, 53])
    last = waists(model)[0][-1]
    assert last.shape == tuple(values.shape)[1:]
    body.double()
    place = (int(draws.integers(61)), int(draws.integers(53)))
    other = x.clone()
    other[0, :, *place] += 100
    with torch.no_grad():
        differs = (body(other) != body(x)).any(1)[0]
    for axis, span in enumerate(last.reach):
        line = differs.any(1 - axis).nonzero().flatten().tolist()
        first, end = span.changed(place[axis], place[axis])
        assert all(first <= position <= end for position in line)


@given(
    spans=st.lists(st.tuples(st.integers(1, 3), st.integers(-4, 0), st.integers(0, 4)), min_size=1, max_size=4),
    first=st.integers(-5, 50),
    length=st.integers(0, 9),
)
def test_spans_compose(spans: list[tuple[int, int, int]], first: int, length: int) -> None:
    total = Span()
    ends = (first, first + length)
    for values in spans:
        total = total.then(Span(*values))
    for values in reversed(spans):
        ends = Span(*values).needed(*ends)
    assert total.needed(first, first + length) == ends
    low, high = total.changed(first, first)
    for output in range(low - 2, high + 3):
        one, other = total.needed(output, output)
        assert (low <= output <= high) == (one <= first <= other)


def test_regions_are_bounding_boxes() -> None:
    clean = torch.zeros(2, 5, 6, 7)
    images = clean.repeat(3, 1, 1, 1, 1)
    images[0, 1, 2, 3, 4] = 1
    images[1, 0, 1:4, 0:2, 6] = 1
    assert regions(clean, images).tolist() == [
        [[2, 2], [3, 3], [4, 4]],
        [[1, 3], [0, 1], [6, 6]],
        [[0, 0], [0, 0], [0, 0]],
    ]
