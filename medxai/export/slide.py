"""A whole slide as source: its level as highdicom wants it, objects tiled like it, and a smaller copy for pictures."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.export.provenance import source_header
from medxai.ingest.slide import SLIDE, shows_slide
from medxai.study import FloatArray, Result, Volume

if TYPE_CHECKING:
    from pydicom import Dataset

#: Longest side of a slide in pictures: screens show no more, and the level itself is beside them.
LONGEST_PICTURE = 2048


def is_slide(volume: Volume) -> bool:
    """True for a level of a whole slide, which is placed on the glass and not in a patient."""
    return len(volume.source) == 1 and str(volume.source[0].get("SOPClassUID", "")) == SLIDE


def slide_source(result: Result) -> Dataset:
    """Return the header of the level with the functional groups that highdicom takes position and spacing from.

    Args:
        result: of a slide.
    """
    from pydicom.dataset import Dataset
    from pydicom.valuerep import format_number_as_ds

    volume = result.study.volume
    header = source_header(volume.source[0])
    # Optional for a single tile, and highdicom tells tiled images by it.
    header.NumberOfFrames = int(header.get("NumberOfFrames", 1) or 1)
    shared = copy.deepcopy(header.get("SharedFunctionalGroupsSequence", None) or [Dataset()])[0]
    measures = shared.get("PixelMeasuresSequence", None) or [Dataset()]
    if "PixelSpacing" not in measures[0]:
        measures[0].PixelSpacing = [format_number_as_ds(v) for v in volume.spacing[1:]]
    if not measures[0].get("SliceThickness", None):
        # Of the imaged section, in micrometres (PS3.3 C.8.12.4); required in the functional group of a derived object.
        depth = float(header.get("ImagedVolumeDepth", 0) or 0) / 1000
        measures[0].SliceThickness = format_number_as_ds(depth or min(volume.spacing[1:]))
    shared.PixelMeasuresSequence = measures
    header.SharedFunctionalGroupsSequence = [shared]
    header.pop("PerFrameFunctionalGroupsSequence", None)  # of tiles of colour, which nothing here is made of
    return header


def tiling(header: Dataset, *, full: bool) -> dict[str, Any]:
    """Return the arguments of highdicom that cut a total pixel matrix into tiles of the size of the source's.

    Args:
        header: see `slide_source`.
        full: every tile is stored, row by row and without positions (TILED_FULL, PS3.3 C.7.6.17.3); otherwise tiles
            without evidence are left out and the others tell their position (TILED_SPARSE).
    """
    return {
        "tile_pixel_array": True,
        "tile_size": (int(header.Rows), int(header.Columns)),
        "dimension_organization_type": "TILED_FULL" if full else "TILED_SPARSE",
    }


def reduced(result: Result, longest: int = LONGEST_PICTURE) -> Result:
    """Return a slide in whole blocks of pixels, at most `longest` on a side; others as they are.

    Colours are averaged, and of a map the largest value of a block counts, so that no evidence is lost from sight.

    Args:
        result: any.
        longest: pixels of the longest side.
    """
    volume = result.study.volume
    step = math.ceil(max(volume.shape[-2:]) / longest)
    if step < 2 or not shows_slide(result.study):
        return result
    affine = volume.affine.copy()
    affine[:3, 3] += (affine[:3, 1] + affine[:3, 2]) * (step - 1) / 2
    affine[:3, 1:3] *= step
    small = replace(volume, pixels=np.stack([_blocks(c, step, np.mean) for c in volume.pixels]), affine=affine)
    explanations = tuple(replace(e, map=_blocks(e.map, step, np.max), affine=affine) for e in result.explanations)
    return replace(result, study=replace(result.study, volume=small), explanations=explanations)


def _blocks(values: FloatArray, step: int, how: Any) -> FloatArray:
    """Reduce ``[H, W]`` in squares of `step`; the last ones repeat the edge."""
    pad = [(0, -size % step) for size in values.shape]
    full = np.pad(values, pad, mode="edge")
    rows, columns = (size // step for size in full.shape)
    return np.asarray(how(full.reshape(rows, step, columns, step), axis=(1, 3)), np.float32)
