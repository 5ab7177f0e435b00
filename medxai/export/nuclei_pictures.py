"""Pictures of the nuclei of a slide: their density over the whole, and single fields with what speaks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medxai.export.colours import UInt8, blend
from medxai.export.lettering import AMBER, FAINT, GROUND, bar, write_text
from medxai.export.naming import NOTICE
from medxai.export.nuclei_contours import CERTAIN, DOUBTFUL
from medxai.export.slide_overview import backdrop
from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.tissue import Tissue
from medxai.predict.nuclei_blocks import THRESHOLD
from medxai.predict.slide_nuclei import SeenField, SlideNuclei

if TYPE_CHECKING:
    from PIL.Image import Image

#: Standard deviation of the smoothing of the density.
SMOOTHING_UM = 50.0
#: Where network and evidence disagree: mask without evidence, and evidence without mask.
ONLY_MASK, ONLY_EVIDENCE = (0, 114, 178), (204, 0, 102)
_OPACITY = 0.75
#: Pixels on a side of the part of a field that is shown: so many that single nuclei are to be seen.
SHOWN_SIDE = 224
_SIDE, _FOOT, _LETTERS = 150, 40, 16
_LEAST_WIDTH, _LEAST_HEIGHT = 700, 260


def density_map(nuclei: SlideNuclei, slide: Slide, tissue: Tissue) -> tuple[npt.NDArray[np.float32], float]:
    """Return nuclei in a mm2 ``[H, W]`` on the pixels of the tissue mask, NaN where none were looked for, and its top.

    Both the counts and the tissue that was looked at are smoothed (`SMOOTHING_UM`), so that edges are not thinned out.
    The top is the largest value.
    """
    from scipy.ndimage import gaussian_filter

    per_mask = np.asarray(slide.levels[0].mpp) / tissue.mpp
    looked = np.zeros(tissue.mask.shape, bool)
    for box in nuclei.boxes * np.tile(per_mask, 2):
        (top, left), (bottom, right) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        looked[top:bottom, left:right] = True
    looked &= tissue.mask
    counts = np.zeros(tissue.mask.shape)
    at = np.minimum((nuclei.centres * per_mask).astype(int), np.asarray(counts.shape) - 1)
    np.add.at(counts, tuple(at.T), 1.0)
    sigma = SMOOTHING_UM / tissue.mpp
    number, area = (gaussian_filter(part.astype(np.float64), sigma) for part in (counts, looked))
    density = number / np.maximum(area, 1e-9) / (tissue.mpp / 1000) ** 2
    shown = np.where(looked, density, np.nan).astype(np.float32)
    return shown, float(density[looked].max(initial=0.0))


def overview(nuclei: SlideNuclei, slide: Slide, tissue: Tissue) -> Image:
    """Return the slide with the density of nuclei over it and its colour bar, RGB."""
    from PIL import Image as Pictures
    from PIL import ImageDraw as Drawing

    finest = slide.levels[0]
    picture, _ = backdrop(slide)
    width, height = picture.size
    density, top = density_map(nuclei, slide, tissue)
    share = np.nan_to_num(density, nan=0.0) / np.float32(top or 1.0)
    # The mask ends with a part of a pixel.
    rows, columns = (side * mpp / tissue.mpp for side, mpp in zip(finest.shape, finest.mpp, strict=True))
    box = (0.0, 0.0, min(columns, share.shape[1]), min(rows, share.shape[0]))
    large = Pictures.fromarray(share).resize((width, height), Pictures.Resampling.BILINEAR, box=box)
    blended = blend(np.asarray(picture), np.asarray(large, np.float32), _OPACITY)
    canvas = Pictures.new("RGB", (max(width + _SIDE, _LEAST_WIDTH), max(height, _LEAST_HEIGHT) + _FOOT), GROUND)
    canvas.paste(Pictures.fromarray(blended), (0, 0))
    draw = Drawing.Draw(canvas)
    long = min(height, 360) - 60
    canvas.paste(Pictures.fromarray(bar(long, 18, _OPACITY)), (width + 16, 34))
    write_text(draw, (width + 14, 8), "nuclei / mm2", _LETTERS)
    write_text(draw, (width + 42, 30), f"{top:.0f}", _LETTERS)
    write_text(draw, (width + 42, 22 + long), "0", _LETTERS)
    words = f"{len(nuclei)} nuclei, {nuclei.density:.0f} in a mm2 of tissue; uncoloured: none looked for"
    foot = max(height, _LEAST_HEIGHT) + 11
    end = write_text(draw, (14, foot), words, _LETTERS, FAINT)
    write_text(draw, (38 + end, foot), NOTICE, _LETTERS, AMBER, room=canvas.width - int(end) - 50)
    return canvas


def closer(field: SeenField, side: int = SHOWN_SIDE) -> SeenField:
    """Return the part of a field, at most `side` pixels on a side, in which the most pixels are nuclei."""
    from scipy.ndimage import uniform_filter

    rows, columns = (min(side, size) for size in field.labels.shape)
    share = uniform_filter((field.labels > 0).astype(np.float32), (rows, columns), mode="constant")
    high, wide = (size - part + 1 for size, part in zip(share.shape, (rows, columns), strict=True))
    inside = share[rows // 2 : rows // 2 + high, columns // 2 : columns // 2 + wide]
    top, left = (int(v) for v in np.unravel_index(int(inside.argmax()), inside.shape))
    part = (slice(top, top + rows), slice(left, left + columns))
    return replace(field, colours=field.colours[part], labels=field.labels[part], evidence=field.evidence[part])


def contoured(field: SeenField, zoom: int = 2) -> UInt8:
    """Return a field with the contours of its nuclei, those of doubtful ones in another colour.

    Args:
        field: see `SeenField`.
        zoom: pixels of the picture on the side of one of the field.
    """
    large = np.repeat(np.repeat(field.colours, zoom, 0), zoom, 1)
    labels = np.repeat(np.repeat(field.labels, zoom, 0), zoom, 1)
    return outlined(large, labels, [DOUBTFUL if words else CERTAIN for words in field.flags])


def outlined(pixels: UInt8, labels: npt.NDArray[np.int32], colours: Sequence[tuple[int, int, int]]) -> UInt8:
    """Return ``pixels [H, W, 3]`` with the inner borders of instances ``labels [H, W]``, each in its colour."""
    table = np.array([(0, 0, 0), *colours], np.uint8)
    border, drawn = _border(labels), pixels.copy()
    drawn[border] = table[labels[border]]
    return drawn


def evidence(field: SeenField) -> UInt8:
    """Return a field with the evidence of its block over it."""
    return blend(field.colours, field.evidence, _OPACITY)


def disagreement(pixels: UInt8, labels: npt.NDArray[np.int32], evidence: npt.NDArray[np.float32]) -> UInt8:
    """Return a field, paler, with the places where mask and evidence disagree.

    Args:
        pixels: ``[H, W, 3]`` RGB.
        labels: ``[H, W]`` instances, 0 between them.
        evidence: ``[H, W]`` 0..1.
    """
    mask, spoken = labels > 0, evidence > THRESHOLD
    picture = (255 - (255 - pixels.astype(np.float32)) * 0.5).astype(np.float32)
    for where, colour in ((mask & ~spoken, ONLY_MASK), (spoken & ~mask, ONLY_EVIDENCE)):
        picture[where] = 0.35 * picture[where] + 0.65 * np.array(colour, np.float32)
    return np.asarray(np.rint(picture), np.uint8)


def _border(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Pixels of an instance beside another one or none."""
    padded = np.pad(labels, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.asarray((labels > 0) & np.any([labels != part for part in around], axis=0))
