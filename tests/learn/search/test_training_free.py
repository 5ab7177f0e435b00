"""The training-free score against its definition, and how it behaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medxai.learn.search.candidates import like, random_architecture
from medxai.learn.search.training_free import Signature, random_network, rank, score, signature
from medxai.networks.covidnet3d import Architecture, CovidNet3d, parameters


def by_definition(teacher: Signature, student: Signature) -> float:
    """With the channel matrices of every class built in full."""
    relation = -float((teacher.relation - student.relation).square().sum()) / len(teacher.relation) ** 2
    classes, channels = teacher.semantics.shape
    total = 0.0
    for k in range(classes):
        grams = []
        for found in (teacher, student):
            w = found.semantics[k].double()
            grams.append(torch.nn.functional.normalize(torch.outer(w, w), dim=1))
        total += float((grams[0] - grams[1]).square().sum())
    return relation - total / (channels * classes)


@given(seed=st.integers(0, 1000), channels=st.integers(2, 40), classes=st.integers(2, 5))
def test_the_short_form_is_the_definition(seed: int, channels: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(2):
        relation = torch.rand(6, 6, generator=generator)
        semantics = torch.randn(classes, channels, generator=generator)
        semantics[0, 0] = 0.0  # a dead channel
        made.append(Signature(relation, semantics))
    assert score(*made) == pytest.approx(by_definition(*made), rel=1e-6, abs=1e-9)


def test_a_network_is_most_like_itself() -> None:
    x, y = torch.rand(6, 1, 8, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2] * 2)
    own = signature(random_network(Architecture.uniform("k3e3"), 3, 0), x, y)
    other = signature(random_network(Architecture.uniform("k5e3"), 3, 0), x, y)
    assert score(own, own) == pytest.approx(0, abs=1e-9)
    assert score(own, other) < 0


def test_ranking_depends_on_the_seed_alone() -> None:
    x, y = torch.rand(6, 1, 8, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2] * 2)
    random = np.random.default_rng(1)
    some = [random_architecture(random, Architecture.uniform("skip")) for _ in range(2)]
    teacher = Architecture.uniform("k3e6")
    torch.manual_seed(5)
    first = rank(some, teacher, x, y, 3, (0, 1))
    torch.manual_seed(6)
    assert rank(some, teacher, x, y, 3, (0, 1)) == first


def test_a_random_architecture_is_as_large_as_asked() -> None:
    wanted = Architecture.uniform("k5e3", "S", "published", "published")
    found = [like(wanted, seed) for seed in (0, 1)]
    sizes = [parameters(CovidNet3d.of(a, 3)) for a in (wanted, *found)]
    assert all(abs(size / sizes[0] - 1) <= 0.05 for size in sizes)
    assert found[0] != found[1]
    assert all((a.depth, a.placement, a.size) == (wanted.depth, wanted.placement, wanted.size) for a in found)
