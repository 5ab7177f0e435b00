"""Measures of attributions that claim to add up: the sum over what is removed should be the change of the score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medxai.trust.curves import unanswered, without_order
from medxai.trust.probe import Probe
from medxai.trust.scores import Scores, scored
from medxai.trust.units import Units

_FLAT = "sums or changes of the score do not vary"


def _changes(probe: Probe, attribution: Tensor, units: Units, subsets: Tensor) -> tuple[Tensor, Tensor]:
    """Attributed sums and changes of the score, each ``[B, n]`` float64, of ``subsets [n, units]`` (bool)."""
    sums = units.sums(attribution.nan_to_num(0, 0, 0)) @ subsets.double().T
    changed = probe.clean[:, None] - probe.each(len(subsets), lambda _rows, which: units.masks(~subsets[which]))
    return sums, changed


def _subsets(units: Units, size: int, count: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    order = torch.rand(count, units.count, generator=source).argsort(1)
    return torch.zeros(count, units.count, dtype=torch.bool).scatter_(1, order[:, :size], True)


def _pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation ``[B]`` along the last axis, NaN where one side is constant."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    scale = a.abs().amax(-1) * b.abs().amax(-1)
    return torch.where(norm > 1e-20 * (1 + scale), (a * b).sum(-1) / norm.clamp_min(1e-300), torch.nan)


def _reasons(attribution: Tensor, values: Tensor, changes: Tensor) -> tuple[str, ...]:
    none = torch.isnan(values).tolist()
    known = unanswered(without_order(attribution), changes)
    return tuple(r or (_FLAT if flat else "") for r, flat in zip(known, none, strict=True))


def faithfulness_correlation(
    probe: Probe, attribution: Tensor, units: Units, *, runs: int = 100, share: float = 0.1, seed: int = 0
) -> Scores:
    """Pearson correlation of attributed sums and score changes over random subsets (Bhatt et al. 2020).

    Args:
        probe: asked for logits.
        attribution: ``[B, *S]``, signed, on the image's own grid.
        units: partition of the image.
        runs: subsets.
        share: of the units in each.
        seed: of the draws.
    """
    subsets = _subsets(units, max(1, round(share * units.count)), runs, seed)
    sums, changes = _changes(probe, attribution, units, subsets)
    found = _pearson(sums, changes)
    return scored("faithfulness_correlation", found.numpy(), _reasons(attribution, found, changes))


def sensitivity_n(
    probe: Probe,
    attribution: Tensor,
    units: Units,
    *,
    sizes: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8),
    runs: int = 32,
    seed: int = 0,
) -> Scores:
    """The same correlation for several sizes of the subsets, averaged (Ancona et al. 2018).

    Args:
        probe: asked for logits.
        attribution: ``[B, *S]``, signed.
        units: partition of the image.
        sizes: shares of the units.
        runs: subsets of each size.
        seed: of the draws.
    """
    values, seen = [], []
    for number, size in enumerate(sizes):
        subsets = _subsets(units, min(max(1, round(size * units.count)), units.count), runs, seed + number)
        sums, changes = _changes(probe, attribution, units, subsets)
        values.append(_pearson(sums, changes))
        seen.append(changes)
    found = torch.stack(values).mean(0)
    return scored("sensitivity_n", found.numpy(), _reasons(attribution, found, torch.cat(seen, 1)))


def infidelity(
    probe: Probe, attribution: Tensor, units: Units, *, runs: int = 64, relative: bool = False, seed: int = 0
) -> Scores:
    """Mean squared error of attributed sums against score changes, one unit removed at a time (Yeh et al. 2019).

    Attributions are scaled by the factor that fits best first, or their unit would decide. Units are removed
    independently of each other.

    Args:
        probe: asked for logits.
        attribution: ``[B, *S]``, signed.
        units: partition of the image; at most `runs` of them are drawn.
        runs: forwards for each sample.
        relative: divide by the mean squared change, 0 for a perfect attribution and 1 for an empty one.
        seed: of the draw.
    """
    source = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(units.count, generator=source)[:runs]
    subsets = torch.zeros(len(chosen), units.count, dtype=torch.bool)
    subsets[torch.arange(len(chosen)), chosen] = True
    sums, changes = _changes(probe, attribution, units, subsets)
    factor = (sums * changes).sum(1) / sums.square().sum(1).clamp_min(1e-300)
    found = (factor[:, None] * sums - changes).square().mean(1)
    power = changes.square().mean(1)
    if relative:
        found = torch.where(power > 0, found / power.clamp_min(1e-300), torch.nan)
    return scored("infidelity", found.numpy(), _reasons(attribution, found, changes), "lower")
