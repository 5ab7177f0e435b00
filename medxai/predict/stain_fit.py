"""Pictures that are no tissue in the stains of a bundle: photographs, grey images, other stains."""

from __future__ import annotations

import numpy as np

from medxai.ingest.slides.optical_density import optical_density
from medxai.ingest.slides.stain import LEAST_DENSITY
from medxai.predict.bundle_spec import SlideColours
from medxai.study import Volume

#: Degrees between the colour of a pixel and the nearest mixture of the two stains from which it is foreign.
FOREIGN = 15.0
#: Share of foreign pixels, among those that are no glass, above which a picture is not of these stains: at most 0.055
#: in the 26 training patches of histo_tumour, 0.048 in a slide of skin with pen marks; 0.89 and 0.99 in photographs.
MOST = 0.3
#: Pixels that are looked at.
_PIXELS = 1_000_000


def foreign_colours(volume: Volume, known: SlideColours) -> str | None:
    """Say in words how far a picture is from the stains of the training tiles; None where it is near enough.

    Args:
        volume: ``[3, H, W]`` RGB 0..255; another number of channels counts as grey.
        known: colours of the training tiles.
    """
    if volume.pixels.shape[0] != 3:
        return "the picture is grey and not of stained tissue"
    flat = volume.pixels.reshape(3, -1).T
    pixels = np.clip(np.rint(flat[:: max(1, len(flat) // _PIXELS)]), 0, 255).astype(np.uint8)
    density = optical_density(pixels, np.array(known.white, np.float32)).astype(np.float64)
    length = np.linalg.norm(density, axis=1)
    stained = length >= LEAST_DENSITY
    if not stained.any():
        return None  # bare glass; that there is no tissue is found elsewhere
    direction = density[stained] / length[stained, None]
    vectors = np.array(known.vectors).T
    mixture = np.maximum(direction @ np.linalg.pinv(vectors).T, 0) @ vectors.T
    size = np.maximum(np.linalg.norm(mixture, axis=1), 1e-9)
    cosine = (direction * mixture).sum(1) / size
    share = float((cosine < np.cos(np.radians(FOREIGN))).mean())
    return f"{share:.0%} of its colours are no mixture of the stains it was trained on" if share > MOST else None
