"""Gradients at the input against their closed forms."""

from __future__ import annotations

import pytest
import torch

from medxai.explain import explain
from tests.explain.nets import Flat, Pooled

SHAPES = {2: (2, 1, 12, 20), 3: (2, 1, 8, 12, 20)}


@pytest.mark.parametrize("dims", [2, 3])
def test_input_gradients_of_a_bias_free_network_sum_to_the_score(dims: int) -> None:
    network = Flat(SHAPES[dims][2:], bias=False)
    x = torch.randn(SHAPES[dims])
    result = explain(network, x, methods=("inputxgradient", "integrated_gradients", "saliency"), classes=0)
    for method in ("inputxgradient", "integrated_gradients"):
        item = result.get(method)
        assert item.layer == "input"
        assert torch.allclose(item.raw.flatten(1).sum(1), item.score, rtol=1e-3, atol=1e-4), method
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(leaf)[:, 0].sum(), leaf)
    assert torch.allclose(result.get("saliency").raw, gradient.abs().amax(1), atol=1e-7)


def test_integrated_gradients_reports_what_is_missing() -> None:
    network, x = Pooled(2), torch.randn(SHAPES[2])
    item = explain(
        network,
        x,
        methods="integrated_gradients",
        classes=1,
        options={"integrated_gradients": {"steps": 64, "baseline": "min"}},
    )[0]
    base = x.amin((2, 3), keepdim=True).expand_as(x)
    difference = (network(x) - network(base))[:, 1].detach()
    assert torch.allclose(item.raw.flatten(1).sum(1), difference, rtol=0.02, atol=1e-3)
    assert item.report["completeness_residual"].max() < 0.05
    assert item.report["baseline"] == "min"


def test_smoothgrad_without_noise_is_saliency() -> None:
    network, x = Pooled(2), torch.randn(SHAPES[2])
    plain = explain(network, x, methods="saliency", classes=1)[0].raw
    smoothed = explain(
        network, x, methods="smoothgrad", classes=1, options={"smoothgrad": {"noise": 0.0, "samples": 2}}
    )[0].raw
    assert torch.allclose(plain, smoothed, atol=1e-6)
    noisy = [explain(network, x, methods="smoothgrad", classes=1, seed=seed)[0].raw for seed in (0, 0, 1)]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])
