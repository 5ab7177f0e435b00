"""Series of an atlas's regions, and their functional connectivity over the whole scan and in sliding windows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medxai.errors import MismatchError
from medxai.prepare.brain.atlas import Placed
from medxai.prepare.brain.settings import WindowOptions

Array = npt.NDArray[np.float32]
#: Correlations are brought to within this of zero, so that Fisher's z stays finite (|z| <= 4.95).
LARGEST_R = 0.9999


def region_series(data: npt.NDArray[np.floating], placed: Placed, mask: npt.NDArray[np.bool_]) -> Array:
    """Series ``[T, N]`` of the regions: means over their voxels, or the least-squares fit of a probabilistic atlas.

    Args:
        data: ``[D, H, W, T]``.
        placed: atlas on this grid.
        mask: ``[D, H, W]`` brain.

    Returns:
        float32; zeros for missing regions.
    """
    from scipy import sparse

    count = len(placed.atlas.labels)
    if placed.atlas.probabilistic:
        weights = np.asarray(placed.labels[mask], np.float64)
        used = [n for n in range(count) if n not in placed.missing]
        fitted = np.linalg.lstsq(weights[:, used], np.asarray(data[mask], np.float64), rcond=None)[0]
        result = np.zeros((data.shape[3], count), np.float32)
        result[:, used] = fitted.T
        return result
    inside = placed.labels > 0
    numbers = placed.labels[inside].astype(np.int64) - 1
    sizes = np.maximum(np.bincount(numbers, minlength=count), 1)
    means = sparse.csr_array(
        (1.0 / sizes[numbers], (numbers, np.arange(len(numbers)))), shape=(count, len(numbers)), dtype=np.float64
    )
    series = np.asarray(means @ data[inside].astype(np.float64), np.float64).T
    series[:, list(placed.missing)] = 0
    return series.astype(np.float32)


def static_connectivity(series: Array) -> Array:
    """Fisher z of the correlation of all pairs of regions over the whole scan, zero on the diagonal.

    Args:
        series: ``[T, N]``.

    Returns:
        ``[N, N]``; zero for constant regions, |z| at most that of `LARGEST_R`.
    """
    return _fisher(_correlation(series.astype(np.float64), np.ones(len(series))))


def dynamic_connectivity(
    series: Array, repetition_seconds: float, options: WindowOptions, study: str = "series"
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Fisher z in sliding windows.

    Args:
        series: ``[T, N]``.
        repetition_seconds: between volumes.
        options: length, step or number, and shape of the windows.
        study: name for messages.

    Returns:
        ``[N, N, windows]`` with zero diagonals, and the first volume of each window.

    Raises:
        MismatchError: too few volumes; says the numbers.
    """
    volumes, count = series.shape
    length, starts = windows(volumes, repetition_seconds, options, study)
    weights = window_weights(length, repetition_seconds, options)
    result = np.empty((count, count, len(starts)), np.float32)
    values = series.astype(np.float64)
    for n, start in enumerate(starts):
        result[..., n] = _fisher(_correlation(values[start : start + length], weights))
    return result, starts


def windows(
    volumes: int, repetition_seconds: float, options: WindowOptions, study: str = "series"
) -> tuple[int, npt.NDArray[np.int64]]:
    """Length of a window in volumes, and where each begins.

    Raises:
        MismatchError: the scan is shorter than a window, a window is no sensible one, or the scan has no room for so
            many different windows; says the numbers.
    """
    length = round(options.seconds / repetition_seconds)
    if length < 4:
        words = f"a window of {options.seconds:g} s holds {length} volumes of {repetition_seconds:g} s"
        raise MismatchError(f"{words}; at least 4 are needed for a correlation", study=study)
    if volumes < length:
        words = f"{volumes} volumes of {repetition_seconds:g} s are too few for a window of {options.seconds:g} s"
        raise MismatchError(f"{words}, which needs {length}", study=study)
    room = volumes - length + 1
    if options.count is None:
        return length, np.arange(0, room, options.step, dtype=np.int64)
    if options.count > room:
        words = f"{volumes} volumes have room for {room} different windows of {length} volumes"
        raise MismatchError(
            f"{words}, and {options.count} are wanted; {length + options.count - 1} are needed", study=study
        )
    if options.count == 1:
        return length, np.array([(room - 1) // 2], np.int64)
    return length, np.round(np.linspace(0, room - 1, options.count)).astype(np.int64)


def window_weights(length: int, repetition_seconds: float, options: WindowOptions) -> npt.NDArray[np.float64]:
    """Weights of the volumes of a window, with a maximum of one."""
    if options.shape == "rectangle":
        return np.ones(length)
    sigma = options.taper_seconds / repetition_seconds
    places = np.arange(length)
    weights = np.exp(-0.5 * ((places[:, None] - places[None]) / sigma) ** 2).sum(1)
    return np.asarray(weights / weights.max(), np.float64)


def _correlation(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    share = weights / weights.sum()
    centred = (values - share @ values) * np.sqrt(share)[:, None]
    size = np.sqrt((centred**2).sum(0))
    # Rounding leaves constant series with a size beside that of their values.
    varies = size > 1e-7 * (np.abs(values).max(0) + 1e-30)
    unit = np.divide(centred, size, out=np.zeros_like(centred), where=varies)
    return np.asarray(unit.T @ unit, np.float64)


def _fisher(correlation: npt.NDArray[np.float64]) -> Array:
    z = np.arctanh(np.clip(correlation, -LARGEST_R, LARGEST_R))
    np.fill_diagonal(z, 0)
    return z.astype(np.float32)
