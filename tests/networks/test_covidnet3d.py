"""CovidNet3D and the networks it is compared with: sizes to the last weight, grids, placement, exact maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medxai.errors import BundleError
from medxai.explain.engine import explain
from medxai.networks.covidnet3d import (
    BOTTLENECKS,
    CELLS,
    FINE_LAYERS,
    OPERATIONS,
    TARGET_LAYER,
    Architecture,
    CovidNet3d,
    parameters,
)
from medxai.networks.depthwise3d import DepthwiseConv3d
from medxai.networks.published3d import Mc3x18, densenet3d121, resnet3d101


def published(operation: str, size: str) -> CovidNet3d:
    return CovidNet3d.of(Architecture.uniform(operation, size, "published", "published"), 3)


@pytest.mark.parametrize(
    ("size", "fixed", "smallest", "all_of_them"),
    [("S", 676_515, 2_797_219, 25_689_763), ("L", 3_070_947, 18_217_059, 153_832_803)],
)
def test_sizes_of_the_published_space(size: str, fixed: int, smallest: int, all_of_them: int) -> None:
    with torch.device("meta"):
        assert parameters(published("skip", size)) == fixed
        assert parameters(published("k3e3", size)) == smallest
        assert fixed + sum(parameters(published(name, size)) - fixed for name in BOTTLENECKS) == all_of_them


def test_sizes_of_the_baselines() -> None:
    with torch.device("meta"):
        assert parameters(resnet3d101(3, 3)) == 85_251_267
        assert parameters(Mc3x18(3, 3)) == 11_491_779
        assert parameters(densenet3d121(2, 3)) == 11_288_578
        assert parameters(densenet3d121(3, 3)) == 11_289_603
        assert parameters(densenet3d121(3, 1)) == 11_245_699


@pytest.mark.parametrize("placement", ["published", "centred"])
@pytest.mark.parametrize(
    ("shape", "depth", "grids"),
    [
        ((32, 128, 128), "published", [(8, 32, 32), (4, 16, 16), (2, 8, 8), (2, 8, 8), (1, 4, 4), (1, 4, 4)]),
        ((40, 256, 256), "published", [(10, 64, 64), (5, 32, 32), (3, 16, 16), (3, 16, 16), (2, 8, 8), (2, 8, 8)]),
        ((32, 512, 512), "published", [(8, 128, 128), (4, 64, 64), (2, 32, 32), (2, 32, 32), (1, 16, 16), (1, 16, 16)]),
        ((32, 128, 96), "kept", [(8, 32, 24), (4, 16, 12), (4, 8, 6), (4, 8, 6), (4, 4, 3), (4, 4, 3)]),
    ],
)
def test_grids(placement: str, shape: tuple[int, ...], depth: str, grids: list[tuple[int, ...]]) -> None:
    with torch.device("meta"):
        network = CovidNet3d.of(Architecture.uniform("skip", "S", depth, placement), 3).eval()  # type: ignore[arg-type]
        x = network.stem(torch.empty(1, 1, *shape))
        found = []
        for stage in network.stages:
            x = stage(x)
            found.append(tuple(x.shape[2:]))
    assert found == grids


def test_centred_cells_are_centred_on_the_voxels_they_stand_for() -> None:
    """The centre of gravity of a cell's reach in the input, by the gradient of a network without noise."""
    away = {}
    for placement in ("centred", "published"):
        architecture = Architecture.uniform("k3e3", "S", "published", placement)  # type: ignore[arg-type]
        network = CovidNet3d.of(architecture, 1).double().eval()
        for module in network.modules():
            if isinstance(module, nn.Conv3d):  # positive everywhere: reach without cancellation
                nn.init.constant_(module.weight, 1 / module.weight[0].numel())
        stage = nn.Sequential(network.stem, network.stages[0], network.stages[1])
        x = torch.full((1, 1, 96, 96, 96), 0.1, dtype=torch.double, requires_grad=True)
        y = stage(x)
        assert y.shape[2:] == (12, 12, 12)
        (reach,) = torch.autograd.grad(y[0, :, 5, 6, 5].sum(), [x])
        weights = reach[0, 0].abs().numpy()
        centre = [(weights.sum(tuple({0, 1, 2} - {a})) * np.arange(96)).sum() / weights.sum() for a in range(3)]
        away[placement] = np.array(centre) - (np.array([5, 6, 5]) * 8 + 3.5)
    assert np.abs(away["centred"]).max() < 0.05
    assert np.abs(away["published"] + 3.5).max() < 0.05  # three and a half voxels towards the origin


def test_the_exact_map_averages_to_the_logit() -> None:
    torch.manual_seed(3)
    network = CovidNet3d.of(Architecture.uniform("k5e3"), 3).eval()
    nn.init.normal_(network.classifier.weight)
    x = torch.rand(2, 1, 32, 48, 64)
    found = explain(network, x, methods="cam", classes=1, layers=TARGET_LAYER)[0]
    assert found.raw.shape == (2, 4, 2, 2)
    with torch.inference_mode():
        logit = network(x)[:, 1]
    assert torch.allclose(found.raw.mean((1, 2, 3)) + network.classifier.bias[1], logit, atol=1e-4)


def test_finer_layers_can_be_explained() -> None:
    network = CovidNet3d.of(Architecture.uniform("k3e3"), 2).eval()
    x = torch.rand(1, 1, 32, 48, 64)
    for name, cells in (("stage2", (8, 12, 16)), ("stage3", (4, 6, 8))):
        found = explain(network, x, methods=["gradcam", "layercam"], classes=1, layers=FINE_LAYERS[name])
        assert all(tuple(item.raw.shape[1:]) == cells for item in found)


def test_an_architecture_goes_through_json(tmp_path: Path) -> None:
    names = tuple(OPERATIONS[i % len(OPERATIONS)] for i in range(sum(CELLS)))
    written = Architecture("L", names, "published", "centred")
    written.write(tmp_path / "a.json")
    assert Architecture.read(tmp_path / "a.json") == written
    first = (tmp_path / "a.json").read_bytes()
    written.write(tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == first


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "holds no architecture"),
        ('{"size": "S"}', "holds no architecture"),
        ('{"size": "S", "operations": ["k3e3"]}', "has 1 operations"),
        ('{"size": "XL", "operations": ["k3e3"]}', "XL"),
        ('{"size": "S", "operations": ["k9e9"]}', "k9e9"),
    ],
)
def test_no_architecture_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BundleError, match=reason):
        Architecture.read(tmp_path / "a.json")


@settings(max_examples=15)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 7), st.integers(1, 5)),
    kernel=st.sampled_from([3, 5, 7]),
    seed=st.integers(0, 99),
)
def test_planes_give_the_convolution_and_its_gradients(shape: tuple[int, ...], kernel: int, seed: int) -> None:
    torch.manual_seed(seed)
    module = DepthwiseConv3d(shape[1], kernel).double()
    x = torch.randn(shape, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(shape, dtype=torch.double)
    planes = module.train()(x)
    first = torch.autograd.grad(planes, (x, module.weight), upstream)
    whole = module.eval()(x)
    second = torch.autograd.grad(whole, (x, module.weight), upstream)
    assert torch.allclose(planes, whole)
    assert all(torch.allclose(a, b) for a, b in zip(first, second, strict=True))
    (only,) = torch.autograd.grad(module.train()(x), [x], upstream)
    assert torch.allclose(only, second[0])
