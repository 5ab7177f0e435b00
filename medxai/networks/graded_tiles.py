"""DCEAC as a classifier of tiles: stains evened, log shares of its clusters in the order of their names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from medxai.networks import dceac
from medxai.networks.dceac import AttentionKind, Dceac
from medxai.networks.soft_assignment import log_assignment, squared_distances

#: Layer that maps explain.
TARGET_LAYER = f"dceac.{dceac.TARGET_LAYER}"
#: Percentile of each colour that is nearly the brightest of a tile, and what it becomes.
BRIGHT, BECOMES = 0.8, 0.8


def evened(x: Tensor) -> Tensor:
    """Divide every colour of tiles ``[N, C, H, W]`` in 0..1 by nearly its brightest, so that stains matter less."""
    bright = x.flatten(2).quantile(BRIGHT, dim=2).clamp_min(0.05)[..., None, None]
    return (x / bright * BECOMES).clamp(0, 1)


class GradedTiles(nn.Module):
    """A clustering whose clusters have names: ``log q`` ``[N, K]``, whose softmax is the share of each.

    `nearest` is handed the distance ``[N]`` from the nearest centroid; beyond ``far`` a tile is unlike those of
    training.

    Args:
        clusters: K.
        widths: see `Dceac`.
        attention: see `Dceac`.
        embedding: see `Dceac`.
        even: whether stains are evened first, as in training.
    """

    def __init__(
        self, clusters: int, widths: Sequence[int], attention: AttentionKind = "map", embedding: int | None = None,
        even: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dceac = Dceac(clusters, widths, attention, embedding)
        self.nearest = nn.Identity()
        self.even = even

    @property
    def far(self) -> float:
        """Distance that 99 % of the training tiles stay below."""
        return float(self.dceac.far)

    def forward(self, x: Tensor) -> Tensor:
        """``log q`` ``[N, K]`` of tiles ``[N, 3, H, W]`` in 0..1."""
        z = self.dceac.encode(evened(x) if self.even else x).embedding
        self.nearest(squared_distances(z, self.dceac.centroids).amin(1).sqrt())
        return log_assignment(z, self.dceac.centroids)


def named(clustering: Dceac, order: Sequence[int], graded: GradedTiles) -> GradedTiles:
    """Give a network the weights of a clustering, its clusters in another order.

    Args:
        clustering: trained.
        order: which cluster becomes the first class, the second...
        graded: of the same size; changed and returned.
    """
    state = {name: tensor.clone() for name, tensor in clustering.state_dict().items()}
    state["centroids"] = state["centroids"][list(order)]
    graded.dceac.load_state_dict(state)
    return graded.eval()
