"""Where tissue lies: optical density over the glass, on a coarse level, cleaned up in micrometres."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.ingest.slides.level import Colours, Slide
from medxai.ingest.slides.optical_density import Floats, optical_density
from medxai.ingest.slides.thumbnail import thumbnail

Mask = npt.NDArray[np.bool_]

#: Micrometres per pixel of the mask: a nucleus or two.
MASK_MPP = 8.0
#: Standard deviation of the smoothing: gaps between cells belong to the tissue.
SMOOTHING_UM = 10.0
#: Parts of tissue that are smaller are dust, and holes that are smaller are filled.
LEAST_AREA_UM2 = 20_000.0
#: Mean optical densities: nothing below the first is tissue, everything above the second is, and the third is above
#: that of pale stroma, which has 0.03 to 0.1. Otsu's threshold alone would part it from nuclei where a slide is dark.
_FAINTEST, _CERTAIN, _DENSE = 0.02, 0.06, 0.12
#: Standard deviations of the glass above which tissue starts.
_NOISE = 4.0
#: Glass is brighter than this in its darkest channel, and hardly coloured.
_GLASS, _COLOURLESS = 200, 16
#: Share of pixels that have to be glass for its colour to be taken from the slide.
_LEAST_GLASS = 0.005
#: Colour of glass of which nothing is seen.
_USUAL_GLASS = 245.0
#: Scanners fill what they did not scan with black.
_BLACK = 8


@dataclass(frozen=True, eq=False)
class Tissue:
    """Where tissue lies.

    Attributes:
        mask: ``[H, W]``, True on tissue.
        mpp: micrometres per pixel of the mask; its corner is that of the slide.
        share: of the slide that is tissue.
        area_mm2: of the tissue.
        glass: ``[3]`` RGB of bare glass.
        threshold: mean optical density over glass from which on a pixel is tissue.
        density: median of the mean optical density of the tissue.
        dense: 95th percentile of it.
        thumbnail: ``[H, W, 3]`` that the mask was made of.
        damaged: reasons of tiles that could not be read and count as glass.
    """

    mask: Mask = field(repr=False)
    mpp: float
    share: float
    area_mm2: float
    glass: Floats
    threshold: float
    density: float
    dense: float
    thumbnail: Colours = field(repr=False)
    damaged: tuple[str, ...] = ()


def find_tissue(slide: Slide, *, mpp: float = MASK_MPP, least_area_um2: float = LEAST_AREA_UM2) -> Tissue:
    """Find the tissue of a slide.

    The threshold is Otsu's (1979, IEEE Trans SMC 9(1)) on the mean optical density over the slide's own glass, kept
    above the noise of the glass and below the density of pale stroma. Density, unlike saturation, also shows tissue
    that has taken little or no stain, as in immunohistochemistry.

    Args:
        slide: open.
        mpp: micrometres per pixel of the mask.
        least_area_um2: of a part of tissue; smaller ones are left out, and smaller holes filled.

    Raises:
        IngestError: there is no tissue; the message says what was seen.
    """
    small = thumbnail(slide, mpp=mpp)
    glass = glass_of(small.pixels)
    mask, threshold, density = _mask(small.pixels, glass, small.mpp, least_area_um2)
    if not mask.any():
        height, width = (size * small.mpp / 1000 for size in mask.shape)
        msg = (
            f"no tissue on {width:.2g} x {height:.2g} mm: nothing of at least {least_area_um2:g} um2 has a mean "
            f"optical density above {threshold:.3f} (the densest hundredth has {np.percentile(density, 99):.3f}); the "
            "slide is empty, out of focus or unstained"
        )
        if small.damaged:
            msg += f", and {len(small.damaged)} damaged tiles count as glass"
        raise IngestError(msg, study=slide.name)
    return Tissue(
        mask=mask,
        mpp=small.mpp,
        share=float(mask.mean()),
        area_mm2=float(mask.sum()) * (small.mpp / 1000) ** 2,
        glass=glass,
        threshold=threshold,
        density=float(np.median(density[mask])),
        dense=float(np.percentile(density[mask], 95)),
        thumbnail=small.pixels,
        damaged=small.damaged,
    )


def glass_of(colours: Colours) -> Floats:
    """Return the RGB of bare glass ``[3]`` in ``[H, W, 3]``: the median of what is bright and colourless.

    Where there is hardly any, a usual value stands in.
    """
    darkest, brightest = colours.min(-1), colours.max(-1)
    bare = (darkest >= _GLASS) & (brightest - darkest <= _COLOURLESS)
    if bare.mean() < _LEAST_GLASS:
        return np.full(3, _USUAL_GLASS, np.float32)
    # Pale tissue is bright as well; the brighter half of what is left is glass.
    level = darkest[bare]
    return np.asarray(np.median(colours[bare][level >= np.median(level)], axis=0), np.float32)


def _mask(colours: Colours, glass: Floats, mpp: float, least_area_um2: float) -> tuple[Mask, float, Floats]:
    """Return the mask, the threshold and the smoothed mean optical density."""
    from scipy.ndimage import binary_dilation, gaussian_filter

    # Its border is mixed with glass.
    unscanned = binary_dilation(colours.max(-1) <= _BLACK, iterations=2)
    density = np.maximum(optical_density(colours, glass).mean(-1), 0)
    density[unscanned] = 0
    density = np.asarray(gaussian_filter(density, SMOOTHING_UM / mpp, mode="nearest"), np.float32)
    lowest = density[density <= np.median(density)]
    # Where at least half the slide is glass, its lower half tells the noise.
    noise = 1.4826 * float(np.median(np.abs(lowest - np.median(lowest)))) if lowest.size else 0.0
    least = min(max(_FAINTEST, _NOISE * noise), _CERTAIN)
    # What is dense is tissue or ink in any case, and would draw Otsu's threshold to itself, over pale tissue.
    threshold = float(np.clip(otsu(density[density < _DENSE]), least, _CERTAIN))
    mask = (density > threshold) & ~unscanned
    pixels = least_area_um2 / mpp**2
    mask = ~_without_small(~_without_small(mask, pixels), pixels)
    return mask, threshold, density


def otsu(values: Floats, bins: int = 256) -> float:
    """Return Otsu's threshold of non-negative values of any shape: between two groups of the least variance within."""
    if values.size == 0 or values.max() <= values.min():
        return float(values.max(initial=0.0))
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = values.size - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    best = np.nan_to_num(between)
    # Between two groups with nothing in the middle every threshold is as good; the middle one is taken.
    same = np.flatnonzero(best >= best.max() * (1 - 1e-9))
    return float(edges[1:-1][same[len(same) // 2]])


def _without_small(mask: Mask, least: float) -> Mask:
    from scipy.ndimage import label

    parts, _ = label(mask)
    sizes = np.bincount(parts.ravel())
    keep = sizes >= least
    keep[0] = False
    # What reaches the edge goes on outside of the slide or patch.
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    keep[edge[edge > 0]] |= sizes[edge[edge > 0]] >= least / 4
    return np.asarray(keep[parts], bool)
