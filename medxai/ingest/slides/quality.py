"""Quality of tiles: out of focus, ink, folds; each a figure of the tile and a flag within the slide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.ingest.slides.level import Colours
from medxai.ingest.slides.optical_density import Floats, optical_density
from medxai.ingest.slides.tissue import Tissue

#: A tile is blurred when its sharpness is below this share of the slide's median; within 26 sharp patches of two
#: hospitals it goes down to 0.79 of the median, blurred by 1.5 pixels up to 0.38.
BLURRED = 0.5
#: Share of a tile that has to be ink, or fold, for it to be flagged.
INK, FOLD = 0.02, 0.1
#: Share of a tile that has to be tissue for its sharpness to be told, and its mean optical density at least.
_LEAST_TISSUE, _FAINTEST = 0.1, 0.05
#: Ink is denser than this in its densest channel.
_INK_DENSITY = 0.3
#: Blue and green ink takes red light more than green by this share of the whole; tissue stained with haematoxylin and
#: eosin has 0.03 at most in 26 patches.
_INK_RED = 0.08
#: Black ink takes all light, and that alike: mean density and largest difference of channels as a share of the whole.
_BLACK_DENSITY, _BLACK_SPREAD = 0.9, 0.12
#: Folded tissue is twice as dense; between once and twice lie this many times the slide's median and its densest parts.
_FOLD_DENSITY, _FOLD_DENSEST = 1.6, 1.15
#: And coloured: difference of the brightest and the darkest channel as a share of the brightest.
_FOLD_SATURATION = 0.25
#: Micrometres over which a fold is smoothed, which is wider than a nucleus, and ink, which is wider than a pixel.
_FOLD_UM, _INK_UM = 15.0, 3.0
#: Both are looked for in squares of about this many micrometres.
_COARSE_UM = 2.0
#: Squares beside ink that its soft edge reaches.
_INK_EDGE = 3


@dataclass(frozen=True)
class TileMeasures:
    """Figures of one tile.

    Attributes:
        sharpness: power of fine detail as a share of all contrast of the tissue; NaN where there is hardly any tissue.
        ink: share of the tile that has the colour of blue, green or black ink.
        fold: share of the tile that is much denser than the slide's tissue over the width of a fold, and coloured.
    """

    sharpness: float
    ink: float
    fold: float


@dataclass(frozen=True, eq=False)
class Quality:
    """Figures and flags of the tiles of a slide.

    Attributes:
        sharpness: ``[n]``, as a share of the median of the tiles; NaN where it cannot be told.
        ink: ``[n]``, share of the tile.
        fold: ``[n]``, share of the tile.
        blurred: ``[n]`` flag.
        inked: ``[n]`` flag.
        folded: ``[n]`` flag.
    """

    sharpness: Floats
    ink: Floats
    fold: Floats
    blurred: npt.NDArray[np.bool_]
    inked: npt.NDArray[np.bool_]
    folded: npt.NDArray[np.bool_]

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """``[n]``: no flag."""
        return ~(self.blurred | self.inked | self.folded)


def measure_tile(colours: Colours, mpp: float, tissue: Tissue) -> TileMeasures:
    """Measure one tile.

    Sharpness is the variance of the Laplacian of a Gaussian (of one pixel, so that noise counts little) over the
    variance of the optical density, both within tissue and outside of ink: stains and contrast cancel out (after the
    focus measures in Pertuz et al. 2013, Pattern Recognition 46). Folds are saturated and dark (Bautista and Yagi
    2010, J Pathol Inform 1). Red ink has the colours of eosin and of blood, and is not told from them.

    Args:
        colours: ``[H, W, 3]`` RGB 0..255.
        mpp: micrometres per pixel.
        tissue: of the slide, which tells its glass and the usual density of its tissue.
    """
    from scipy.ndimage import binary_dilation, gaussian_filter, gaussian_laplace

    density = np.maximum(optical_density(colours, tissue.glass), 0)
    mean = density.mean(-1)
    step = min(max(1, int(_COARSE_UM / mpp)), *colours.shape[:2])
    coarse, light = _blocks(density, step), _blocks(colours.astype(np.float32), step)
    ink = _ink(coarse, mpp * step)
    width = _FOLD_UM / (mpp * step)
    wide = np.asarray(gaussian_filter(coarse.mean(-1), width, mode="nearest"))
    smooth = np.asarray(gaussian_filter(light, (width, width, 0), mode="nearest"))
    saturation = 1 - smooth.min(-1) / np.maximum(smooth.max(-1), 1)
    least = max(_FOLD_DENSITY * tissue.density, _FOLD_DENSEST * tissue.dense)
    fold = (wide > least) & (saturation > _FOLD_SATURATION) & ~ink
    # Strokes of ink are contrast without detail.
    around = binary_dilation(ink, iterations=_INK_EDGE)
    inked = np.pad(around.repeat(step, 0).repeat(step, 1), [(0, n % step) for n in mean.shape], mode="edge")
    stained = (gaussian_filter(mean, 2.0) > _FAINTEST) & ~inked
    sharpness = float("nan")
    if stained.mean() >= _LEAST_TISSUE:
        contrast = float(mean[stained].var())
        if contrast > 0:
            sharpness = float(gaussian_laplace(mean, 1.0)[stained].var()) / contrast
    return TileMeasures(sharpness, float(ink.mean()), float(fold.mean()))


def _blocks(values: Floats, step: int) -> Floats:
    """Means of squares of `step` pixels; what is left over at the lower and right edge is left out."""
    rows, columns = values.shape[0] // step, values.shape[1] // step
    whole = values[: rows * step, : columns * step]
    return np.asarray(whole.reshape(rows, step, columns, step, -1).mean((1, 3)), np.float32)


def _ink(density: Floats, mpp: float) -> npt.NDArray[np.bool_]:
    """Where a tile is ink."""
    from scipy.ndimage import gaussian_filter

    density = np.asarray(gaussian_filter(density, (_INK_UM / mpp, _INK_UM / mpp, 0), mode="nearest"), np.float32)
    whole = np.maximum(density.sum(-1), 1e-6)
    dense = density.max(-1) > _INK_DENSITY
    coloured = dense & ((density[..., 0] - density[..., 1]) / whole > _INK_RED)
    alike = (density.max(-1) - density.min(-1)) / whole < _BLACK_SPREAD
    black = (density.mean(-1) > _BLACK_DENSITY) & alike
    return np.asarray(coloured | black)


def judge(measures: Iterable[TileMeasures]) -> Quality:
    """Return figures and flags of the tiles of one slide; sharpness is compared with their median.

    A slide that is out of focus everywhere has no sharp tile to be compared with and is not found out.
    """
    listed = list(measures)
    sharpness, ink, fold = (
        np.asarray([getattr(tile, name) for tile in listed], np.float32) for name in ("sharpness", "ink", "fold")
    )
    told = sharpness[np.isfinite(sharpness)]
    median = float(np.median(told)) if told.size else 1.0
    sharpness = sharpness / np.float32(median if median > 0 else 1.0)
    return Quality(
        sharpness=sharpness,
        ink=ink,
        fold=fold,
        blurred=np.nan_to_num(sharpness, nan=1.0) < BLURRED,
        inked=ink > INK,
        folded=fold > FOLD,
    )
