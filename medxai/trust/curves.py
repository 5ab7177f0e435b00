"""Curves of the score while units are removed or brought back in the order of a map.

Insertion and deletion after Petsiuk et al. 2018, ROAD after Rong et al. 2022, IROF after Rieger and Hansen 2020,
AOPC after Samek et al. 2017; in three dimensions on blocks or supervoxels, since the order of single voxels of an
enlarged map means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medxai.trust.probe import Probe
from medxai.trust.scores import Scores, scored
from medxai.trust.units import Units, blocks

#: Shares of the units that ROAD removes.
ROAD_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores along a path.

    Attributes:
        shares: ``[N + 1]`` share of the units that are changed, from 0 to 1.
        scores: ``[B, N + 1]``, NaN for samples without an order.
        masking: operator.
        reasons: per sample, why it has none.
    """

    shares: Tensor
    scores: Tensor
    masking: str
    reasons: tuple[str, ...]

    @property
    def area(self) -> Tensor:
        """Area ``[B]`` under the curve by the trapezoid rule, over shares from 0 to 1."""
        return torch.trapezoid(self.scores, self.shares, dim=1)

    def normalised(self) -> Curve:
        """The curve between its two ends: ``(s - s_N) / (s_0 - s_N)``; NaN where they are equal."""
        first, last = self.scores[:, :1], self.scores[:, -1:]
        gap = first - last
        scaled = torch.where(gap.abs() > 1e-12, (self.scores - last) / gap, torch.nan)
        reasons = tuple(
            reason or ("removing everything changes nothing" if flat else "")
            for reason, flat in zip(self.reasons, (gap.abs() <= 1e-12)[:, 0].tolist(), strict=True)
        )
        return Curve(self.shares, scaled, self.masking, reasons)


def without_order(maps: Tensor) -> tuple[str, ...]:
    """Why maps ``[B, *S]`` say nothing about order, empty where they do."""
    flat = maps.flatten(1)
    finite = torch.isfinite(flat).all(1)
    zero = (flat == 0).all(1)
    return tuple(
        "" if good and not none else "the map is zero everywhere" if good else "the map holds NaN or infinite values"
        for good, none in zip(finite.tolist(), zero.tolist(), strict=True)
    )


def unanswered(reasons: Sequence[str], values: Tensor) -> tuple[str, ...]:
    """Reasons ``[B]``, with one for samples whose ``values [B, n]`` hold NaN: the network gave no number."""
    broken = ~torch.isfinite(values).flatten(1).all(1)
    return tuple(
        reason or ("the network puts out NaN or infinite values for masked images" if bad else "")
        for reason, bad in zip(reasons, broken.tolist(), strict=True)
    )


def follow(probe: Probe, order: Tensor, units: Units, shares: Sequence[float], *, insert: bool = False) -> Tensor:
    """Scores ``[B, len(shares)]`` with the first units of an order removed, or everything but them.

    Shares of 0 and 1 that leave the image as it is cost nothing.

    Args:
        probe: what is asked.
        order: ``[B, units]``.
        units: of the order.
        shares: of the units, rounded to whole ones.
        insert: keep those units alone.
    """
    counts = torch.tensor([round(share * units.count) for share in shares])
    untouched = counts == (units.count if insert else 0)
    wanted = counts[~untouched]
    rank = order.argsort(1)

    def masks(rows: Tensor, which: Tensor) -> Tensor:
        chosen = rank[rows] < wanted[which][:, None]
        return units.masks(chosen if insert else ~chosen)

    found = probe.clean[:, None].repeat(1, len(counts))
    if len(wanted):
        found[:, ~untouched] = probe.each(len(wanted), masks)
    return found


def _curve(probe: Probe, maps: Tensor, units: Units, steps: int, insert: bool) -> Curve:
    shares = torch.arange(steps + 1, dtype=torch.float64) / steps
    reasons = without_order(maps)
    order = units.order(maps.nan_to_num(0, 0, 0))
    scores = follow(probe, order, units, shares.tolist(), insert=insert)
    reasons = unanswered(reasons, scores)
    scores[torch.tensor([bool(reason) for reason in reasons])] = torch.nan
    counts = torch.tensor([round(share * units.count) for share in shares.tolist()], dtype=torch.float64)
    return Curve(counts / units.count, scores, probe.name, reasons)


def deletion(probe: Probe, maps: Tensor, units: Units, steps: int = 16) -> Curve:
    """The most important units go first; a small area speaks for the map.

    Args:
        probe: what is asked.
        maps: ``[B, *S]``, more is more important.
        units: partition of the image.
        steps: forwards for each sample.
    """
    return _curve(probe, maps, units, steps, insert=False)


def insertion(probe: Probe, maps: Tensor, units: Units, steps: int = 16) -> Curve:
    """The most important units come first into the emptied image; a large area speaks for the map.

    Arguments as in `deletion`.
    """
    return _curve(probe, maps, units, steps, insert=True)


def area(curve: Curve, name: str, *, better: str) -> Scores:
    """Area under a curve."""
    return scored(name, curve.area.numpy(), curve.reasons, better)


def aopc(curve: Curve) -> Scores:
    """Mean drop of the score along a deletion curve (pixel flipping, region perturbation)."""
    drop = (curve.scores[:, :1] - curve.scores[:, 1:]).mean(1)
    return scored("aopc", drop.numpy(), curve.reasons)


def pixel_flipping(probe: Probe, maps: Tensor, steps: int = 16, size: int | Sequence[int] = 1) -> Scores:
    """Mean drop of the score while pixels are replaced in the order of the map (Bach et al. 2015).

    Args:
        probe: what is asked.
        maps: ``[B, *S]``.
        steps: forwards for each sample.
        size: voxels along each axis that flip together; single voxels of a volume cost as much and say no more.
    """
    curve = deletion(probe, maps, blocks(probe.spatial, size), steps)
    return scored("pixel_flipping", aopc(curve).values, curve.reasons)


def road(probe: Probe, maps: Tensor, units: Units, shares: Sequence[float] = ROAD_SHARES) -> Scores:
    """``(LeRF - MoRF) / 2``: score with the least important units removed against that with the most important.

    The mean over `shares`, by rank, so that a map with many zeros is not removed as a whole. The probe's operator
    should be ``noise_inpaint`` (noisy linear imputation), which is what keeps the mask itself from leaking.

    Args:
        probe: what is asked.
        maps: ``[B, *S]``.
        units: partition of the image.
        shares: between 0 and 1.
    """
    reasons = without_order(maps)
    order = units.order(maps.nan_to_num(0, 0, 0))
    most = follow(probe, order, units, shares)
    least = follow(probe, order.flip(1), units, shares)
    return scored("road", ((least - most) / 2).mean(1).numpy(), unanswered(reasons, least - most))


def irof(probe: Probe, maps: Tensor, units: Units) -> Scores:
    """Area over the curve of ``y_k / y`` while segments are replaced one by one, divided by their number.

    The probe's operator should be ``mean``. Between about 0 and 1.

    Args:
        probe: what is asked; its clean score must be positive.
        maps: ``[B, *S]``.
        units: superpixels or supervoxels.
    """
    curve = _curve(probe, maps, units, units.count, insert=False)
    flat = tuple(
        reason or ("the clean score is not positive" if score <= 0 else "")
        for reason, score in zip(curve.reasons, probe.clean.tolist(), strict=True)
    )
    relative = curve.scores[:, 1:] / probe.clean[:, None]
    return scored("irof", (1 - relative).mean(1).numpy(), flat)


def agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau-b of the ranks two baselines give the same methods; below 0.5 no winner may be named.

    NaN for fewer than two methods.
    """
    from scipy.stats import kendalltau

    if len(first) < 2:
        return float("nan")

    return float(kendalltau(first, second).statistic)
