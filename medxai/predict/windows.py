"""Windows of the network's size over a larger prepared grid, evenly spaced and covering everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.errors import MismatchError
from medxai.prepare.spec import PreparationSpec
from medxai.study import FloatArray

IntArray = npt.NDArray[np.int64]

#: Width of the Gaussian as a share of the window, and the smallest weight: those of MONAI's sliding window.
_SIGMA, _LEAST = 0.125, 1e-3


@dataclass(frozen=True, eq=False)
class Windows:
    """Where a network looks.

    Attributes:
        offsets: ``[N, n]`` first voxel of each window on the prepared grid, in C order; for a cine the
            first column is the frame.
        size: window size, ``len(size)`` being the network's dimensions.
        importance: ``[*size]`` weight of each voxel when overlapping maps are fused, 1 in the middle.
    """

    offsets: IntArray
    size: tuple[int, ...]
    importance: FloatArray

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.offsets)

    def extract(self, pixels: FloatArray, which: Sequence[int] | None = None) -> FloatArray:
        """Cut windows out of prepared ``[C, *S']``: ``[N, C, *size]``.

        Args:
            pixels: prepared input that the windows were planned for.
            which: numbers of the windows; None for all.
        """
        chosen = range(len(self)) if which is None else which
        cuts = []
        for number in chosen:
            offset = self.offsets[number].tolist()
            frame = offset[: len(offset) - len(self.size)]
            start = offset[len(frame) :]
            box = [slice(a, a + n) for a, n in zip(start, self.size, strict=True)]
            cuts.append(pixels[(slice(None), *frame, *box)])
        return np.ascontiguousarray(np.stack(cuts))


def plan_windows(shape: Sequence[int], spec: PreparationSpec) -> Windows:
    """Plan the windows for a prepared grid.

    A cine ``(T, H, W)`` for a 2D network gives one window per frame.

    Args:
        shape: spatial shape of the prepared pixels, at least the window on every axis.
        spec: window size and overlap.

    Raises:
        MismatchError: the grid is smaller than the window, or frames of a cine are larger than it.
    """
    window = tuple(spec.window)
    extra = len(shape) - len(window)
    space = tuple(shape[extra:])
    if extra not in (0, 1) or any(s < w for s, w in zip(space, window, strict=True)):
        msg = f"a prepared grid of {tuple(shape)} holds no window of {window}"
        raise MismatchError(msg)
    if extra and space != window:
        msg = f"frames of {space} are larger than the window {window}; a cine needs one window per frame"
        raise MismatchError(msg)
    axes = [np.arange(n) for n in shape[:extra]]
    axes += [_starts(s, w, spec.overlap) for s, w in zip(space, window, strict=True)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape)).astype(np.int64)
    return Windows(offsets, window, gaussian_importance(window))


def gaussian_importance(size: Sequence[int]) -> FloatArray:
    """Separable Gaussian ``[*size]``, clamped from below at 0.001 and then divided by its maximum, as MONAI does."""
    result = np.ones((), dtype=np.float64)
    for n in size:
        distance = np.arange(n) - (n - 1) / 2
        result = result[..., None] * np.exp(-0.5 * (distance / (_SIGMA * n)) ** 2)
    result = np.maximum(result, _LEAST)
    weights: FloatArray = (result / result.max()).astype(np.float32)
    return weights


def _starts(length: int, window: int, overlap: float) -> IntArray:
    """First voxels: as few windows as the overlap allows, evenly spaced from one border to the other."""
    count = 1 + math.ceil((length - window) / max(1.0, window * (1 - overlap)) - 1e-9)
    return np.rint(np.linspace(0, length - window, count)).astype(np.int64)
