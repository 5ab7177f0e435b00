"""Losses: what is ignored does not count, known values, no gradient through prototypes."""

from __future__ import annotations

import math

import pytest
import torch

from medxai.learn.nuclei.losses import (
    contrastive_loss,
    cross_entropy,
    detection_loss,
    dice_loss,
    segmentation_loss,
)


def test_ignored_pixels_do_not_count() -> None:
    logits = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 2, (2, 6, 8), generator=torch.Generator().manual_seed(1))
    label[:, :3] = -1
    other = logits.clone()
    other[:, :, :3] = 100 * torch.randn(2, 2, 3, 8)
    for loss in (cross_entropy, dice_loss):
        torch.testing.assert_close(loss(logits, label), loss(other, label))
    assert float(cross_entropy(logits, torch.full_like(label, -1))) == 0


def test_known_values() -> None:
    logits = torch.zeros(1, 2, 2, 4)
    label = torch.tensor([[[1, 1, 1, 0], [0, 0, -1, -1]]])
    assert float(cross_entropy(logits, label)) == pytest.approx(math.log(2))
    assert float(dice_loss(logits, label)) == pytest.approx(1 - (2 * 1.5 + 1) / (3 + 3 + 1))
    cells = torch.full_like(label, -1)
    cells[0, 0, 0] = 0
    both = segmentation_loss(logits, label, cells, 0.5)
    assert float(both) == pytest.approx(1.5 * math.log(2) + 1 - 4 / 7)
    assert float(segmentation_loss(logits, label, None, 0.5)) == pytest.approx(math.log(2) + 1 - 4 / 7)


def test_detection_weighs_the_middles_tenfold() -> None:
    heat = torch.tensor([[[1.0, 0.0, 0.0, 0.04]]])
    assert float(detection_loss(torch.zeros_like(heat), heat)) == pytest.approx((10 + 0.04**2) / 13)
    assert float(detection_loss(heat, heat)) == 0


def test_contrast_of_known_features() -> None:
    """Two kinds on two axes: the own prototype against two pixels of the other kind."""
    nucleus, tissue = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 2)
    first, second = math.log(1 + 2 * math.exp(-2)), math.log(1 + 3 * math.exp(-2))
    assert float(contrastive_loss(nucleus, tissue, 0.5)) == pytest.approx((first + second) / 2)
    assert float(contrastive_loss(nucleus, tissue, 0.1)) < float(contrastive_loss(nucleus, nucleus[:2], 0.1))


def test_no_gradient_through_the_prototypes() -> None:
    nucleus = torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.Generator().manual_seed(2)), dim=1)
    tissue = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(3)), dim=1)
    nucleus.requires_grad_()
    found = torch.autograd.grad(contrastive_loss(nucleus, tissue, 1.0), nucleus)[0]
    ours = torch.nn.functional.normalize(nucleus.detach().mean(0), dim=0)
    theirs = torch.nn.functional.normalize(tissue.mean(0), dim=0)
    alone = nucleus.detach().clone().requires_grad_()

    def term(z: torch.Tensor, centre: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        own = (z @ centre).exp()
        return -(own / (own + (z @ others.T).exp().sum(1))).log().mean()

    expected = (term(alone, ours, tissue) + term(tissue, theirs, alone)) / 2
    torch.testing.assert_close(found, torch.autograd.grad(expected, alone)[0])
