"""Raw window maps -> one map on the prepared grid, with the weights that fused the logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from medxai.explain.resize import resize
from medxai.study import FloatArray


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
    total = np.zeros(tuple(shape), dtype=np.float32)
    norm = np.zeros(tuple(shape), dtype=np.float32)
    for index, offset in enumerate(offsets):
        window = enlarge(raw[index : index + 1], size)[0]
        where = tuple(slice(int(o), int(o) + int(s)) for o, s in zip(offset, size, strict=True))
        total[where] += np.float32(weights[index] * len(offsets)) * importance * window
        norm[where] += importance
    return np.divide(total, norm, out=np.zeros_like(total), where=norm > 0)
