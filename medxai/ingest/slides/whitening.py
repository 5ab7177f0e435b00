"""Colours brought to those of another slide by whitening and colouring of the optical density, without stain vectors.

The group-wise whitening-and-colouring transform of Cho et al. (GDWCT, CVPR 2019) acts on learnt features; this is its
linear core on the three optical densities, where nothing has to be learnt. It is taken about zero density and not
about the mean, so that bare glass stays bare. Principal axes are whitened and coloured pairwise, the strongest to the
strongest: two stains leave the third to noise, which a whitening without axes (ZCA) would mix into the stains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.ingest.slides.level import Colours
from medxai.ingest.slides.optical_density import WHITE, Floats, colours_of, optical_density
from medxai.ingest.slides.stain import LEAST_DENSITY

#: Fewer stained pixels than this tell no covariance.
_LEAST_PIXELS = 200
#: Smallest variance along a direction, as a share of the largest: two stains leave the third direction to noise, and
#: noise is not to be blown up.
_FLOOR = 1e-3


@dataclass(frozen=True, eq=False)
class Spread:
    """How optical densities of a slide's tissue spread about zero.

    Attributes:
        variances: ``[3]``, mean square along each direction, rising; at least `_FLOOR` of the largest.
        directions: ``[3, 3]``, unit vectors as columns.
        white: ``[3]``, RGB of bare glass.
    """

    variances: npt.NDArray[np.float64]
    directions: npt.NDArray[np.float64]
    white: Floats


def estimate_spread(colours: Colours, white: float | Floats = WHITE) -> Spread:
    """Return the spread of the stained pixels.

    Args:
        colours: ``[..., 3]`` RGB 0..255 of a tile, or of pixels of many.
        white: grey value, or ``[3]`` values, of bare glass.

    Raises:
        IngestError: hardly any stained pixel.
    """
    density = optical_density(colours.reshape(-1, 3), white).astype(np.float64)
    density = density[np.linalg.norm(density, axis=1) >= LEAST_DENSITY]
    if len(density) < _LEAST_PIXELS:
        msg = f"{len(density)} pixels are stained and {_LEAST_PIXELS} are needed: estimate over several tiles"
        raise IngestError(msg)
    variances, directions = np.linalg.eigh(density.T @ density / len(density))
    return Spread(
        np.maximum(variances, _FLOOR * variances[-1]), directions, np.broadcast_to(np.float32(white), 3).copy()
    )


def whiten_and_colour(colours: Colours, source: Spread, target: Spread) -> Colours:
    """Return colours whose optical densities spread as those of `target` do; with its own spread nothing changes.

    Args:
        colours: ``[..., 3]`` RGB 0..255.
        source: spread of the slide that they are of.
        target: to bring them to.
    """
    signs = np.where((source.directions * target.directions).sum(0) < 0, -1.0, 1.0)
    stretch = signs * np.sqrt(target.variances / source.variances)
    matrix = (target.directions * stretch) @ source.directions.T
    density = optical_density(colours, source.white).astype(np.float64)
    return colours_of(density @ matrix.T, target.white)
