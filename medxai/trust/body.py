"""Where anatomy is: the body, or the sector of an ultrasound image, without burnt-in graphics."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medxai.study import FloatArray, Volume

Region = npt.NDArray[np.bool_]

#: HU above which CT shows the patient rather than air.
_CT_BODY = -500.0
#: Share of the grey range above which an ultrasound pixel is more than the black around the sector.
_SECTOR = 0.02
#: Pixels of a plateau of one extreme value that no tissue makes.
_GRAPHIC = 24
#: Share of an image that must be left for a mask to mean anything.
_LEAST = 0.02


def anatomy(volume: Volume) -> Region | None:
    """Mask ``[*S]`` of what can carry evidence; None where it cannot be told.

    CT: the largest region above -500 HU with everything it encloses in a slice, lungs among them. MR and others:
    the largest region above Otsu's threshold, closed and filled. Ultrasound: what is not black, closed and filled,
    without graphics; frames of a cine share the union of their sectors.

    Args:
        volume: as ingested.
    """
    grey = volume.pixels.mean(0)
    if not np.isfinite(grey).all() or grey.max() <= grey.min():
        return None
    if volume.modality == "US":
        region = _ultrasound(volume.pixels, grey, moving=volume.axes == "THW")
    elif volume.modality == "CT":
        region = _filled(_largest(grey > _CT_BODY))
    elif volume.axes == "THW" or volume.modality in ("SM", "GM"):
        return None
    else:
        region = _filled(_largest(ndimage.binary_closing(grey > _otsu(grey), iterations=2)))
    return region if region.mean() >= _LEAST else None


def _ultrasound(pixels: FloatArray, grey: FloatArray, *, moving: bool) -> Region:
    top = float(grey.max())
    lit = grey > _SECTOR * top
    if moving:
        lit = np.broadcast_to(lit.any(0), grey.shape)
    structure = np.ones((5, 5))
    planes = lit[None] if lit.ndim == 2 else lit
    sector = np.stack([_filled(ndimage.binary_closing(np.pad(p, 4), structure))[4:-4, 4:-4] for p in planes])
    region: Region = sector.reshape(lit.shape) & ~graphics(pixels)
    return region


def graphics(pixels: FloatArray) -> Region:
    """Plateaus of the largest value, letters, callipers and markers, a pixel wider; ``pixels [C, *S]`` -> ``[*S]``."""
    full = pixels.min(0) >= pixels.max() * (1 - 1e-6)
    planes = full[None] if full.ndim == 2 else full
    found = []
    for plane in planes:
        labels, count = ndimage.label(plane, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        sizes[0] = 0
        found.append(ndimage.binary_dilation((sizes >= _GRAPHIC)[labels]))
    region: Region = np.stack(found).reshape(full.shape)
    return region


def _largest(region: Region) -> Region:
    labels, count = ndimage.label(region)
    if count < 2:
        return region
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept: Region = labels == sizes.argmax()
    return kept


def _filled(region: Region) -> Region:
    """Holes filled, slice by slice in a volume: the airways lead out of the body in three dimensions."""
    if region.ndim == 2:
        filled: Region = ndimage.binary_fill_holes(region)
        return filled
    return np.stack([ndimage.binary_fill_holes(plane) for plane in region])


def _otsu(grey: FloatArray) -> float:
    counts, edges = np.histogram(grey, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    total = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (total / below - (total[-1] - total) / above) ** 2
    return float(centres[int(np.nan_to_num(between).argmax())])
