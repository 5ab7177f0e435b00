"""Colour of evidence: one scale for all pictures, dark violet to pale yellow, more transparent when weaker."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

UInt8 = npt.NDArray[np.uint8]

#: Anchors at equal steps of 0..1. Lightness rises steadily (CIELab L* about 32 to 95), so that the order of
#: values survives grey printing and colour-blind eyes; black is left out since it would hide dark anatomy.
_ANCHORS = np.array(
    [
        (87, 16, 110),
        (120, 28, 109),
        (151, 39, 101),
        (182, 51, 88),
        (211, 67, 67),
        (234, 92, 41),
        (247, 126, 19),
        (252, 163, 26),
        (246, 205, 70),
        (250, 246, 150),
    ],
    dtype=np.float64,
)

#: Values below this share of the maximum are left uncoloured: interpolation haze, not evidence.
FLOOR = 0.04


@cache
def table() -> UInt8:
    """Return ``[256, 3]`` RGB of the values 0/255..255/255."""
    steps = np.linspace(0.0, 1.0, len(_ANCHORS))
    at = np.linspace(0.0, 1.0, 256)
    rgb = np.stack([np.interp(at, steps, _ANCHORS[:, channel]) for channel in range(3)], axis=1)
    colours = np.rint(rgb).astype(np.uint8)
    colours.setflags(write=False)
    return colours


def heat(values: npt.NDArray[np.float32] | np.float32) -> UInt8:
    """Return ``[..., 3]`` RGB of normalised values 0..1."""
    index = np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.intp)
    return np.asarray(table()[index], dtype=np.uint8)


def alpha(values: npt.NDArray[np.float32], opacity: float) -> npt.NDArray[np.float32]:
    """Return how strongly a value covers the anatomy: `opacity` times the value, 0 below `FLOOR`."""
    shown = np.clip(values, 0.0, 1.0) * np.float32(opacity)
    return np.where(values < FLOOR, np.float32(0.0), shown).astype(np.float32)


def blend(image: UInt8, values: npt.NDArray[np.float32], opacity: float) -> UInt8:
    """Return an RGB picture with the evidence over it.

    Args:
        image: ``[..., 3]`` RGB.
        values: ``[...]`` normalised map, 0..1.
        opacity: of the strongest evidence.
    """
    weight = alpha(values, opacity)[..., np.newaxis]
    mixed = image.astype(np.float32) * (1.0 - weight) + heat(values).astype(np.float32) * weight
    return np.asarray(np.rint(mixed), dtype=np.uint8)
