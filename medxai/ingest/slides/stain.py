"""Stain vectors of haematoxylin and eosin, and tiles brought to other ones (Macenko et al. 2009, ISBI)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.level import Colours, Slide
from medxai.ingest.slides.optical_density import WHITE, Floats, colours_of, optical_density
from medxai.ingest.slides.scaled import read_scaled
from medxai.ingest.slides.tiles import TileGrid

#: Length of the optical density below which a pixel holds no stain (beta of the paper).
LEAST_DENSITY = 0.15
#: Hundredths of the directions that are left out at either end (alpha of the paper).
OUTERMOST = 1.0
#: Fewer stained pixels than this tell no stains.
_LEAST_PIXELS = 200
#: Degrees between two stains; less is one stain with noise. Haematoxylin and eosin have 20 to 40.
_LEAST_ANGLE = 8.0


@dataclass(frozen=True, eq=False)
class Stains:
    """Two stains of a slide.

    Attributes:
        vectors: ``[3, 2]``, optical density (base 10) of red, green and blue for each stain, of unit length; the one
            that takes more red light, haematoxylin, first.
        strongest: ``[2]``, 99th percentile of the amount of each.
        white: ``[3]``, RGB of bare glass.
    """

    vectors: npt.NDArray[np.float64]
    strongest: npt.NDArray[np.float64]
    white: Floats


#: The reference of the authors' group (stain normalisation toolbox of Veta, one of the paper's line of users; its
#: natural logarithms turned to base 10), so that no slide has to be chosen as reference.
REFERENCE = Stains(
    vectors=np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]]),
    strongest=np.array([1.9705, 1.0308]) / np.log(10.0),
    white=np.full(3, 240, np.float32),
)


def estimate_stains(colours: Colours, white: float | Floats = WHITE) -> Stains:
    """Estimate the stains of tissue.

    The plane of the two largest singular vectors of the optical densities, and in it the directions of the outermost
    hundredths.

    Args:
        colours: ``[..., 3]`` RGB 0..255 of a tile, or of pixels of many (see `sample_pixels`).
        white: grey value, or ``[3]`` values, of bare glass.

    Raises:
        IngestError: hardly any stained pixel, or one stain alone; the message says which.
    """
    density = optical_density(colours.reshape(-1, 3), white).astype(np.float64)
    density = density[np.linalg.norm(density, axis=1) >= LEAST_DENSITY]
    if len(density) < _LEAST_PIXELS:
        msg = (
            f"{len(density)} pixels are stained and {_LEAST_PIXELS} are needed to tell the stains apart: "
            "estimate them over several tiles"
        )
        raise IngestError(msg)
    _, vectors = np.linalg.eigh(density.T @ density)
    plane = vectors[:, [2, 1]]
    plane[:, 0] *= np.sign(plane[:, 0].sum()) or 1.0
    along = density @ plane
    low, high = np.percentile(np.arctan2(along[:, 1], along[:, 0]), [OUTERMOST, 100 - OUTERMOST])
    if np.degrees(high - low) < _LEAST_ANGLE:
        msg = (
            f"the directions of its colours are {np.degrees(high - low):.1f} degrees apart and {_LEAST_ANGLE:g} are "
            "needed: it holds one stain alone; estimate the stains over several tiles"
        )
        raise IngestError(msg)
    found = plane @ np.array([[np.cos(low), np.cos(high)], [np.sin(low), np.sin(high)]])
    if found[0, 0] < found[0, 1]:
        found = found[:, ::-1]
    amounts = density @ np.linalg.pinv(found).T
    return Stains(found, np.percentile(amounts, 99, axis=0), np.broadcast_to(np.float32(white), 3).copy())


def amounts_of(colours: Colours, stains: Stains) -> npt.NDArray[np.float64]:
    """Return the least-squares amount of each stain, ``[..., 2]``; slightly negative on bare glass.

    Args:
        colours: ``[..., 3]`` RGB 0..255.
        stains: of the slide.
    """
    density = optical_density(colours, stains.white).astype(np.float64)
    return np.asarray(density @ np.linalg.pinv(stains.vectors).T, np.float64)


def normalise(colours: Colours, source: Stains, target: Stains = REFERENCE) -> Colours:
    """Return the same amounts of stain in the colours and the strength of other stains.

    What lies outside of the plane of the two stains is lost, as in the paper; with `target` equal to `source` the
    colours therefore stay as they are up to that, and never become NaN.

    Args:
        colours: ``[..., 3]`` RGB 0..255.
        source: of the slide that the colours are of, estimated over many tiles and not over one.
        target: to bring them to.
    """
    amounts = amounts_of(colours, source) * (target.strongest / np.maximum(source.strongest, 1e-6))
    return colours_of(amounts @ target.vectors.T, target.white)


def sample_pixels(slide: Slide, grid: TileGrid, *, tiles: int = 32, pixels: int = 4096, seed: int = 0) -> Colours:
    """Return ``[n, 3]`` pixels of tiles spread over a grid, from which a slide's stains are estimated.

    Damaged tiles are left out.

    Args:
        slide: open.
        grid: over its tissue.
        tiles: at most.
        pixels: of each tile at most, drawn at random.
        seed: of the draw.

    Raises:
        TileError: every one of the tiles is damaged.
    """
    draw, found = np.random.default_rng(seed), []
    for row, column in grid.spread(tiles).places.tolist():
        try:
            tile = read_scaled(slide, grid.choice, row, column, grid.size, grid.size).reshape(-1, 3)
        except TileError:
            continue
        found.append(tile[draw.choice(len(tile), min(pixels, len(tile)), replace=False)])
    if not found:
        msg = f"none of {min(tiles, len(grid))} tiles could be read to estimate the stains"
        raise TileError(msg, study=slide.name)
    return np.concatenate(found)
