from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from medxai.learn.brain.losses import CLASS_WEIGHTS, FusionLoss, info_nce
from medxai.prepare.brain.subject import MODALITIES


@given(st.integers(2, 24), st.integers(0, 99))
def test_facts_of_the_contrast(batch: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, batch, 512, generator=source)
    assert info_nce(x, x, 1e-3) < 1e-6  # equal views, temperature towards 0
    assert info_nce(x, y) == pytest.approx(float(info_nce(y, x)), abs=1e-5)
    assert info_nce(x, y, 1.0) == pytest.approx(math.log(batch), abs=0.15)  # views that say nothing
    assert info_nce(x, 3 * y) == pytest.approx(float(info_nce(x, y)), abs=1e-4)  # length does not count
    order = torch.randperm(batch, generator=source)
    assert info_nce(x[order], y[order]) == pytest.approx(float(info_nce(x, y)), abs=1e-4)


def test_a_mixed_up_batch_is_worse() -> None:
    x = torch.randn(8, 512)
    assert info_nce(x, x.roll(1, 0)) > math.log(8) > info_nce(x, x)


def _batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    logits = torch.randn(size, 3, requires_grad=True)
    embeddings = {name: torch.randn(size, 512, requires_grad=True) for name in MODALITIES}
    return logits, torch.arange(size) % 3, embeddings


def test_the_total_is_the_weighted_sum() -> None:
    logits, labels, embeddings = _batch()
    found = FusionLoss(CLASS_WEIGHTS[3])(logits, labels, embeddings)
    weight = torch.tensor([0.45, 0.1, 0.55])
    picked = -logits.log_softmax(1)[torch.arange(6), labels]
    assert torch.allclose(found.classes, (picked * weight[labels]).sum() / weight[labels].sum())
    total = 0.8 * found.classes + 0.1 * found.functional_structural + 0.1 * found.dynamic_static
    assert torch.allclose(found.total, total)
    assert min(found.functional_structural, found.dynamic_static) > 0


def test_the_views_are_product_and_sum() -> None:
    logits, labels, embeddings = _batch()
    loss = FusionLoss()
    one, two = embeddings["alff"], embeddings["fa"]
    views = loss.projections["product"](one * two), loss.projections["sum"](one + two)
    assert torch.allclose(loss(logits, labels, embeddings).functional_structural, info_nce(*views))


def test_who_lacks_a_modality_has_no_part_in_its_alignment() -> None:
    logits, labels, embeddings = _batch()
    present = torch.ones(6, 4, dtype=torch.bool)
    present[2, MODALITIES.index("fa")] = False
    loss = FusionLoss()
    found = loss(logits, labels, embeddings, present)
    found.total.backward()
    for name in ("alff", "fa"):
        assert embeddings[name].grad[2].abs().sum() == 0 < embeddings[name].grad[3].abs().sum()
    assert embeddings["dfc"].grad[2].abs().sum() > 0
    rest = [0, 1, 3, 4, 5]
    fewer = loss(logits[rest], labels[rest], {name: value[rest] for name, value in embeddings.items()})
    assert torch.allclose(found.functional_structural, fewer.functional_structural, atol=1e-6)
    present[:, MODALITIES.index("sfc")] = False
    assert loss(logits, labels, embeddings, present).dynamic_static == 0
    assert loss(logits, labels, {name: embeddings[name] for name in ("alff", "sfc")}).functional_structural == 0


def test_an_alignment_brings_views_together() -> None:
    torch.manual_seed(0)
    shared = torch.randn(16, 512)
    dynamic, static = shared + 0.5 * torch.randn(16, 512), shared + 0.5 * torch.randn(16, 512)
    loss = FusionLoss(weights=(0, 0, 1))
    optimiser = torch.optim.Adam(loss.parameters(), 1e-3)
    logits, labels = torch.zeros(16, 2), torch.zeros(16, dtype=torch.long)
    values = []
    for _ in range(30):
        found = loss(logits, labels, {"dfc": dynamic, "sfc": static})
        optimiser.zero_grad()
        found.total.backward()
        optimiser.step()
        values.append(float(found.dynamic_static))
    assert values[-1] < 0.1 * values[0]
    assert functional.cosine_similarity(dynamic, static).mean() > 0.5
