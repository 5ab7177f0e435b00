"""Exact map of a cluster against its runner-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medxai.errors import ExplainError
from medxai.explain.method import MethodInfo, NoOptions
from medxai.networks.dceac import Dceac
from medxai.networks.soft_assignment import squared_distances

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="clustercam",
    title="Cluster CAM",
    family="activation_cam",
    reference="García et al. 2021; the identity is ours",
    passes="1F",
    graph="none",
    dims=("2d",),
    needs="a clustering whose embedding is the mean of the target layer (DCEAC)",
    caveat="its mean and a constant are the difference of squared distances from the cluster and the nearest other",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``2 e(p) . (mu_k - mu_j)`` with e(p) what cell p adds to the embedding, j the nearest other cluster.

    Raises:
        ExplainError: the network clusters nothing.
    """
    clustering = next((module for module in run.network.modules() if isinstance(module, Dceac)), None)
    if clustering is None:
        msg = "clustercam explains clusters, and this network has none; use gradcam"
        raise ExplainError(msg)
    with torch.no_grad():
        cells = clustering.places(run.activation)
        centroids = clustering.centroids
        distances = squared_distances(cells.mean((1, 2)), centroids)
        others = distances.scatter(1, run.classes[:, None], torch.inf).argmin(1)
        return 2 * torch.einsum("nhwd,nd->nhw", cells, centroids[run.classes] - centroids[others])
