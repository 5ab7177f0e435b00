"""Why a tile belongs to its cluster: an exact map of the cluster against the runner-up, and what else was seen.

The embedding is the mean over cells of ``e(p)``, so that

``||z - mu_j||^2 - ||z - mu_k||^2 = mean_p M(p) + ||mu_j||^2 - ||mu_k||^2``, ``M(p) = 2 e(p) . (mu_k - mu_j)``:

the map adds up to the very quantity that decides between the clusters k and j. No gradient, no approximation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medxai.explain.enlarge import along_axes
from medxai.networks.dceac import Dceac
from medxai.networks.soft_assignment import log_assignment, squared_distances


@dataclass(frozen=True, eq=False)
class ClusterMaps:
    """Tiles under a clustering; maps lie on the grid of the latent maps unless said otherwise.

    Attributes:
        shares: q ``[N, K]``.
        cluster: k ``[N]``, the nearest.
        runner_up: j ``[N]``, the second nearest, or the one that was asked for.
        cam: M ``[N, h, w]``, positive where a cell speaks for k and against j.
        offset: ``||mu_j||^2 - ||mu_k||^2`` ``[N]``.
        margin: ``||z - mu_j||^2 - ||z - mu_k||^2`` ``[N]``, which mean and offset add up to.
        attention: a ``[N, h, w]``, its mean over channels; None without attention.
        error: squared error of the reconstruction ``[N, H, W]``, the mean over colours.
        distance: ``||z - mu_k||`` ``[N]``.
        far: ``[N]`` whether that is beyond the 99th percentile of the training tiles.
        threshold: that percentile; infinite for a network that was not trained.
    """

    shares: Tensor
    cluster: Tensor
    runner_up: Tensor
    cam: Tensor
    offset: Tensor
    margin: Tensor
    attention: Tensor | None
    error: Tensor
    distance: Tensor
    far: Tensor
    threshold: float

    @property
    def confidence(self) -> Tensor:
        """``max_k q`` ``[N]``."""
        return self.shares.amax(1)

    def evidence(self) -> Tensor:
        """The map as shown ``[N, H, W]``: placed, what speaks against cut off, over its maximum; 0 where none is."""
        large = placed(self.cam, self.error.shape[1:]).clamp_min(0)
        return large / large.amax((1, 2), keepdim=True).clamp_min(1e-12)

    def warning(self, index: int) -> str | None:
        """A sentence for a tile unlike all those of training; None for others."""
        if not self.far[index]:
            return None
        return (
            f"far from all clusters: distance {float(self.distance[index]):.2f}, above the {self.threshold:.2f} "
            "that 99 % of the training tiles stay below; its cluster says little"
        )


def cluster_maps(network: Dceac, x: Tensor, runner_up: Tensor | None = None) -> ClusterMaps:
    """Explain the cluster of every tile.

    Args:
        network: after refinement; used in eval mode and left as it was.
        x: ``[N, C, H, W]`` in 0..1, as in training.
        runner_up: ``[N]`` cluster to compare with instead of the second nearest.

    Raises:
        MismatchError: the sides are no multiples of 16.
    """
    mode = network.training
    network.eval()
    try:
        with torch.no_grad():
            return _explained(network, x, runner_up)
    finally:
        network.train(mode)


def placed(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps ``[N, h, w]`` as images ``[N, H, W]``, bilinear between the pixels that their cells look at.

    Convolutions of 3 with stride 2 and padding 1 look at every second pixel from the first on: cell i of 16 pixels
    is about pixel 16 i, half a cell before the middle of its sixteenth, where enlarging by shares would put it.
    """
    return along_axes(maps, [_weights(few, many) for few, many in zip(maps.shape[1:], size, strict=True)])


def mass_lift(evidence: Tensor, mask: Tensor) -> Tensor:
    """Share of the evidence inside a mask over the mask's share of the tile ``[N]``; NaN without evidence or mask.

    Args:
        evidence: ``[N, H, W]``, not negative.
        mask: ``[N, H, W]`` bool.
    """
    inside = (evidence * mask).sum((1, 2)) / evidence.sum((1, 2))
    return inside / mask.float().mean((1, 2))


def _explained(network: Dceac, x: Tensor, runner_up: Tensor | None) -> ClusterMaps:
    latent = network.encode(x)
    centroids = network.centroids
    distances = squared_distances(latent.embedding, centroids)
    order = distances.argsort(1)
    cluster, other = order[:, 0], order[:, 1] if runner_up is None else runner_up
    direction = centroids[cluster] - centroids[other]
    cam = 2 * torch.einsum("nhwd,nd->nhw", network.places(latent.refined), direction)
    nearest = distances.gather(1, cluster[:, None])[:, 0]
    distance = nearest.sqrt()
    return ClusterMaps(
        shares=log_assignment(latent.embedding, centroids).exp(),
        cluster=cluster,
        runner_up=other,
        cam=cam,
        offset=centroids[other].square().sum(1) - centroids[cluster].square().sum(1),
        margin=distances.gather(1, other[:, None])[:, 0] - nearest,
        attention=None if latent.attention is None else latent.attention.mean(1),
        error=(network.decode(latent.refined) - x).square().mean(1),
        distance=distance,
        far=distance > network.far,
        threshold=float(network.far),
    )


def _weights(cells: int, pixels: int) -> Tensor:
    """Share ``[pixels, cells]`` of every cell in every pixel of an axis."""
    at = (torch.arange(pixels) * cells / pixels).clamp(max=cells - 1)
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp_min(0)
