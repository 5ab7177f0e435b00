"""A bright ball in one lobe: finer layers find its slice, the exact map of published strides cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from medxai.explain.engine import explain
from medxai.networks.covidnet3d import FINE_LAYERS, TARGET_LAYER, Architecture, CovidNet3d

SHAPE, RADIUS = (32, 48, 64), 5.0


def balls(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Noise, every second one with a ball: images, labels and centres in voxels."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(s) for s in SHAPE), indexing="ij"))
    labels = np.arange(n) % 2
    centres = random.uniform([8, 10, 10], [24, 38, 54], (n, 3))
    x = random.normal(0.2, 0.05, (n, 1, *SHAPE))
    for image, label, centre in zip(x, labels, centres, strict=True):
        image[0] += 0.6 * label * (((grid - centre[:, None, None, None]) ** 2).sum(0) <= RADIUS**2)
    return torch.from_numpy(x).float(), torch.from_numpy(labels), centres


@pytest.fixture(scope="module", params=["kept", "published"])
def network(request: pytest.FixtureRequest) -> CovidNet3d:
    torch.manual_seed(0)
    made = CovidNet3d.of(Architecture.uniform("skip", "S", request.param, "centred"), 2, dropout=0.0).train()
    optimizer = torch.optim.Adam(made.parameters(), lr=2e-3)
    for step in range(30):
        x, y, _ = balls(8, step)
        loss = functional.cross_entropy(made(x), y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return made.eval()


def test_finer_layers_know_the_slice_and_the_exact_map_only_with_depth(network: CovidNet3d) -> None:
    x, y, centres = balls(12, 999)
    x, centres = x[y == 1], centres[y.numpy() == 1]
    for layer in FINE_LAYERS.values():
        found = explain(network, x, methods="layercam", classes=1, layers=layer)[0]
        cells = np.array(found.raw.shape[1:])
        size = np.array(SHAPE) / cells
        for values, centre in zip(found.raw.numpy(), centres, strict=True):
            peak = (np.array(np.unravel_index(values.argmax(), values.shape)) + 0.5) * size - 0.5
            assert (np.abs(peak - centre) <= RADIUS + size / 2).all()
    exact = explain(network, x, methods="cam", classes=1, layers=TARGET_LAYER)[0]
    depth = network.architecture.depth
    assert tuple(exact.raw.shape[1:]) == {"kept": (4, 2, 2), "published": (1, 2, 2)}[depth]
    spread = np.ptp(exact.map.numpy(), axis=1).max()
    assert (spread == 0) == (depth == "published")
