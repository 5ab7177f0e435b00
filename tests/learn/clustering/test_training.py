"""Both steps of training: what ends them, that they repeat and resume, and what stops a collapse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medxai.errors import CollapseError
from medxai.learn.clustering.autoencoder import (
    AutoencoderRecipe,
    batches,
    embed,
    fit_autoencoder,
    reconstruction_error,
    turned,
)
from medxai.learn.clustering.data import as_input
from medxai.learn.clustering.refine import RefinementRecipe, refine, revive, start_centroids
from medxai.networks.dceac import Dceac
from medxai.networks.soft_assignment import squared_distances
from sample_cases.synthetic_textures import textures

FIRST = AutoencoderRecipe(epochs=3, batch_size=8, rate=3e-3)
LONG = AutoencoderRecipe(epochs=15, batch_size=8, rate=1e-2)
SECOND = RefinementRecipe(updates=4, batch_size=8, rate=1e-3, tolerance=0.0)


class Stopped(Exception):
    """Stands for the kill of a process."""


@pytest.fixture(scope="module")
def tiles() -> torch.Tensor:
    return as_input(np.stack([t.pixels for t in textures(36, 0, 32)]))


def small(seed: int = 3) -> Dceac:
    torch.manual_seed(seed)
    return Dceac(3, (4, 6, 8, 10))


@pytest.fixture
def ready(tiles: torch.Tensor) -> Dceac:
    """After step 1."""
    return fit_autoencoder(small(), tiles, FIRST)


def same(first: Dceac, second: Dceac) -> bool:
    return all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_step_1_learns_and_standardises(tiles: torch.Tensor) -> None:
    before = reconstruction_error(small().eval(), tiles)
    told: list[float] = []
    network = fit_autoencoder(small(), tiles, LONG, progress=lambda epoch, epochs, loss: told.append(loss))
    assert len(told) == 15
    assert told[-1] < 0.3 * told[0]
    assert reconstruction_error(network, tiles) < 0.3 * before
    assert not network.training
    z = embed(network, tiles)
    torch.testing.assert_close(z.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    spread = z.std(0)
    torch.testing.assert_close(
        spread[spread > 0.01], torch.full_like(spread[spread > 0.01], 10**-0.5), rtol=1e-3, atol=0
    )


def test_step_1_resumes(tiles: torch.Tensor, tmp_path: Path) -> None:
    def stop(epoch: int, *_: object) -> None:
        if epoch == 2:
            raise Stopped

    whole = fit_autoencoder(small(), tiles, FIRST)
    with pytest.raises(Stopped):
        fit_autoencoder(small(), tiles, FIRST, checkpoint=tmp_path / "c.ckpt", progress=stop)
    assert same(whole, fit_autoencoder(small(), tiles, FIRST, checkpoint=tmp_path / "c.ckpt"))


def test_step_2_repeats_and_resumes(tiles: torch.Tensor, tmp_path: Path) -> None:
    def ready() -> Dceac:
        return fit_autoencoder(small(), tiles, FIRST)

    def stop(update: int, *_: object) -> None:
        if update == 2:
            raise Stopped

    first, second, third = ready(), ready(), ready()
    how = refine(first, tiles, SECOND)
    again = refine(second, tiles, SECOND)
    assert same(first, second)
    assert how.changed == again.changed
    with pytest.raises(Stopped):
        refine(third, tiles, SECOND, checkpoint=tmp_path / "c.ckpt", progress=stop)
    resumed = refine(third, tiles, SECOND, checkpoint=tmp_path / "c.ckpt")
    assert same(first, third)
    assert torch.equal(how.labels, resumed.labels)
    assert torch.equal(how.start, resumed.start)
    assert (how.changed, how.errors, how.pulls) == (resumed.changed, resumed.errors, resumed.pulls)


def test_another_seed_is_another_training(tiles: torch.Tensor, ready: Dceac) -> None:
    other = fit_autoencoder(small(), tiles, FIRST)
    refine(ready, tiles, SECOND)
    refine(other, tiles, replace(SECOND, seed=1))
    assert not same(ready, other)


def test_step_2_ends_by_the_tolerance(tiles: torch.Tensor, ready: Dceac) -> None:
    centroids = start_centroids(ready, tiles, 0)
    how = refine(ready, tiles, replace(SECOND, updates=12, rate=1e-4, tolerance=0.05))
    assert how.stopped
    assert len(how.changed) < 12
    assert how.changed[-1] < 0.05
    assert all(value >= 0.05 for value in how.changed[2:-1])
    assert torch.equal(how.start, centroids)
    nearest = squared_distances(embed(ready, tiles), ready.centroids.detach()).amin(1).sqrt()
    assert float(ready.far) == pytest.approx(float(nearest.quantile(0.99)))
    warming = refine(fit_autoencoder(small(), tiles, FIRST), tiles, replace(SECOND, warmup=3, tolerance=1.0))
    assert warming.stopped
    assert len(warming.changed) == 3  # not while gamma rises, however little changes
    never = refine(fit_autoencoder(small(), tiles, FIRST), tiles, replace(SECOND, updates=2))
    assert not never.stopped
    assert len(never.changed) == 2


def test_centroids_are_trained_and_batch_statistics_are_not(tiles: torch.Tensor, ready: Dceac) -> None:
    start_centroids(ready, tiles, SECOND.seed)
    before = {name: value.clone() for name, value in ready.state_dict().items()}
    refine(ready, tiles, SECOND)
    after = ready.state_dict()
    assert not torch.equal(before["centroids"], after["centroids"])
    assert not torch.equal(before["encoder.0.0.weight"], after["encoder.0.0.weight"])
    assert torch.equal(before["encoder.0.1.running_mean"], after["encoder.0.1.running_mean"])


def test_the_alarm_at_a_gamma_of_100(tiles: torch.Tensor, ready: Dceac) -> None:
    with pytest.raises(CollapseError, match=r"pulls at the latent maps .* lower gamma"):
        refine(ready, tiles, replace(SECOND, gamma=100.0, updates=12))
    usual = fit_autoencoder(small(), tiles, FIRST)
    assert max(refine(usual, tiles, replace(SECOND, gamma=0.1)).pulls) < 1000


def test_the_alarm_when_a_cluster_loses_its_tiles(tiles: torch.Tensor, ready: Dceac) -> None:
    with pytest.raises(CollapseError, match=r"after 2 updates a cluster holds .*% of the tiles, twice in a row"):
        refine(ready, tiles, replace(SECOND, least_share=0.34))  # of three clusters the smallest has at most a third


def test_the_alarm_when_the_maps_no_longer_describe_the_tile(tiles: torch.Tensor) -> None:
    network = fit_autoencoder(small(), tiles, LONG)
    with pytest.raises(CollapseError, match=r"reconstruction error is .* times that of step 1"):
        refine(network, tiles, replace(SECOND, rate=0.5, least_share=0.0))


def test_an_empty_cluster_begins_at_the_farthest_tile() -> None:
    network = Dceac(3, (4, 4, 4, 2))
    with torch.no_grad():
        network.centroids.copy_(torch.tensor([[0.0, 0.0], [5.0, 5.0], [90.0, 90.0]]))
    z = torch.tensor([[0.1, 0.0], [0.0, -3.0], [5.0, 5.2]])
    assert revive(network, z, torch.tensor([0, 0, 1])) == 1
    assert network.centroids[2].tolist() == [0.0, -3.0]
    assert network.centroids[:2].tolist() == [[0.0, 0.0], [5.0, 5.0]]
    assert revive(network, z, torch.tensor([0, 2, 1])) == 0


def test_tiles_are_turned_and_every_one_is_seen() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.cat(batches(17, 4, generator))
    assert len(rows) == 16  # the last alone has no batch statistics
    assert len(set(rows.tolist())) == 16
    x = torch.arange(9.0).view(1, 1, 3, 3)
    seen = {tuple(turned(x, generator).flatten().tolist()) for _ in range(200)}
    assert len(seen) == 8
