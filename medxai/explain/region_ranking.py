"""Regions of an atlas in the order of their evidence, over all maps of a subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.explain.connectivity_map import node_strength


@dataclass(frozen=True)
class Ranked:
    """A region in one map.

    Attributes:
        rank: from 1, within the map.
        index: of the region in its atlas.
        region: name.
        network: name, "" for none.
        modality: whose map.
        value: mean of the ALFF map over the region's voxels, or sum of the evidence of its edges.
        relative: `value` over that of the map's first region.
    """

    rank: int
    index: int
    region: str
    network: str
    modality: str
    value: float
    relative: float


def strengths(maps: Mapping[str, npt.ArrayLike]) -> dict[str, npt.NDArray[np.float64]]:
    """Evidence ``[N]`` of each node by matrix; of the dynamic one that of its mean over the windows."""
    found = {}
    for name in ("sfc", "dfc", "fa"):
        if name in maps:
            values = np.asarray(maps[name], dtype=float)
            found[name] = node_strength(values.mean(-1) if values.ndim == 3 else values)
    return found


def region_means(values: npt.ArrayLike, labels: npt.NDArray[np.integer], regions: int) -> npt.NDArray[np.float64]:
    """Mean ``[N]`` of a map over each region; NaN where it has no voxel.

    Args:
        values: ``[D, H, W]``.
        labels: on the same grid, 0 outside, n for the nth region from 1.
        regions: N.
    """
    count = np.bincount(labels.ravel(), minlength=regions + 1)[1 : regions + 1]
    weights = np.asarray(values, dtype=float).ravel()
    total = np.bincount(labels.ravel(), weights=weights, minlength=regions + 1)[1 : regions + 1]
    means: npt.NDArray[np.float64] = np.divide(total, count, out=np.full(regions, np.nan), where=count > 0)
    return means


def ranking(
    values: npt.ArrayLike, regions: Sequence[str], networks: Sequence[str], modality: str
) -> tuple[Ranked, ...]:
    """Regions with some evidence, the strongest first, in the order of the atlas where they are equal.

    Args:
        values: ``[N]``; NaN has no rank.
        regions: names.
        networks: of them; may be empty.
        modality: whose map.

    Raises:
        ValueError: not one value a region.
    """
    array = np.asarray(values, dtype=float)
    if len(array) != len(regions):
        message = f"{modality}: {len(array)} values for {len(regions)} regions"
        raise ValueError(message)
    order = [int(i) for i in np.argsort(-np.nan_to_num(array, nan=-np.inf), kind="stable") if array[i] > 0]
    top = float(array[order[0]]) if order else 1.0
    return tuple(
        Ranked(rank, i, regions[i], networks[i] if networks else "", modality, float(array[i]), float(array[i]) / top)
        for rank, i in enumerate(order, 1)
    )
