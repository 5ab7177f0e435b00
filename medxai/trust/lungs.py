"""Evidence that lies outside the lungs: a model of the lungs that looks elsewhere may have learnt a shortcut."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy import ndimage

from medxai.explain.cells import cells_of, source_axes
from medxai.prepare.blocks import Region, block_means
from medxai.study import Explanation, TrustReport, Volume
from medxai.trust.gate.verdict import cap, withhold

#: Key of the figure in a report.
NAME = "outside_lungs"
#: Share of the evidence outside the lungs above which a map is at most limited, and above which it is withheld.
LIMITED_ABOVE, WITHHELD_ABOVE = 0.4, 0.7
#: Grid in mm on which it is measured.
_GRID_MM = 4.0
#: Largest margin in mm: beyond it the spine and the far wall of the chest would pass for lung.
_WIDEST_MM = 20.0


def margin_mm(explanation: Explanation, volume: Volume) -> tuple[float, float, float]:
    """How far from a lung evidence still counts as lying in it, along ``(D, H, W)``.

    Half a native cell of the map, since a coarse map cannot be sharper, and 20 mm at most.

    Args:
        explanation: with cell size.
        volume: it was made of.
    """
    size = cells_of(explanation).size
    if len(size) != 3:
        return (0.0, 0.0, 0.0)
    d, h, w = (min(size[axis] / 2, _WIDEST_MM) for axis in source_axes(explanation, volume))
    return d, h, w


def outside_lungs(explanation: Explanation, volume: Volume, region: Region) -> float:
    """Share of the evidence on the original grid that lies outside the lungs and their margin; NaN without evidence.

    Args:
        explanation: its map ``[D, H, W]`` is non-negative.
        volume: for the spacing.
        region: mask ``[D, H, W]`` of the lungs.
    """
    values = block_means(explanation.map, volume.spacing, _GRID_MM)
    total = float(values.values.sum(dtype=np.float64))
    if total <= 0:
        return math.nan
    inside = block_means(region.astype(np.float32), volume.spacing, _GRID_MM).values >= 0.5
    if not inside.any():
        return 1.0
    # Distances in units of the margin of each axis; a margin of less than half a block is none.
    steps = [s / max(m, s / 2) for s, m in zip(values.spacing, margin_mm(explanation, volume), strict=True)]
    near = ndimage.distance_transform_edt(~inside, sampling=steps) <= 1.0
    return float(values.values[~near].sum(dtype=np.float64)) / total


def alarm(report: TrustReport, explanation: Explanation, volume: Volume, region: Region | None) -> TrustReport:
    """Return the report with the share outside the lungs, limited or withheld by it. No part of the index.

    Args:
        report: of the explanation.
        explanation: as judged.
        volume: it was made of.
        region: mask of the lungs; None where none were found.
    """
    if region is None:
        report = replace(report, figures={**report.figures, NAME: math.nan})
        return cap(report, "no lungs were found, so nobody knows whether the evidence lies in them")
    share = outside_lungs(explanation, volume, region)
    report = replace(report, figures={**report.figures, NAME: share})
    reason = f"{share:.0%} of the evidence lies outside the lungs: a shortcut is possible"
    if share > WITHHELD_ABOVE:
        return withhold(report, reason)
    return cap(report, reason) if share > LIMITED_ABOVE else report
