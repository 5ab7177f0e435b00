"""Planted effects: a cube in ALFF, a block of static, a block of dynamic connectivity in some windows, none in FA."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medxai.explain.connectivity_map import course
from medxai.explain.evidence_share import evidence_share
from medxai.explain.group_map import GroupMean
from medxai.explain.synergistic import synergistic_maps
from medxai.learn.brain.losses import FusionLoss
from medxai.networks.hierarchical_fusion import HierarchicalFusion

SHAPES = {"alff": (12, 14, 12), "dfc": (24, 24, 24), "sfc": (24, 24, 1), "fa": (16, 16, 1)}
PLACES = {
    "alff": [(slice(6, 10), slice(2, 6), slice(5, 9))],
    "sfc": [(slice(3, 8), slice(14, 19)), (slice(14, 19), slice(3, 8))],
    "dfc": [(slice(12, 18), slice(2, 8), slice(12, 18)), (slice(2, 8), slice(12, 18), slice(12, 18))],
}


def cohort(count: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Noise, and one deviation more in each place of the patients."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    inputs = {name: torch.randn(count, 1, *shape, generator=source) for name, shape in SHAPES.items()}
    for name in ("dfc", "sfc", "fa"):
        inputs[name] = (inputs[name] + inputs[name].transpose(2, 3)) / 2**0.5
    for name, places in PLACES.items():
        for place in places:
            inputs[name][(slice(None), slice(None), *place)] += labels.view(-1, 1, 1, 1, 1).float()
    return inputs, labels


def planted(name: str) -> np.ndarray:
    """Where the effect is."""
    found = np.zeros(SHAPES[name], dtype=bool)
    for place in PLACES[name]:
        found[place] = True
    return found


def train() -> HierarchicalFusion:
    """Fifteen rounds; one array in seven is left out, so that the learned embeddings are learned."""
    torch.manual_seed(0)
    network = HierarchicalFusion(2, channels=16, width=32, depth=2, heads=4, head_dim=8, strides=(1, 1, 1))
    loss = FusionLoss()
    optimiser = torch.optim.Adam([*network.parameters(), *loss.parameters()], 1e-3, weight_decay=1e-5)
    inputs, labels = cohort(96, 0)
    for _ in range(15):
        for rows in torch.randperm(96).split(16):
            present = torch.rand(len(rows), 4) > 0.15
            present[present.sum(1) == 0] = True
            logits, embeddings = network.outputs({name: x[rows] for name, x in inputs.items()}, present)
            optimiser.zero_grad()
            loss(logits, labels[rows], embeddings, present).total.backward()
            optimiser.step()
    return network.eval()


@pytest.mark.slow
@pytest.mark.longest
def test_planted_effects_are_found() -> None:
    torch.set_num_threads(1)
    network = train()
    inputs, labels = cohort(40, 1)
    with torch.inference_mode():
        probability = network(inputs).softmax(1)[:, 1]
    assert roc_auc_score(labels, probability) > 0.85
    patients = [i for i in range(40) if labels[i] == 1 and probability[i] > 0.5]
    shares = [evidence_share(network, {k: x[i : i + 1] for k, x in inputs.items()}, 1).shares for i in patients[:8]]
    mean = {name: np.mean([share[name] for share in shares]) for name in SHAPES}
    assert min(mean, key=mean.__getitem__) == "fa"
    groups = {name: GroupMean() for name in SHAPES}
    calls = network.target_calls(pyramid="encoders.0")
    for i in patients[:2]:
        found = synergistic_maps(network, {k: x[i : i + 1] for k, x in inputs.items()}, 1, calls=calls)
        for name, values in found.maps.items():
            groups[name].add(values.numpy())
    # Which positions are the planted ones? Chance is 0.5.
    assert roc_auc_score(planted("alff").ravel(), groups["alff"].mean.ravel()) > 0.75
    assert roc_auc_score(planted("dfc").ravel(), groups["dfc"].mean.ravel()) > 0.7
    evidence = course(groups["dfc"].mean)
    assert evidence[12:18].mean() > evidence[:12].mean()
