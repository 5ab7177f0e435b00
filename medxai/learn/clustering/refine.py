"""Step 2: centroids and latent maps refined together, ``L = gamma KL(P || Q) + L_r`` (Guo et al. 2017); resumable.

The target P comes from all tiles, every `every` steps, and is constant in between. Batch statistics stay those of
step 1, so that a tile has one assignment, in training and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medxai.errors import CollapseError
from medxai.files import atomic_path
from medxai.learn.clustering.autoencoder import batches, embed, reconstruction_error
from medxai.learn.clustering.target import divergence, target_distribution
from medxai.networks.dceac import Dceac
from medxai.networks.soft_assignment import log_assignment, squared_distances

#: ``progress(update, updates, share of tiles that changed, smallest share of a cluster)``.
Progress = Callable[[int, int, float, float], None]


@dataclass(frozen=True)
class RefinementRecipe:
    """What decides step 2 besides data and network.

    Attributes:
        updates: of the target, at most.
        every: steps between them; None for a pass over the tiles.
        batch_size: tiles a step.
        rate: of Adam.
        gamma: weight of the clustering against the reconstruction.
        warmup: updates over which it rises to that.
        tolerance: training ends when a smaller share of the tiles changed cluster since the last update; not before
            `gamma` has risen, since little changes under a weak pull.
        least_share: a cluster with fewer of the tiles, twice in a row, has collapsed.
        worst_error: reconstruction error, over that of step 1, beyond which latent maps no longer describe the tile.
        most_pull: gradient of the clustering at the latent maps, over that of the reconstruction, beyond which nothing
            holds the maps to the tile. The error alone does not show it: Adam is blind to the scale of a loss, so that
            the decoder follows whatever the encoder does.
        seed: of k-means and order.
    """

    updates: int = 30
    every: int | None = None
    batch_size: int = 16
    rate: float = 1e-4
    gamma: float = 0.1
    warmup: int = 3
    tolerance: float = 0.001
    least_share: float = 0.02
    worst_error: float = 3.0
    most_pull: float = 1000.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Refined:
    """How step 2 went.

    Attributes:
        start: clusters ``[N]`` of k-means, before.
        labels: clusters ``[N]`` after.
        changed: share of the tiles that changed cluster, by update.
        errors: reconstruction error by update, the first of step 1.
        pulls: by update, see `RefinementRecipe.most_pull`.
        stopped: by the tolerance, not by the number of updates.
        revived: empty clusters that were begun anew.
    """

    start: Tensor
    labels: Tensor
    changed: list[float]
    errors: list[float]
    pulls: list[float]
    stopped: bool
    revived: int


@dataclass
class _State:
    update: int = 0
    start: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    before: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    changed: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    pulls: list[float] = field(default_factory=list)
    revived: int = 0
    small: int = 0


def start_centroids(network: Dceac, tiles: Tensor, seed: int) -> Tensor:
    """Set centroids by k-means on all embeddings, the best of 20 starts; returns clusters ``[N]``."""
    from sklearn.cluster import KMeans

    z = embed(network, tiles)
    found = KMeans(len(network.centroids), n_init=20, random_state=seed).fit(z.numpy())
    with torch.no_grad():
        network.centroids.copy_(torch.from_numpy(np.asarray(found.cluster_centers_, np.float32)))
    return torch.from_numpy(found.labels_.astype(np.int64))


def set_far(network: Dceac, tiles: Tensor) -> None:
    """Keep the 99th percentile of the training tiles' distances from their nearest centroid in the network."""
    nearest = squared_distances(embed(network, tiles), network.centroids.detach()).amin(1).sqrt()
    network.far.copy_(nearest.quantile(0.99))


def refine(
    network: Dceac,
    tiles: Tensor,
    recipe: RefinementRecipe,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Refined:
    """Refine in place; the network ends in eval mode with centroids and ``far`` set.

    Args:
        network: after step 1.
        tiles: ``[N, C, H, W]`` in 0..1, all that are learnt from.
        recipe: schedule.
        checkpoint: written after every update, resumed from when it exists.
        progress: told at every update.

    Raises:
        CollapseError: a cluster lost its tiles, or the latent maps no longer describe them.
    """
    network.eval()
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.rate)
    state = _State()
    if checkpoint is not None and checkpoint.exists():
        kept: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        state = _State(**kept["state"])
    else:
        state.start = state.before = start_centroids(network, tiles, recipe.seed)
        state.errors.append(reconstruction_error(network, tiles))
    stopped = False
    for update in range(state.update, recipe.updates + 1):
        q, labels = _assign(network, tiles, state)
        share = float(torch.bincount(labels, minlength=q.shape[1]).min()) / len(labels)
        if update:
            state.changed.append(float((labels != state.before).float().mean()))
            state.errors.append(reconstruction_error(network, tiles))
            if progress is not None:
                progress(update, recipe.updates, state.changed[-1], share)
            _check(state, share, recipe)
            stopped = update >= recipe.warmup and state.changed[-1] < recipe.tolerance
        state.before = labels
        if stopped or update == recipe.updates:
            break
        p = target_distribution(q)
        state.pulls.append(_gamma(recipe, update) * pull(network, tiles[: recipe.batch_size], p[: recipe.batch_size]))
        if state.pulls[-1] > recipe.most_pull:
            msg = (
                f"after {update} updates the clustering pulls at the latent maps {state.pulls[-1]:.0f} times as hard "
                "as the reconstruction, so that they collapse to what the clusters need; lower gamma"
            )
            raise CollapseError(msg)
        _steps(network, optimizer, tiles, p, recipe, update)
        state.update = update + 1
        if checkpoint is not None:
            whole = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "state": vars(state)}
            with atomic_path(checkpoint) as temporary:
                torch.save(whole, temporary)
    set_far(network, tiles)
    return Refined(state.start, state.before, state.changed, state.errors, state.pulls, stopped, state.revived)


def revive(network: Dceac, z: Tensor, labels: Tensor) -> int:
    """Put the centroid of every empty cluster on the tile that is farthest from its own; returns how many.

    Args:
        network: its centroids change.
        z: embeddings ``[N, d]``.
        labels: clusters ``[N]``.
    """
    counts = torch.bincount(labels, minlength=len(network.centroids))
    distance = squared_distances(z, network.centroids.detach()).gather(1, labels[:, None])[:, 0]
    empty = torch.nonzero(counts == 0).flatten().tolist()
    for cluster, tile in zip(empty, distance.argsort(descending=True).tolist(), strict=False):
        with torch.no_grad():
            network.centroids[cluster] = z[tile]
    return len(empty)


def pull(network: Dceac, x: Tensor, p: Tensor) -> float:
    """Norm of the gradient of KL(P || Q) at the latent maps, over that of the reconstruction error.

    Args:
        network: with centroids, in eval mode.
        x: a batch ``[N, C, H, W]``.
        p: its target ``[N, K]``.
    """
    latent = network.encode(x)
    clustering = divergence(p, log_assignment(latent.embedding, network.centroids))
    reconstruction = (network.decode(latent.refined) - x).square().mean()
    first, second = (
        torch.autograd.grad(loss, latent.refined, retain_graph=True)[0].norm() for loss in (clustering, reconstruction)
    )
    return float(first / second.clamp_min(1e-12))


def _gamma(recipe: RefinementRecipe, update: int) -> float:
    return recipe.gamma * min(1.0, (update + 1) / max(1, recipe.warmup))


def _assign(network: Dceac, tiles: Tensor, state: _State) -> tuple[Tensor, Tensor]:
    """Assignment ``[N, K]`` and clusters ``[N]`` of all tiles, empty clusters begun anew."""
    z = embed(network, tiles)
    q = log_assignment(z, network.centroids.detach()).exp()
    if anew := revive(network, z, q.argmax(1)):
        state.revived += anew
        q = log_assignment(z, network.centroids.detach()).exp()
    return q, q.argmax(1)


def _check(state: _State, share: float, recipe: RefinementRecipe) -> None:
    state.small = state.small + 1 if share < recipe.least_share else 0
    if state.small > 1:
        msg = (
            f"after {len(state.changed)} updates a cluster holds {share:.1%} of the tiles, twice in a row; "
            "lower gamma, raise its warm-up or ask for fewer clusters"
        )
        raise CollapseError(msg)
    worse = state.errors[-1] / max(state.errors[0], 1e-12)
    if worse > recipe.worst_error:
        msg = (
            f"after {len(state.changed)} updates the reconstruction error is {worse:.1f} times that of step 1: the "
            "clustering has replaced what the latent maps say of the tile; lower gamma or the rate"
        )
        raise CollapseError(msg)


def _steps(
    network: Dceac, optimizer: torch.optim.Optimizer, tiles: Tensor, p: Tensor, recipe: RefinementRecipe, update: int
) -> None:
    """Train until the next update; the order is a matter of seed and update alone."""
    generator = torch.Generator().manual_seed(recipe.seed * 100_003 + 50_000 + update)
    gamma = _gamma(recipe, update)
    order: list[Tensor] = []
    wanted = recipe.every or -(-len(tiles) // recipe.batch_size)
    for _ in range(wanted):
        order = order or batches(len(tiles), recipe.batch_size, generator)
        rows = order.pop()
        latent = network.encode(tiles[rows])
        log_q = log_assignment(latent.embedding, network.centroids)
        loss = gamma * divergence(p[rows], log_q) + (network.decode(latent.refined) - tiles[rows]).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
