"""What is done to the colours of a slide before a network sees its tiles: ICC profile, then stains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from medxai.errors import IngestError
from medxai.ingest.slides.colour_profile import to_srgb
from medxai.ingest.slides.level import Colours, Slide
from medxai.ingest.slides.optical_density import Floats
from medxai.ingest.slides.stain import REFERENCE, Stains, estimate_stains, normalise, sample_pixels
from medxai.ingest.slides.tiles import TileGrid
from medxai.ingest.slides.whitening import Spread, estimate_spread, whiten_and_colour

Change = Callable[[Colours], Colours]


def colour_change(
    slide: Slide, grid: TileGrid, glass: float | Floats, *, icc: bool = False,
    stain: Literal["none", "macenko", "whitening"] = "none", stains: Stains | None = None, spread: Spread | None = None,
) -> Change | None:  # fmt: skip
    """Return what turns the colours of a tile ``[H, W, 3]`` into those that the network is given; None for nothing.

    Stains are estimated over the slide, after the profile.

    Args:
        slide: open.
        grid: tiles that they are estimated over.
        glass: RGB of bare glass.
        icc: apply the slide's profile.
        stain: how colours are brought to the target's.
        stains: target of ``macenko``; None for the published reference.
        spread: target of ``whitening``.

    Raises:
        IngestError: no profile, no target to whiten to, or too little stain to estimate.
    """
    steps: list[Change] = []
    if icc:
        steps.append(to_srgb(slide))
    if stain != "none":
        pixels = sample_pixels(slide, grid)
        for step in steps:
            # A profile works on pictures.
            pixels = step(pixels[None])[0]
        if stain == "macenko":
            steps.append(partial(normalise, source=estimate_stains(pixels, glass), target=stains or REFERENCE))
        elif spread is None:
            msg = "the bundle does not state the colours of its training tiles, to which whitening would bring them"
            raise IngestError(f"{msg}; use macenko, or none", study=slide.name)
        else:
            steps.append(partial(whiten_and_colour, source=estimate_spread(pixels, glass), target=spread))
    return partial(_all, tuple(steps)) if steps else None


def _all(steps: tuple[Change, ...], colours: Colours) -> Colours:
    for step in steps:
        colours = step(colours)
    return np.ascontiguousarray(colours)
