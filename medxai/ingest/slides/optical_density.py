"""Optical density: how much light stains take, in which their amounts add up (Beer and Lambert)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medxai.ingest.slides.level import Colours

Floats = npt.NDArray[np.float32]

#: Grey value of light that nothing took.
WHITE = 255.0


def optical_density(colours: Colours, white: float | Floats = WHITE) -> Floats:
    """Return ``-log10((I + 1) / (white + 1))``, of the same shape; 0 where the glass is bare, at most 2.4.

    Adding one keeps black finite. Base 10 is that of absorbance.

    Args:
        colours: ``[..., 3]`` RGB 0..255.
        white: grey value, or ``[3]`` values, of bare glass.
    """
    light = (colours.astype(np.float32) + np.float32(1)) / (np.asarray(white, np.float32) + np.float32(1))
    return np.asarray(-np.log10(light), np.float32)


def colours_of(density: npt.NDArray[np.floating], white: float | Floats = WHITE) -> Colours:
    """Return the RGB 0..255 of optical densities ``[..., 3]``; the inverse of `optical_density`, rounded."""
    light = np.power(10.0, -density) * (np.asarray(white, np.float64) + 1) - 1
    return np.asarray(np.rint(np.clip(light, 0, 255)), np.uint8)
