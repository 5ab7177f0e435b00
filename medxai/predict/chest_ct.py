"""Chest CT that a model was not made for: too little of it, thick slices, no lungs, contrast medium in the blood.

What the pixels say counts first; the header is asked only for the contrast medium, where it may know more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from medxai.prepare.blocks import Region, block_means
from medxai.prepare.lungs import LEAST_ML, axial_order, lungs, plane_hulls
from medxai.study import Volume

if TYPE_CHECKING:
    from medxai.predict.bundle_spec import ChestSpec

#: Share of the mediastinum that is brighter than `ENHANCED` HU when blood holds contrast medium. Heart and great
#: vessels are more than half of it; vertebrae, calcified walls and stents stay below a quarter.
SHARE, ENHANCED = 0.4, 100.0
#: Grid of the mediastinum in mm: noise averages out, and a metal clip is one block.
_GRID_MM = 4.0
#: HU of what counts as mediastinum: soft tissue and brighter, without fat.
_SOFT = -50.0
#: Blocks of mediastinum without which nothing can be said; about 20 ml.
_LEAST_BLOCKS = 300


def misfits(spec: ChestSpec, volume: Volume) -> Iterator[str]:
    """Yield in words what a CT volume lacks for a model of the chest; nothing where it fits.

    Args:
        spec: of the bundle.
        volume: CT ``[1, D, H, W]`` in Hounsfield units.
    """
    slices, spacing = volume.shape[0], volume.spacing[0]
    extent = slices * spacing
    region = lungs(volume)
    enough = extent >= spec.least_mm * 0.999
    if region is None and enough:
        yield f"is for the chest, no lungs were found in the study (less than {LEAST_ML:.0f} ml of air in tissue)"
    if not enough:
        yield (
            f"needs {spec.least_mm:g} mm along the slices, the study has {slices} slices over {extent:.3g} mm"
            f"{' and shows no lungs' if region is None else ''}"
        )
    if spacing > spec.thickest_mm * 1.001:
        yield f"needs slices at most {spec.thickest_mm:g} mm apart, those of the study are {spacing:.3g} mm apart"
    if not spec.contrast and (seen := contrast_medium(volume, region)) is not None:
        yield f"was made for CT without contrast medium, {seen}"


def contrast_medium(volume: Volume, region: Region | None) -> str | None:
    """Say in words by what a chest CT shows contrast medium; None where it does not.

    Args:
        volume: CT ``[1, D, H, W]`` in Hounsfield units.
        region: its lungs; None where there are none, so that only the header can tell.
    """
    share = enhanced_share(volume, region)
    if share > SHARE:
        return f"{share:.0%} of the mediastinum is brighter than {ENHANCED:.0f} HU, as blood with contrast medium"
    # What the header states is a name or a code of an agent, not quoted: it is free text.
    if any(str(header.get("ContrastBolusAgent", "") or "").strip() for header in volume.source):
        return "the header names a contrast medium (ContrastBolusAgent)"
    return None


def enhanced_share(volume: Volume, region: Region | None) -> float:
    """Share of the mediastinum above `ENHANCED` HU; NaN where it cannot be told.

    The mediastinum is what the axial hull of both lungs holds beside them, where a slice has at least half of the
    largest cross-section of lung. Dense lung is no part of it.

    Args:
        volume: CT ``[1, D, H, W]`` in Hounsfield units.
        region: mask ``[D, H, W]`` of the lungs.
    """
    if region is None:
        return float("nan")
    order, spacing = axial_order(volume)
    hu = block_means(np.transpose(volume.pixels[0], order), spacing, _GRID_MM).values
    inside = block_means(np.transpose(region, order).astype(np.float32), spacing, _GRID_MM).values > 0.5
    area = inside.sum((1, 2))
    between, hulls = np.zeros_like(inside), plane_hulls(inside)
    for number in np.flatnonzero(area >= 0.5 * area.max()):
        near = ndimage.binary_dilation(inside[number], np.ones((3, 3)))
        between[number] = ndimage.binary_erosion(hulls[number] & ~near, np.ones((3, 3)))
    values = hu[between]
    values = values[values > _SOFT]
    return float((values > ENHANCED).mean()) if values.size >= _LEAST_BLOCKS else float("nan")
