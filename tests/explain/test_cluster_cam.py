"""Cluster CAM in the engine is the map of the library, and classes of a graded network are clusters in their order."""

from __future__ import annotations

import pytest
import torch

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.cluster_map import cluster_maps
from medxai.networks.graded_tiles import TARGET_LAYER, GradedTiles, evened, named
from tests.explain.nets import Pooled
from tests.explain.test_cluster_map import network


@pytest.mark.parametrize("embedding", [None, 6])
def test_the_engine_gives_the_exact_map(embedding: int | None) -> None:
    """Of the decided class it is the map against the runner-up; of another one, against the nearest but itself."""
    clustering = network("map", embedding)
    graded = named(clustering, [0, 1, 2, 3], GradedTiles(4, (4, 6, 8, 10), "map", embedding, even=False))
    x = torch.rand(5, 3, 48, 64)
    whole = cluster_maps(clustering, x)
    for k in range(4):
        found = explain(graded, x, methods="clustercam", classes=k, layers=TARGET_LAYER)[0]
        other = torch.where(whole.cluster == k, whole.runner_up, whole.cluster)
        distances = torch.cdist(clustering.encode(x).embedding, clustering.centroids).square().detach()
        gap = distances.gather(1, other[:, None])[:, 0] - distances[:, k]
        offset = clustering.centroids[other].square().sum(1) - clustering.centroids[k].square().sum()
        torch.testing.assert_close(found.raw.mean((1, 2)) + offset.detach(), gap, atol=1e-3, rtol=1e-4)
        mine = whole.cluster == k
        torch.testing.assert_close(found.raw[mine], whole.cam[mine], atol=1e-4, rtol=1e-4)


def test_classes_are_clusters_in_the_order_that_was_asked_for() -> None:
    clustering, order = network(), [2, 0, 3, 1]
    graded = named(clustering, order, GradedTiles(4, (4, 6, 8, 10)))
    x = torch.rand(3, 3, 48, 64)
    seen: list[torch.Tensor] = []
    graded.nearest.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = graded(x)
    whole = cluster_maps(clustering, evened(x))
    torch.testing.assert_close(logits.softmax(1), whole.shares[:, order])
    torch.testing.assert_close(seen[0], whole.distance)
    assert graded.far == float(clustering.far)
    bright = evened(x).flatten(2).quantile(0.8, dim=2)
    torch.testing.assert_close(bright, torch.full_like(bright, 0.8))


def test_other_networks_have_no_clusters() -> None:
    with pytest.raises(ExplainError, match="clustercam explains clusters"):
        explain(Pooled(2), torch.rand(1, 1, 12, 20), methods="clustercam", classes=0, layers="act")
