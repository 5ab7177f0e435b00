"""Exact maps of clusters: they add up to the margin, point at what was planted, and say when a tile is far away."""

from __future__ import annotations

import math

import pytest
import torch

from medxai.explain.cluster_map import cluster_maps, mass_lift, placed
from medxai.networks.dceac import AttentionKind, Dceac


def network(kind: AttentionKind = "map", embedding: int | None = None, clusters: int = 4) -> Dceac:
    torch.manual_seed(5)
    made = Dceac(clusters, (4, 6, 8, 10), kind, embedding)
    made(torch.rand(8, 3, 48, 64))  # some batch statistics
    with torch.no_grad():
        made.centroids.normal_(std=0.5)
        made.centre.normal_(std=0.3)
        made.scale.uniform_(0.5, 2.0)
    return made.eval()


@pytest.mark.parametrize("kind", ["map", "channels", "none"])
@pytest.mark.parametrize("embedding", [None, 6])
def test_map_and_offset_add_up_to_the_margin(kind: AttentionKind, embedding: int | None) -> None:
    made = network(kind, embedding)
    x = torch.rand(5, 3, 48, 64)
    maps = cluster_maps(made, x)
    z = made.encode(x).embedding.detach()
    distances = torch.cdist(z, made.centroids.detach()).square()
    order = distances.argsort(1)
    assert torch.equal(maps.cluster, order[:, 0])
    assert torch.equal(maps.runner_up, order[:, 1])
    expected = distances.gather(1, order[:, 1:2])[:, 0] - distances.gather(1, order[:, :1])[:, 0]
    torch.testing.assert_close(maps.cam.mean((1, 2)) + maps.offset, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(maps.margin, expected, atol=1e-4, rtol=1e-4)
    assert (maps.margin >= 0).all()
    assert maps.cam.shape == (5, 3, 4)
    assert maps.error.shape == (5, 48, 64)
    assert (maps.attention is None) == (kind == "none")


def test_against_a_cluster_that_is_asked_for() -> None:
    made = network()
    x = torch.rand(3, 3, 48, 64)
    usual = cluster_maps(made, x)
    other = torch.tensor([(k + 1) % 4 for k in usual.cluster.tolist()])
    maps = cluster_maps(made, x, other)
    assert torch.equal(maps.runner_up, other)
    torch.testing.assert_close(maps.cam.mean((1, 2)) + maps.offset, maps.margin, atol=1e-4, rtol=1e-4)
    same = cluster_maps(made, x, usual.cluster)
    assert not same.cam.any()
    assert not same.evidence().any()


def test_the_map_points_at_what_makes_the_cluster() -> None:
    """A network whose channel is darkness: of two clusters, bright and partly dark, the evidence lies on the square."""
    made = Dceac(2, (1, 1, 1, 1), "none").eval()
    with torch.no_grad():
        for block in made.encoder:
            block[0].weight.zero_()
            block[0].weight[:, :, 1, 1] = 1 / block[0].weight.shape[1]
        made.encoder[0][0].weight.mul_(-1)
        made.encoder[0][1].bias.fill_(1.0)
    x = torch.ones(1, 3, 64, 96)
    x[:, :, 16:48, 32:64] = 0
    with torch.no_grad():  # the first centroid, 0, is that of bright tiles
        made.centroids[1] = made.encode(x).embedding[0]
    maps = cluster_maps(made, x)
    assert (maps.cluster.tolist(), maps.runner_up.tolist()) == ([1], [0])
    expected = torch.zeros(4, 6)
    expected[1:3, 2:4] = maps.cam.max()
    torch.testing.assert_close(maps.cam[0], expected, atol=1e-5, rtol=0)
    mask = torch.zeros(1, 64, 96, dtype=torch.bool)
    mask[:, 16:48, 32:64] = True
    evidence = maps.evidence()
    assert evidence.max() == pytest.approx(1)
    assert mask.flatten(1)[0, evidence.flatten(1).argmax(1)].all()
    assert float(mass_lift(evidence, mask)) > 3  # a sixth of the tile, with the slope before it


def test_a_map_is_placed_where_its_cells_look() -> None:
    """The pixels that a cell sees lie about the pixel where its map is largest."""
    made = Dceac(2, (1, 1, 1, 1), "none").eval()
    for block in made.encoder:
        torch.nn.init.ones_(block[0].weight)
    x = torch.ones(1, 3, 96, 128, requires_grad=True)
    seen = torch.autograd.grad(made.encode(x).refined[0, 0, 2, 3], x)[0][0].sum(0)
    one = torch.zeros(1, 6, 8)
    one[0, 2, 3] = 1
    shown = placed(one, (96, 128))[0]
    for image in (seen, shown):
        rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
        middle = [float((image * axis).sum() / image.sum()) for axis in (rows, columns)]
        assert middle == pytest.approx([32, 48], abs=1e-3)
    assert shown[32, 48] == 1
    assert placed(torch.ones(1, 6, 8), (96, 128)).allclose(torch.ones(1, 96, 128))


def test_lift_by_hand() -> None:
    mask = torch.zeros(3, 4, 5, dtype=torch.bool)
    mask[:, 0] = True  # a quarter
    even, inside = torch.ones(4, 5), torch.zeros(4, 5)
    inside[0, 1] = 3
    found = mass_lift(torch.stack([even, inside, torch.zeros(4, 5)]), mask)
    assert found[:2].tolist() == pytest.approx([1.0, 4.0])
    assert math.isnan(float(found[2]))


def test_far_tiles_are_said_to_be_far() -> None:
    made = network()
    x = torch.rand(4, 3, 48, 64)
    maps = cluster_maps(made, x)
    assert maps.warning(0) is None  # an untrained network has no threshold
    assert math.isinf(maps.threshold)
    made.far.fill_(float(maps.distance.sort().values[1:3].mean()))
    maps = cluster_maps(made, x)
    assert int(maps.far.sum()) == 2
    farthest = int(maps.distance.argmax())
    said = maps.warning(farthest)
    assert said is not None
    assert f"distance {float(maps.distance[farthest]):.2f}" in said
    assert maps.warning(int(maps.distance.argmin())) is None


def test_confidence_is_the_largest_share_and_the_network_is_left_alone() -> None:
    made = network().train()
    x = torch.rand(2, 3, 48, 64)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    maps = cluster_maps(made, x)
    assert made.training
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())
    torch.testing.assert_close(maps.shares.sum(1), torch.ones(2))
    assert torch.equal(maps.confidence, maps.shares.gather(1, maps.cluster[:, None])[:, 0])
    torch.testing.assert_close(made.eval()(x).exp(), maps.shares)
