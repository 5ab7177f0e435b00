"""Generalised mean pooling between mean and maximum, and its explanation in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medxai.explain import explain
from medxai.networks.ggem import GGeM


@pytest.mark.parametrize("shape", [(2, 12, 4, 5), (2, 12, 3, 4, 5)])
def test_between_mean_and_maximum(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape) + 0.01
    assert torch.allclose(GGeM(12, 4, p=1.0)(x), x.flatten(2).mean(2), atol=1e-6)
    top = x.flatten(2).amax(2)
    assert ((GGeM(12, 3, p=64.0)(x) - top).abs() <= 0.1 * top).all()
    assert (GGeM(12, 3, p=1000.0)(x * 1e4) <= top * 1e4 * 1.0001).all()


@pytest.mark.parametrize("p", [1.0, 3.0, 7.5])
def test_closed_form_of_the_gradient(p: float) -> None:
    pool, x = GGeM(6, 2, p=p), torch.randn(2, 6, 3, 4, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(pool(x).sum(), x)
    assert torch.allclose(pool.token_weights(x.detach()), gradient, rtol=1e-3, atol=1e-6)


class Headed(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.act = nn.Conv2d(1, 6, 3, padding=1), nn.ReLU()
        self.pool, self.fc = GGeM(6, 2, p=p), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.act(self.conv(x)) + 0.1))


def test_every_cam_works_and_sharpens_with_the_power() -> None:
    x = torch.randn(1, 1, 9, 11)
    mean = explain(Headed(1.0), x, methods=("gradcam", "hirescam"), classes=1, layers="act")
    assert torch.allclose(mean.get("gradcam").raw, mean.get("hirescam").raw, atol=1e-6)
    flat, sharp = (
        explain(Headed(p), x, methods="hirescam", classes=1, layers="act")[0]
        .raw.abs()
        .flatten()
        .sort(descending=True)
        .values
        for p in (1.0, 8.0)
    )
    assert sharp[:5].sum() / sharp.sum() > 1.5 * flat[:5].sum() / flat.sum()


def test_groups_must_divide() -> None:
    with pytest.raises(ValueError, match="do not divide"):
        GGeM(10, 4)
    with pytest.raises(ValueError, match="positive"):
        GGeM(10, 5, p=0)
