"""Occlusion sensitivity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.errors import ExplainError
from medxai.explain.coarse_to_fine import LEAST, estimate
from medxai.explain.masking.masker import Masker, check_operator, check_score, read_score
from medxai.explain.masking.operator import is_volume
from medxai.explain.method import MethodInfo
from medxai.explain.windows import Size, Windows, check_size, in_voxels

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="occlusion",
    title="Occlusion sensitivity",
    family="perturbation",
    reference="Zeiler and Fergus 2014",
    passes="N F",
    graph="none",
    layer="none",
    repeats=True,
    caveat="sees what a window of its size can hide; evidence that is there twice stays unseen",
)


@dataclass(frozen=True)
class Options:
    """Options of occlusion.

    Attributes:
        window: size of the window, voxels or (with a decimal point) shares of the axis, one number or one for each
            axis; None for an eighth of a plane's axes and a sixth of a volume's, which is an eighth too with
            ``coarse_to_fine``: finer windows are cheaper to guess between.
        stride: step of the window, likewise; None for half of the window.
        mode: ``exact`` runs all windows; ``coarse_to_fine`` a part of them, chosen by what the others showed, until
            the map is expected to correlate with the exact one by `accuracy`. Evidence in few places needs a fifth
            to a half of the windows, diffuse evidence nearly all. Grids of few windows are run as a whole.
        accuracy: that correlation.
        budget: share of the windows at which it stops all the same.
        score: ``logit`` or ``prob``.
        masking: operator in place of the call's.
    """

    window: Size | None = None
    stride: Size | None = None
    mode: str = "exact"
    accuracy: float = 0.99
    budget: float = 1.0
    score: str = "logit"
    masking: str | None = None

    def __post_init__(self) -> None:
        """Check ranges and names; lists become tuples."""
        for name in ("window", "stride"):
            size = getattr(self, name)
            check_size(name, size)
            if isinstance(size, list):
                object.__setattr__(self, name, tuple(size))
        if self.mode not in ("exact", "coarse_to_fine"):
            raise ValueError(f"mode is exact or coarse_to_fine, not {self.mode!r}")
        if not 0 < self.accuracy <= 1:
            raise ValueError("accuracy is a correlation between 0 and 1")
        if not 0 < self.budget <= 1:
            raise ValueError("budget is a share of the windows between 0 and 1")
        check_score(self.score)
        check_operator(self.masking)


def attribute(run: Run, options: Options) -> Tensor:
    """Drop of the score when a window is removed, averaged over the windows that cover a voxel (arXiv:1311.2901).

    Positive where removal lowers the score. Windows at the far edges are clipped.
    """
    windows = choose_windows(options, run.spatial)
    masker, batch = Masker(run, options.masking), len(run.x)
    clean = read_score(run.target, run.logits, None, options.score).float().cpu()

    def ask(index: Tensor, rows: Tensor) -> Tensor:
        found = []
        for start in range(0, len(index), run.samples_at_once):
            which = rows[start : start + run.samples_at_once]
            key = ("occlusion", windows.size, windows.stride, start) if len(index) == batch * windows.count else None
            outputs = masker.without(windows, index[start : start + len(which)], which, key)
            found.append(read_score(run.target, outputs, which, options.score).float().cpu())
        return (clean[rows] - torch.cat(found)).float()

    run.report.update(windows=windows.count, forwards=windows.count, window=windows.size, stride=windows.stride)
    run.expect(batch * windows.count)
    if options.mode == "exact" or windows.count < LEAST:
        every = torch.arange(windows.count).repeat(batch), torch.arange(batch).repeat_interleave(windows.count)
        return windows.average(ask(*every).view(batch, -1))

    def ask_row(row: int) -> Callable[[Tensor], Tensor]:
        return lambda index: ask(index, torch.full((len(index),), row))

    drops, forwards, expected = zip(
        *(estimate(windows, options.accuracy, options.budget, ask_row(row)) for row in range(batch)), strict=True
    )
    run.report.update(forwards=torch.tensor(forwards), expected_correlation=torch.tensor(expected))
    return windows.average(torch.stack(drops))


def choose_windows(options: Options, spatial: tuple[int, ...]) -> Windows:
    """Windows of the options, or the defaults, for an image of that size.

    Raises:
        ExplainError: the options do not fit the image.
    """
    share = 16 if not is_volume(spatial) or options.mode == "coarse_to_fine" else 12
    # An even window has half of it as stride without gaps or remainders.
    half = tuple(max(1, round(s / share)) for s in spatial)
    try:
        size = tuple(min(2 * h, s) for h, s in zip(half, spatial, strict=True))
        if options.window is not None:
            size = in_voxels("window", options.window, spatial)
        step = tuple(max(1, w // 2) for w in size)
        if options.stride is not None:
            step = in_voxels("stride", options.stride, spatial)
    except ValueError as error:
        raise ExplainError(str(error)) from error
    if any(t > w for t, w in zip(step, size, strict=True)):
        msg = f"stride {step} is larger than window {size}: voxels between windows would have no value"
        raise ExplainError(msg)
    return Windows(tuple(spatial), size, step)
