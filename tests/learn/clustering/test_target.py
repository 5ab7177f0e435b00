"""Target distribution and divergence: the hand example, sharpness, zero only when equal."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medxai.learn.clustering.target import divergence, target_distribution


def some(seed: int, n: int = 12, k: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(n, k, generator=generator, dtype=torch.float64), dim=1)


def entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log()).sum(1)


def test_by_hand() -> None:
    q = torch.tensor([[0.6, 0.4], [0.4, 0.6]])
    expected = torch.tensor([[0.6923, 0.3077], [0.3077, 0.6923]])
    torch.testing.assert_close(target_distribution(q), expected, atol=5e-5, rtol=0)


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_sharper_where_clusters_are_equally_frequent(seed: int) -> None:
    q = some(seed)
    balanced = torch.cat([q.roll(shift, 1) for shift in range(3)])  # every cluster as often as the others
    p = target_distribution(balanced)
    torch.testing.assert_close(p.sum(1), torch.ones(36, dtype=p.dtype))
    assert (entropy(p) <= entropy(balanced) + 1e-12).all()
    assert (p.argmax(1) == balanced.argmax(1)).all()


def test_frequent_clusters_are_held_back() -> None:
    q = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.5, 0.5]])
    assert target_distribution(q)[3, 1] > 0.5


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_divergence_is_zero_only_when_equal(seed: int) -> None:
    p, q = some(seed), some(seed + 1)
    assert float(divergence(p, q.log())) > 0
    assert abs(float(divergence(p, p.log()))) < 1e-12
    expected = torch.nn.functional.kl_div(q.log(), p, reduction="batchmean")
    torch.testing.assert_close(divergence(p, q.log()), expected)
