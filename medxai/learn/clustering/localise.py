"""Where the maps of clusters lie, against masks; what colours the clusters have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medxai.explain.cluster_map import cluster_maps, mass_lift, placed
from medxai.learn.clustering.data import TileSet
from medxai.networks.dceac import Dceac

#: Masks with less or more of the tile say nothing about place.
LEAST, MOST = 0.01, 0.75
Ints = npt.NDArray[np.int64]


def localise(network: Dceac, tiles: TileSet, rows: Ints, x: Tensor, names: Ints) -> dict[str, Any]:
    """By class: mass of the map inside the mask over the mask's share of the tile, for tiles in the right cluster.

    Args:
        network: with centroids.
        tiles: with labels and masks.
        rows: tiles that are measured.
        x: input of all tiles.
        names: class of each cluster.

    Returns:
        For each class with masks between `LEAST` and `MOST`: ``n``, ``lift`` (mean), ``share`` (mean share of
        the mask), ``peak`` (share of maps with the maximum inside the mask), ``attention`` and ``error`` (the same
        lift of those maps); ``None`` where undefined. ``identity``: the largest deviation of map and margin.
    """
    assert tiles.masks is not None  # noqa: S101
    mask = torch.from_numpy(tiles.masks[rows])
    found: dict[str, Any] = {"identity": 0.0}
    lifts, peaks, attention, errors, right = [], [], [], [], []
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        inside = mask[start : start + 32]
        maps = cluster_maps(network, x[part])
        gap = (maps.cam.mean((1, 2)) + maps.offset - maps.margin).abs() / maps.margin.abs().clamp_min(1)
        found["identity"] = max(found["identity"], float(gap.max()))
        shown = maps.evidence()
        lifts.append(mass_lift(shown, inside))
        peaks.append(inside.flatten(1).gather(1, shown.flatten(1).argmax(1)[:, None])[:, 0].float())
        if maps.attention is not None:
            attention.append(mass_lift(placed(maps.attention, inside.shape[1:]), inside))
        errors.append(mass_lift(maps.error, inside))
        right.append(torch.from_numpy(names)[maps.cluster] == torch.from_numpy(tiles.labels[part]))
    share = mask.float().mean((1, 2))
    usable = torch.cat(right) & (share > LEAST) & (share < MOST)
    for label, name in enumerate(tiles.classes):
        mine = usable & (torch.from_numpy(tiles.labels[rows]) == label)
        if mine.any():
            found[name] = {
                "n": int(mine.sum()),
                "share": float(share[mine].mean()),
                "lift": _mean(torch.cat(lifts)[mine]),
                "peak": _mean(torch.cat(peaks)[mine]),
                "attention": _mean(torch.cat(attention)[mine]) if attention else None,
                "error": _mean(torch.cat(errors)[mine]),
            }
    return found


def colours(pixels: npt.NDArray[np.uint8], clusters: Ints, k: int) -> list[list[float] | None]:
    """Mean and standard deviation over tiles of red, green and blue (0..255) by cluster; None for an empty one.

    Clusters that differ here more than tiles do within a cluster may be stains, not patterns.
    """
    means = pixels.mean((1, 2))
    by = [means[clusters == c] for c in range(k)]
    return [[*mine.mean(0).tolist(), *mine.std(0).tolist()] if len(mine) else None for mine in by]


def _mean(values: Tensor) -> float | None:
    finite = values[torch.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
