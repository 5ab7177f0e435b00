"""Raw window maps -> one map on the prepared grid, with the weights that fused the logits."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt
import torch

from medxai.explain.enlarge import along_axes, enlarging
from medxai.explain.resize import resize
from medxai.study import FloatArray

#: Values of the fused map that are made at once: beside it nothing of its size is held.
_SLAB = 1 << 20


def enlarge(raw: FloatArray, size: Sequence[int]) -> FloatArray:
    """Resize ``[N, *s]`` to ``[N, *size]``: linear with half-pixel centres (``align_corners=False``)."""
    return resize(torch.from_numpy(np.ascontiguousarray(raw)), size).numpy()


def fuse_windows(
    raw: FloatArray,
    offsets: npt.NDArray[np.int64],
    weights: FloatArray,
    size: Sequence[int],
    importance: FloatArray,
    shape: Sequence[int],
) -> FloatArray:
    """Blend signed window maps into ``[*shape]``.

    Where windows overlap, ``sum_i w_i g_i R_i / sum_i g_i`` with ``w_i`` the derivative of the fused logit
    with respect to the window's logit (times the number of windows) and ``g_i`` the importance within the
    window: a window that did not speak for the class does not colour the map.

    Args:
        raw: ``[N, *s]`` on the layer grid.
        offsets: ``[N, ndim]`` first voxel of each window.
        weights: ``[N]``, summing to one.
        size: window size.
        importance: ``[*size]`` positive.
        shape: prepared grid.
    """
    fused = np.zeros(tuple(shape), dtype=np.float32)
    axes, maps = enlarging(raw.shape[1:], size), torch.from_numpy(np.ascontiguousarray(raw))
    planes = max(1, _SLAB // prod(shape[1:]))
    for first in range(0, shape[0], planes):
        slab = fused[first : first + planes]
        norm = np.zeros_like(slab)
        for index, offset in enumerate(offsets.tolist()):
            low, high = max(first, offset[0]), min(first + len(slab), offset[0] + size[0])
            if low >= high:
                continue
            rows = slice(low - offset[0], high - offset[0])
            window = along_axes(maps[index : index + 1], [axes[0][rows], *axes[1:]])[0].numpy()
            rest = (slice(o, o + s) for o, s in zip(offset[1:], size[1:], strict=True))
            where = (slice(low - first, high - first), *rest)
            slab[where] += np.float32(weights[index] * len(offsets)) * importance[rows] * window
            norm[where] += importance[rows]
        np.divide(slab, norm, out=slab, where=norm > 0)
    return fused
