"""Pictures that are no tissue in the stains of a bundle: photographs, grey images, other stains."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from medxai.ingest.slides.optical_density import optical_density
from medxai.ingest.slides.stain import LEAST_DENSITY, REFERENCE
from medxai.predict.bundle_spec import SlideColours
from medxai.study import Volume

#: Degrees between the colour of a pixel and the nearest mixture of the stains from which it is foreign.
FOREIGN = 10.0
#: Share of foreign pixels, among those that are no glass, above which a picture is not of these stains: below 0.01 in
#: training patches of histo_tumour, 0.02 in a slide of skin with pen marks; 0.93 and 1.00 in photographs, 0.8 in H-DAB.
MOST = 0.3
#: Optical densities of haematoxylin and eosin as elsewhere published (Ruifrok and Johnston 2001, and the reference of
#: `medxai.ingest.slides.stain`): other laboratories' stains are no mixture of the training tiles' alone.
PUBLISHED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), *map(tuple, REFERENCE.vectors.T.tolist()))
#: Pixels that are looked at, and steps from one stain to another in a mixture.
_PIXELS, _STEPS = 30_000, 20


def foreign_colours(volume: Volume, known: SlideColours) -> str | None:
    """Say in words how far a picture is from the stains of the training tiles; None where it is near enough.

    Args:
        volume: ``[3, H, W]`` RGB 0..255; another number of channels counts as grey.
        known: colours of the training tiles.
    """
    if volume.pixels.shape[0] != 3:
        return "the picture is grey and not of stained tissue"
    flat = volume.pixels.reshape(3, -1).T
    drawn = flat if len(flat) <= _PIXELS else flat[np.random.default_rng(0).integers(0, len(flat), _PIXELS)]
    pixels = np.clip(np.rint(drawn), 0, 255).astype(np.uint8)
    density = optical_density(pixels, np.array(known.white, np.float32)).astype(np.float64)
    length = np.linalg.norm(density, axis=1)
    stained = length >= LEAST_DENSITY
    if not stained.any():
        return None  # bare glass; that there is no tissue is found elsewhere
    direction = density[stained] / length[stained, None]
    cosine = (direction @ _mixtures(np.array([*known.vectors, *PUBLISHED])).T).max(1)
    share = float((cosine < np.cos(np.radians(FOREIGN))).mean())
    return f"{share:.0%} of its colours are no mixture of the stains it was trained on" if share > MOST else None


def _mixtures(stains: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Directions ``[n, 3]`` of mixtures of up to three of the stains ``[m, 3]``, close together."""
    unit = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    parts = np.array([(a, b, _STEPS - a - b) for a in range(_STEPS + 1) for b in range(_STEPS + 1 - a)]) / _STEPS
    found = np.concatenate([parts @ unit[list(three)] for three in itertools.combinations(range(len(unit)), 3)])
    directions: npt.NDArray[np.float64] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return directions
