"""DCEAC and its reference: sizes to the last weight, grids, attention near a half, maps of a cluster by the engine."""

from __future__ import annotations

import pytest
import torch

from medxai.errors import MismatchError
from medxai.explain.engine import explain
from medxai.networks.dceac import TARGET_LAYER, Dceac, Dcec
from medxai.networks.soft_assignment import log_assignment, squared_distances


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_of_the_reference() -> None:
    network = Dcec()
    assert [count(layer) for layer in network.encoder if count(layer)] == [832, 51_264, 73_856]
    assert network.encoder(torch.zeros(2, 1, 28, 28)).shape == (2, 128, 3, 3)
    assert (network.project.in_features, network.project.out_features) == (1152, 10)
    assert count(network.project) == 11_530
    z = network.embed(torch.rand(2, 1, 28, 28))
    assert network.decode(z).shape == (2, 1, 28, 28)
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("height", "width"), [(512, 512), (128, 128), (48, 80)])
@pytest.mark.parametrize(("kind", "weights"), [("map", 1), ("channels", 256), ("none", None)])
def test_grids(height: int, width: int, kind: str, weights: int | None) -> None:
    network = Dceac(3, attention=kind).eval()  # type: ignore[arg-type]
    x = torch.rand(1, 3, height, width)
    with torch.no_grad():
        latent = network.encode(x)
        again = network.decode(latent.refined)
    assert latent.features.shape == (1, 256, height // 16, width // 16)
    assert latent.embedding.shape == (1, 256)
    assert again.shape == x.shape
    assert again.min() >= 0
    assert again.max() <= 1
    if weights is None:
        assert latent.attention is None
        assert torch.equal(latent.refined, latent.features)
    else:
        assert latent.attention is not None
        assert latent.attention.shape == (1, weights, height // 16, width // 16)
        torch.testing.assert_close(latent.attention, torch.full_like(latent.attention, 0.5), atol=0.05, rtol=0)
        torch.testing.assert_close(latent.refined, latent.features * (1 + latent.attention))


def test_other_sides_are_refused() -> None:
    with pytest.raises(MismatchError, match="100 x 128 pixels; both sides must be multiples of 16"):
        Dceac(3, (4, 4, 4, 4))(torch.rand(1, 3, 100, 128))
    with pytest.raises(ValueError, match="four blocks"):
        Dceac(3, (4, 4, 4))


@pytest.mark.parametrize("embedding", [None, 5])
def test_the_embedding_is_the_mean_of_its_places(embedding: int | None) -> None:
    torch.manual_seed(0)
    network = Dceac(3, (4, 6, 8, 10), embedding=embedding).eval()
    torch.nn.init.normal_(network.centre)
    torch.nn.init.uniform_(network.scale, 0.5, 2)
    latent = network.encode(torch.rand(2, 3, 32, 48))
    assert latent.embedding.shape == (2, embedding or 10)
    torch.testing.assert_close(network.places(latent.refined).mean((1, 2)), latent.embedding)


def test_rows_sum_to_one_and_a_centroid_is_its_own() -> None:
    torch.manual_seed(1)
    centroids = torch.randn(4, 7)
    q = log_assignment(torch.cat([torch.randn(20, 7) * 3, centroids]), centroids).exp()
    torch.testing.assert_close(q.sum(1), torch.ones(24))
    assert q[20:].argmax(1).tolist() == [0, 1, 2, 3]
    elsewhere = log_assignment(torch.randn(500, 7) * 3, centroids).exp()
    assert (q[20:].diagonal() >= elsewhere.amax(0)).all()
    z = torch.tensor([[1.0, 0.0]])
    by_hand = torch.tensor([[1 / 2, 1 / 5]])
    found = log_assignment(z, torch.tensor([[0.0, 0.0], [1.0, 2.0]])).exp()
    torch.testing.assert_close(found, by_hand / by_hand.sum())
    torch.testing.assert_close(squared_distances(z, torch.tensor([[0.0, 0.0], [1.0, 2.0]])), torch.tensor([[1.0, 4.0]]))


def test_the_engine_explains_a_cluster_at_the_refined_maps() -> None:
    torch.manual_seed(2)
    network = Dceac(3, (4, 6, 8, 10)).eval()
    with torch.no_grad():
        network.centroids.copy_(torch.rand(3, 10))
    x = torch.rand(1, 3, 48, 64)
    found = explain(network, x, methods="gradcam", classes=1, layers=TARGET_LAYER)[0]
    latent = network.encode(x)
    refined = latent.refined.detach().requires_grad_()
    score = log_assignment(refined.mean((-2, -1)), network.centroids)[0, 1]
    weights = torch.autograd.grad(score, refined)[0].mean((-2, -1), keepdim=True)
    torch.testing.assert_close(found.raw, (weights * refined).sum(1).detach())
    torch.testing.assert_close(found.score, score.detach()[None])
    assert found.map.shape == (1, 48, 64)
