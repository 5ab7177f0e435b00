"""Overlay planes (60xx, PS3.3 C.9.2): what they are, and getting them out of the pixels where they share their bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pydicom import Dataset

_GROUPS = range(0x6000, 0x6020, 2)


def overlay_groups(header: Dataset) -> list[int]:
    """Groups that hold an overlay plane."""
    return [group for group in _GROUPS if (group, 0x0010) in header or (group, 0x3000) in header]


def without_overlay_bits(array: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    """Pixels without the unused high bits in which older scanners stored overlays (retired, PS3.5 2004 8.1.1)."""
    stored, allocated = int(dataset.get("BitsStored", 16) or 16), int(dataset.get("BitsAllocated", 16) or 16)
    embedded = any(int(dataset[g, 0x0102].value or 0) > 0 for g in _GROUPS if (g, 0x0102) in dataset)
    if not embedded or stored >= allocated or array.dtype.kind not in "iu":
        return array
    width = array.dtype.itemsize * 8
    mask = np.array((1 << stored) - 1).astype(array.dtype.str.replace("i", "u"))
    values: npt.NDArray[Any] = array.view(mask.dtype) & mask
    if array.dtype.kind == "i":
        shift = width - stored  # carry the sign over the cleared bits
        values = (values << mask.dtype.type(shift)).view(array.dtype) >> array.dtype.type(shift)
    return values


def overlay_note(header: Dataset) -> list[str]:
    """What to tell people of an image with overlays; empty without."""
    count = len(overlay_groups(header))
    if not count:
        return []
    words = "an overlay plane" if count == 1 else f"{count} overlay planes"
    return [f"{words} (60xx) left out: neither the model nor the results see what it draws"]
