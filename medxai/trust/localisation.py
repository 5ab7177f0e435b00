"""Where a map lies against known truth: shares of its energy and of its top voxels, ranks, overlap at thresholds.

Maps are ``[B, *S]``, masks ``[B, *S]`` bool on the same grid; the negative part of a map is not evidence and is cut
off first. A map without evidence and an empty mask have no value; neither is ever a hit or a zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import rankdata

from medxai.trust.scores import Scores, Values, scored

Maps = npt.NDArray[np.floating]
Masks = npt.NDArray[np.bool_]

#: Thresholds on the map over its maximum.
TAUS = tuple(float(t) for t in np.round(np.arange(0.0, 1.0, 0.05), 2))


def why_not(maps: Maps, masks: Masks) -> tuple[str, ...]:
    """Why a sample cannot be measured, empty where it can.

    Raises:
        ValueError: the shapes differ; bring the mask onto the map's grid first (`medxai.trust.truth`).
    """
    if maps.shape != masks.shape:
        msg = f"maps {list(maps.shape)} and masks {list(masks.shape)} lie on different grids"
        raise ValueError(msg)
    found = []
    for values, inside in zip(maps, masks, strict=True):
        if not np.isfinite(values).all():
            found.append("the map holds NaN or infinite values")
        elif not (values > 0).any():
            found.append("the map has no positive evidence")
        else:
            found.append("" if inside.any() else "the mask is empty")
    return tuple(found)


def _each(name: str, maps: Maps, masks: Masks, measure: object, better: str = "higher") -> Scores:
    reasons = why_not(maps, masks)
    values = [
        measure(np.maximum(m, 0).astype(np.float64), np.asarray(t, bool)) if not r else np.nan  # type: ignore[operator]
        for m, t, r in zip(maps, masks, reasons, strict=True)
    ]
    return scored(name, values, reasons, better)


def pointing_game(maps: Maps, masks: Masks, spacing: Sequence[float] | None = None, tolerance: float = 0.0) -> Scores:
    """Share of the map's maxima that lie in the mask, or within a distance of it (Zhang et al. 2018).

    Args:
        maps: see the module.
        masks: likewise.
        spacing: of the voxels in mm; None for 1.
        tolerance: in mm.
    """

    def hit(values: Values, inside: Masks) -> float:
        region = inside
        if tolerance > 0:
            region = ndimage.distance_transform_edt(~inside, sampling=spacing) <= tolerance
        return float(region[values == values.max()].mean())

    return _each("pointing_game", maps, masks, hit)


def mass_accuracy(maps: Maps, masks: Masks) -> Scores:
    """Share of the map's energy inside the mask (energy-based pointing game, Wang et al. 2020)."""
    return _each("mass_accuracy", maps, masks, lambda v, m: float(v[m].sum() / v.sum()))


def mass_lift(maps: Maps, masks: Masks) -> Scores:
    """Mass accuracy over the mask's share of the image: 1 for a map that knows nothing."""
    return _each("mass_lift", maps, masks, lambda v, m: float(v[m].sum() / v.sum() / m.mean()))


def rank_accuracy(maps: Maps, masks: Masks) -> Scores:
    """Share of the ``|mask|`` strongest voxels that lie in the mask (Arras et al. 2022); ties count in proportion."""

    def share(values: Values, inside: Masks) -> float:
        count = int(inside.sum())
        limit = np.partition(values.ravel(), -count)[-count]
        above, at = values > limit, values == limit
        sure = int(above.sum())
        return float((inside[above].sum() + (count - sure) * inside[at].mean()) / count)

    return _each("rank_accuracy", maps, masks, share)


def auroc(maps: Maps, masks: Masks) -> Scores:
    """Area under the ROC curve of voxels, ties counting half; undefined for a mask that covers everything."""

    def area(values: Values, inside: Masks) -> float:
        positive = int(inside.sum())
        if positive == inside.size:
            return float("nan")
        ranks = rankdata(values.ravel())[inside.ravel()]
        return float((ranks.sum() - positive * (positive + 1) / 2) / (positive * (inside.size - positive)))

    return _each("auroc", maps, masks, area)


def auprc(maps: Maps, masks: Masks) -> Scores:
    """Average precision of voxels; the mask's share of the image for a map that knows nothing."""

    def area(values: Values, inside: Masks) -> float:
        order = np.argsort(-values.ravel(), kind="stable")
        sorted_values, hits = values.ravel()[order], inside.ravel()[order]
        last = np.flatnonzero(np.append(np.diff(sorted_values) != 0, True))
        true = np.cumsum(hits)[last]
        precision, recall = true / (last + 1), true / true[-1]
        return float((np.diff(recall, prepend=0) * precision).sum())

    return _each("auprc", maps, masks, area)


def dice_at(maps: Maps, masks: Masks, taus: Sequence[float] = TAUS) -> npt.NDArray[np.float64]:
    """Dice ``[B, len(taus)]`` of ``map >= tau * max`` and the mask; NaN where `why_not` says so.

    A threshold of 0 takes the positive voxels.
    """
    reasons = why_not(maps, masks)
    found = np.full((len(maps), len(taus)), np.nan)
    for i, (values, inside) in enumerate(zip(maps, masks, strict=True)):
        if reasons[i]:
            continue
        scaled = np.maximum(values, 0) / values.max()
        for j, tau in enumerate(taus):
            region = scaled >= tau if tau > 0 else scaled > 0
            found[i, j] = 2 * (region & inside).sum() / (region.sum() + inside.sum())
    return found


def dice(maps: Maps, masks: Masks, tau: float = 0.5) -> Scores:
    """Dice of ``map >= tau * max`` and the mask."""
    return scored("dice", dice_at(maps, masks, [tau])[:, 0], why_not(maps, masks))


def iou(maps: Maps, masks: Masks, tau: float = 0.5) -> Scores:
    """Intersection over union of ``map >= tau * max`` and the mask."""
    overlap = dice_at(maps, masks, [tau])[:, 0]
    return scored("iou", overlap / (2 - overlap), why_not(maps, masks))


def dice_area(maps: Maps, masks: Masks) -> Scores:
    """Mean Dice over all thresholds of `TAUS`."""
    return scored("dice_area", dice_at(maps, masks).mean(1), why_not(maps, masks))


def best_tau(maps: Maps, masks: Maps | Masks, taus: Sequence[float] = TAUS) -> float:
    """The threshold with the largest mean Dice; to be chosen on validation cases and used on others.

    Raises:
        ValueError: no sample can be measured.
    """
    table = dice_at(maps, np.asarray(masks, bool), taus)
    if np.isnan(table).all():
        msg = "no sample has both evidence and a mask"
        raise ValueError(msg)
    return float(taus[int(np.nanmean(table, axis=0).argmax())])
