"""Regional homogeneity: Kendall's coefficient of concordance of a voxel and its neighbours."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medxai.errors import MismatchError

Array = npt.NDArray[np.float32]
#: Voxels ranked and volumes summed at once.
_VOXELS, _VOLUMES = 1 << 13, 16


def reho(series: Array, mask: npt.NDArray[np.bool_], study: str = "series") -> Array:
    """Kendall's W of each voxel with those of its 26 neighbours that lie in the mask (Zang et al. 2004).

    Ties get mean ranks and W the usual correction: with K voxels of n volumes, rank sums R_t and tie sums
    ``T_j = sum(t^3 - t)``, ``W = 12 (sum R_t^2 - (sum R_t)^2 / n) / (K^2 (n^3 - n) - K sum T_j)``.

    Args:
        series: ``[T, n]`` of the voxels of `mask` in C order.
        mask: ``[D, H, W]``.
        study: name for messages.

    Returns:
        ``[n]``, from 0 to 1; 0 for voxels without a neighbour, and where all series are constant.

    Raises:
        MismatchError: fewer than three volumes.
    """
    from scipy.stats import rankdata

    volumes, count = series.shape
    if volumes < 3:
        raise MismatchError(f"{volumes} volumes cannot be ranked; at least 3 are needed", study=study)
    ranks = np.empty((volumes, count), np.float32)
    ties = np.empty(count, np.float64)
    for start in range(0, count, _VOXELS):
        part = slice(start, start + _VOXELS)
        ranks[:, part] = rankdata(series[:, part], axis=0)
        ties[part] = _tie_sums(series[:, part])
    neighbours = _box(mask[..., None].astype(np.float64))[..., 0][mask]
    spread = np.zeros(mask.shape)
    spread[mask] = ties
    all_ties = _box(spread[..., None])[..., 0][mask]
    squares = np.zeros(count)
    for start in range(0, volumes, _VOLUMES):
        some = ranks[start : start + _VOLUMES]
        grid = np.zeros((*mask.shape, len(some)))
        grid[mask] = some.T
        squares += (_box(grid)[mask] ** 2).sum(1)
    total = neighbours * volumes * (volumes + 1) / 2
    above = 12 * (squares - total**2 / volumes)
    below = neighbours**2 * (volumes**3 - volumes) - neighbours * all_ties
    usable = (neighbours > 1) & (below > 1e-9)
    result = np.zeros(count, np.float32)
    result[usable] = np.clip(above[usable] / below[usable], 0, 1)
    return result


def _tie_sums(values: Array) -> npt.NDArray[np.float64]:
    """Sum over groups of equal values of ``t^3 - t`` in each column."""
    ordered = np.sort(values, axis=0)
    equal = ordered[1:] == ordered[:-1]
    sums = np.zeros(values.shape[1])
    columns = np.flatnonzero(equal.any(0))
    if len(columns) == 0:
        return sums
    run = np.zeros(len(columns))  # length of the run of equal values so far, less one
    for row in equal[:, columns]:
        grown = np.where(row, run + 1, 0)
        # (t^3 - t) grows by 3 t (t - 1) when a group grows from t - 1 to t
        sums[columns] += np.where(row, 3 * (grown + 1) * grown, 0)
        run = grown
    return sums


def _box(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sums over cubes of 3 x 3 x 3 voxels of the first three axes, with zeros outside."""
    for axis in range(3):
        padding = [(0, 0)] * values.ndim
        padding[axis] = (1, 1)
        wide = np.pad(values, padding)
        size = values.shape[axis]
        values = sum(np.take(wide, range(k, k + size), axis) for k in range(3))  # type: ignore[assignment]
    return values
