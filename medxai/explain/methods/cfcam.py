"""CF-CAM: channels clustered, their gradients filtered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from medxai.explain.channels import mean_over_positions, weighted_sum
from medxai.explain.gaussian import smooth
from medxai.explain.method import MethodInfo

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="cfcam",
    title="CF-CAM",
    family="gradient_cam",
    reference="He et al. 2025",
    passes="1F+1B",
    caveat="weights=softmax is the released variant: nearly uniform weights, so only weakly related to the class",
)


@dataclass(frozen=True)
class Options:
    """Options of CF-CAM.

    Attributes:
        dominant: channels whose norm reaches this percentile keep their own gradient.
        weights: ``raw`` keeps signed mean gradients, ``softmax`` is what was released.
        filter: ``gaussian`` smooths a cluster's gradient in space, ``bilateral`` also by its values, ``released``
            is the global kernel of the published code, ``none`` leaves it.
        sigma: of the filter, in cells of the layer's grid.
    """

    dominant: float = 75.0
    weights: str = "raw"
    filter: str = "gaussian"
    sigma: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges and words."""
        if not 0 <= self.dominant <= 100 or self.sigma <= 0:
            raise ValueError("dominant is a percentile, 0 to 100, and sigma positive")
        if self.weights not in ("raw", "softmax"):
            raise ValueError("weights is raw or softmax")
        if self.filter not in ("gaussian", "bilateral", "released", "none"):
            raise ValueError("filter is gaussian, bilateral, released or none")


def attribute(run: Run, options: Options) -> Tensor:
    """Grad-CAM whose weaker channels share the filtered gradient of their DBSCAN cluster; noise is left out."""
    maps, counts = [], []
    for activation, gradient in zip(run.activation, run.gradient, strict=True):
        weights, kept = _channel_weights(activation, gradient, options)
        counts.append({"dominant": kept[0], "clustered": kept[1], "ignored": len(activation) - sum(kept)})
        maps.append(weighted_sum(weights[None], activation[None])[0])
    run.report["channels"] = counts
    return torch.stack(maps)


def _channel_weights(activation: Tensor, gradient: Tensor, options: Options) -> tuple[Tensor, tuple[int, int]]:
    """Weights ``[K]`` and how many channels are dominant and clustered; ignored ones weigh nothing."""
    features = activation.flatten(1)
    norms = features.norm(dim=1)
    dominant = norms >= torch.quantile(norms, options.dominant / 100)
    weights = torch.where(dominant, mean_over_positions(gradient[None])[0], torch.zeros_like(norms))
    used = dominant.clone()
    rest = torch.nonzero(~dominant).flatten()
    if len(rest) > 1:
        labels = _clusters(features[rest])
        for label in np.unique(labels[labels >= 0]):
            members = rest[torch.from_numpy(labels == label).to(rest.device)]
            shared = _filtered(gradient[members].mean(0), options)
            weights[members] = shared.mean()
            used[members] = True
    if options.weights == "softmax":
        weights = torch.where(used, weights, torch.full_like(weights, -torch.inf)).softmax(0)
    return weights, (int(dominant.sum()), int(used.sum() - dominant.sum()))


def _clusters(rows: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """DBSCAN labels of channels as vectors over positions; -1 is noise."""
    from sklearn.cluster import DBSCAN

    # Inner products in double precision: equal channels must be at distance zero.
    distance = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").cpu().numpy()
    off = distance[~np.eye(len(distance), dtype=bool)]
    eps = max(float(np.percentile(off, 25)), 1e-5)
    model = DBSCAN(eps=eps, min_samples=max(2, int(0.05 * len(rows))), metric="precomputed")
    labels: np.ndarray[tuple[int], np.dtype[np.int64]] = model.fit_predict(distance)
    return labels


def _filtered(gradient: Tensor, options: Options) -> Tensor:
    if options.filter == "none":
        return gradient
    if options.filter == "gaussian":
        return smooth(gradient[None, None], options.sigma)[0, 0]
    if options.filter == "released":
        return _released(gradient)
    return _bilateral(gradient, options.sigma)


def _bilateral(gradient: Tensor, sigma: float) -> Tensor:
    """Weights fall with distance in space and, at the scale of the map's own spread, in value."""
    places = _places(gradient)
    values = gradient.flatten()
    spread = values.std(correction=0).clamp_min(1e-12)
    apart = torch.cdist(places, places) ** 2 / (2 * sigma**2)
    differ = (values[:, None] - values[None]) ** 2 / (2 * spread**2)
    weights = torch.exp(-apart - differ)
    return ((weights @ values) / weights.sum(1)).view(gradient.shape)


def _released(gradient: Tensor) -> Tensor:
    """One kernel of the map's size, a product of distance to the centre and to the mean value, zero padding."""
    places = _places(gradient)
    centre = torch.tensor([size // 2 for size in gradient.shape]).to(places)
    kernel = torch.exp(-((places - centre) ** 2).sum(1) / (2 * 5.0**2))
    kernel = kernel * torch.exp(-((gradient.flatten() - gradient.mean()) ** 2) / (2 * 0.1**2))
    kernel = (kernel / kernel.sum()).view(gradient.shape)[None, None]
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[gradient.ndim]
    result: Tensor = convolve(gradient[None, None], kernel, padding="same")[0, 0]
    return result


def _places(gradient: Tensor) -> Tensor:
    """``[P, ndim]`` indices of the cells."""
    axes = [torch.arange(size, dtype=gradient.dtype, device=gradient.device) for size in gradient.shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
