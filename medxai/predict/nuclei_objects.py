"""Nuclei as objects: seeds, a watershed from them inside the foreground, and what is doubtful about each.

Watershed and peaks are those of scikit-image, which is the `pathology` extra.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medxai.errors import MedxaiError

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int32]

#: Least detection at a seed.
SEED = 0.3
#: Pixels below which an object is dropped, for nuclei with a radius of 6 pixels.
SMALL = 20
#: Times the median area of a field above which an object may be several nuclei, and below which a part of one.
LARGE, PART = 2.0, 0.4
#: Share of an object that the evidence must cover.
COVERED = 0.25


def skimage(part: str) -> ModuleType:
    """Return ``skimage.<part>``.

    Raises:
        MedxaiError: scikit-image is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"skimage.{part}")
    except ImportError as error:
        msg = "nuclei need scikit-image, which is not installed: pip install 'medxai[pathology]'"
        raise MedxaiError(msg) from error


def detection_seeds(detection: Floats, foreground: Bools, radius: float) -> npt.NDArray[np.int64]:
    """Local maxima ``[n, 2]`` (row, column) of ``detection [H, W]`` above `SEED` in the foreground."""
    smooth = ndimage.gaussian_filter(detection, radius / 6, mode="nearest")  # so that a middle is one peak
    found = skimage("feature").peak_local_max(
        np.where(foreground, smooth, 0),
        min_distance=max(1, round(radius / 2)),
        threshold_abs=SEED,
        exclude_border=False,
    )
    return np.asarray(found, np.int64).reshape(-1, 2)


def distance_map(foreground: Bools, radius: float) -> Floats:
    """How deep a pixel lies in the foreground ``[H, W]``, in radii up to 1, smoothed: for want of detection."""
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(np.pad(foreground, 1))[1:-1, 1:-1], radius / 6)
    return np.asarray(np.minimum(depth / radius, 1) * foreground)


def separate(
    foreground: Bools, seeds: npt.NDArray[np.int64], heights: Floats, radius: float
) -> tuple[Labels, npt.NDArray[np.float64]]:
    """Cut the foreground into objects by a watershed on ``-heights`` from the seeds.

    Objects of fewer than `SMALL` pixels (for a radius of 6, else in proportion) are dropped; a component without a
    seed is one object.

    Args:
        foreground: ``[H, W]``.
        seeds: ``[n, 2]`` rows and columns.
        heights: ``[H, W]`` detection or distance.
        radius: of nuclei in pixels.

    Returns:
        labels ``[H, W]`` from 1 on without gaps, and the seed ``[m, 2]`` of each, NaN without one.
    """
    markers = np.zeros(foreground.shape, np.int32)
    markers[tuple(seeds.T)] = np.arange(1, len(seeds) + 1)
    labels = np.asarray(skimage("segmentation").watershed(-heights, markers, mask=foreground), np.int32)
    loose, _ = ndimage.label(foreground & (labels == 0))
    labels = np.where(loose > 0, loose + len(seeds), labels).astype(np.int32)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    kept = np.flatnonzero(areas >= SMALL * (radius / 6) ** 2)
    renamed = np.zeros(len(areas), np.int32)
    renamed[kept] = np.arange(1, len(kept) + 1)
    known = np.full((len(kept), 2), np.nan)
    seeded = kept <= len(seeds)
    known[seeded] = seeds[kept[seeded] - 1]
    return renamed[labels], known


def doubts(labels: Labels, seeds: Floats, evidence: Bools) -> tuple[str, ...]:
    """Words on every object: ``unseeded``, ``uncertain``, ``merged?``, ``split?``, joined by a space, or nothing.

    Uncertain is where the evidence covers less than a quarter of what the mask says; merged an object of more than
    twice the median area, split one of less than two fifths that touches another.

    Args:
        labels: ``[H, W]``.
        seeds: ``[n, 2]``, NaN where there is none.
        evidence: ``[H, W]`` where the map is above its threshold.
    """
    areas = np.bincount(labels.ravel(), minlength=len(seeds) + 1)[1:]
    if not len(areas):
        return ()
    covered = np.bincount(labels.ravel(), evidence.ravel(), len(seeds) + 1)[1:] / np.maximum(areas, 1)
    middle = float(np.median(areas))
    words = []
    for number, (area, share) in enumerate(zip(areas, covered, strict=True)):
        said = ["unseeded"] if np.isnan(seeds[number, 0]) else []
        if share < COVERED:
            said.append("uncertain")
        if area > LARGE * middle:
            said.append("merged?")
        if area < PART * middle and _touches(labels, number + 1):
            said.append("split?")
        words.append(" ".join(said))
    return tuple(words)


def _touches(labels: Labels, which: int) -> bool:
    rows, columns = np.nonzero(labels == which)
    box = labels[max(0, rows.min() - 1) : rows.max() + 2, max(0, columns.min() - 1) : columns.max() + 2]
    around = ndimage.binary_dilation(box == which) & (box != which)
    return bool((box[around] > 0).any())
