from __future__ import annotations

import numpy as np
import pytest
import torch

from medxai.networks.densenet3d import STRIDE, TARGET_LAYER, LogMeanExp3d, SmallDenseNet3d


def test_logits_and_features_have_the_stated_shapes() -> None:
    network = SmallDenseNet3d(1, growth_rate=8, layers=2).eval()
    seen: list[torch.Tensor] = []
    network.get_submodule(TARGET_LAYER).register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.inference_mode():
        logits = network(torch.randn(2, 1, 24, 32, 40))
    assert logits.shape == (2, 1)
    assert seen[0].shape[2:] == tuple(n // STRIDE for n in (24, 32, 40))
    assert seen[0].min() >= 0


def test_a_cell_is_centred_on_the_voxels_it_stands_for() -> None:
    torch.manual_seed(0)
    network = SmallDenseNet3d(1, layers=1)
    kernel = network.features.conv0
    torch.nn.init.constant_(kernel.weight, 1.0)
    x = torch.zeros(1, 1, 32, 32, 32, requires_grad=True)
    # Plain averaging in place of the maximum shows the geometry without its choice of one voxel.
    torch.nn.functional.avg_pool3d(kernel(x), 2)[0, 0, 4, 4, 4].backward()
    assert x.grad is not None
    weight = x.grad[0, 0].sum(dim=(1, 2)).numpy()
    centre = float((weight * np.arange(32)).sum() / weight.sum())
    assert centre == pytest.approx(4 * STRIDE + (STRIDE - 1) / 2)


def test_log_mean_exp_lies_between_mean_and_maximum() -> None:
    scores = torch.randn(3, 2, 4, 5, 6) * 4
    pooled = LogMeanExp3d()(scores)
    flat = scores.flatten(2)
    assert (pooled >= flat.mean(dim=2)).all()
    assert (pooled <= flat.amax(dim=2)).all()
    assert torch.allclose(LogMeanExp3d()(torch.full((1, 1, 2, 2, 2), 700.0)), torch.tensor([[700.0]]))
