"""The estimate behind RISE and D-RISE: how the score of a masked image varies with what the mask shows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medxai.errors import ExplainError
from medxai.explain.masking.masker import Masker, check_operator, read_score
from medxai.explain.masking.operator import voxel_size
from medxai.explain.random_masks import RandomMasks, even_grid

if TYPE_CHECKING:
    from medxai.explain.run import Run

#: Masks between two looks at the error; a fixed number, so that memory does not decide when to stop.
BLOCK = 100


@dataclass(frozen=True)
class MaskOptions:
    """Options of methods that mask at random.

    Attributes:
        samples: masks at most; 0 for the method's default.
        grid: cells along the longest axis, the others about equal in mm; or one number for each axis.
        keep: probability that a cell is kept.
        antithetic: draw every mask together with its inverse; needs ``keep=0.5``.
        tolerance: stop when the median relative standard error is below it; 0 never stops.
        masking: operator in place of the call's.
    """

    samples: int = 0
    grid: int | list[int] | tuple[int, ...] = 7
    keep: float = 0.5
    antithetic: bool = False
    tolerance: float = 0.05
    masking: str | None = None

    def __post_init__(self) -> None:
        """Check ranges; lists become tuples."""
        if self.samples < 0 or self.samples == 1:
            raise ValueError("samples is 0 for the default, or at least 2")
        cells = self.grid if isinstance(self.grid, (list, tuple)) else (self.grid,)
        if not all(isinstance(c, int) and c >= 1 for c in cells):
            raise ValueError(f"grid is a whole number of cells, or one for each axis, not {self.grid!r}")
        if not 0 < self.keep < 1:
            raise ValueError("keep is a probability between 0 and 1")
        if self.antithetic and self.keep != 0.5:
            raise ValueError("antithetic masks need keep=0.5")
        if self.tolerance < 0:
            raise ValueError("tolerance is not negative")
        check_operator(self.masking)
        if isinstance(self.grid, list):
            object.__setattr__(self, "grid", tuple(self.grid))


#: The largest of some hundred independent values of pure noise lies below this many standard errors.
CLEAR = 4.0


class _Sums:
    """Running sums of a sample: scores ``y`` (less a constant) and masks ``M`` (less their expectation)."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.y = self.yy = 0.0
        self.maps = {name: torch.zeros(size, dtype=torch.float64) for name in ("m", "mm", "ym", "yym", "ymm", "yymm")}

    def add(self, y: Tensor, m: Tensor) -> None:
        self.count += len(y)
        self.y += float(y.double().sum())
        self.yy += float(y.double().square().sum())
        square = m * m
        powers = torch.stack((torch.ones_like(y), y, y * y))
        first, second = powers @ m, powers @ square
        for name, value in zip(("m", "ym", "yym", "mm", "ymm", "yymm"), (*first, *second), strict=True):
            self.maps[name] += value

    def estimate(self, floor: float, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Slope of y on M at each voxel, and its standard error; `centred` subtracts the means."""
        n, means = self.count, {name: total / self.count for name, total in self.maps.items()}
        y, yy = (self.y / n, self.yy / n) if centred else (0.0, self.yy / n)
        m = means["m"] if centred else torch.zeros_like(means["m"])
        covariance = means["ym"] - y * m
        variance = (means["mm"] - m * m).clamp_min(floor)
        squares = (
            means["yymm"] - 2 * m * means["yym"] + m * m * yy
            - 2 * y * (means["ymm"] - 2 * m * means["ym"] + m * m * y)
            + y * y * (means["mm"] - m * m if centred else means["mm"])
        )  # fmt: skip
        error = ((squares - covariance**2).clamp_min(0) / max(n - 1, 1)).sqrt()
        return covariance / variance, error / variance


def random_mask_map(run: Run, options: MaskOptions, samples: int, *, score: str, name: str) -> Tensor:
    """Mean-subtracted RISE map ``[B, *S]``: ``sum_i (y_i - mean y)(M_i - mean M) / (N var M)``.

    The report gets ``standard_error [B, *S]``, the median ``relative_error [B]``, ``samples [B]`` used and
    ``strongest_in_errors [B]``, how many standard errors the strongest voxel is above zero.

    Args:
        run: what is asked of which images.
        options: see `MaskOptions`.
        samples: masks when the options leave it open.
        score: ``logit`` or ``prob``.
        name: of the method, under which outputs are remembered for other targets.
    """
    count = options.samples or samples
    count += count % 2 if options.antithetic else 0
    masker = Masker(run, options.masking)
    result = torch.zeros(len(run.x), *run.spatial)
    error = torch.zeros_like(result)
    used, relative = torch.zeros(len(run.x)), torch.zeros(len(run.x))
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, spacing in enumerate(voxel_size(run).tolist()):
        groups.setdefault(_grid(options, run.spatial, spacing), []).append(row)
    run.expect(count * len(run.x))
    for grid, rows in groups.items():
        draws = RandomMasks.draw(count, run.spatial, grid, options.keep, run.generator(), antithetic=options.antithetic)
        live = list(rows)
        sums = {row: _Sums(result[0].numel()) for row in rows}
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            _block(run, masker, draws, (start, stop), live, sums, options, score, (name, grid, options.keep, count))
            for row in list(live):
                slope, spread = sums[row].estimate(
                    0.01 * options.keep * (1 - options.keep), centred=not options.antithetic
                )
                share = torch.where(spread > 0, spread / slope.abs().clamp_min(1e-30), 0).median()
                if stop == count or (start > 0 and share < options.tolerance):
                    result[row] = slope.view(run.spatial)
                    error[row] = spread.view(run.spatial)
                    used[row], relative[row] = stop, share
                    live.remove(row)
            if not live:
                break
    strongest = (result / error.clamp_min(1e-30)).where(error > 0, torch.zeros_like(error)).flatten(1).amax(1)
    run.report.update(standard_error=error, relative_error=relative, samples=used.long(), strongest_in_errors=strongest)
    doubtful = (strongest < CLEAR) & (error.flatten(1).amax(1) > 0)
    run.flag("unstable", doubtful, f"no voxel is {CLEAR:g} standard errors above zero; more samples are needed")
    return result


def _block(
    run: Run,
    masker: Masker,
    draws: RandomMasks,
    span: tuple[int, int],
    live: Sequence[int],
    sums: dict[int, _Sums],
    options: MaskOptions,
    score: str,
    key: Hashable,
) -> None:
    """Put masks ``span`` before every live sample and add what comes out to its sums."""
    step = max(1, run.samples_at_once // len(live))
    step += step % 2 if options.antithetic else 0
    clean = read_score(run.target, run.logits, None, score).float()
    for start in range(span[0], span[1], step):
        masks = draws.masks(start, min(start + step, span[1]))
        rows = torch.tensor(live).repeat_interleave(len(masks))
        outputs = masker.outputs(
            masks.repeat(len(live), *[1] * len(run.spatial)), rows, (key, options.antithetic, start, step, tuple(live))
        )
        scores = read_score(run.target, outputs, rows, score).float().view(len(live), -1)
        flat = masks.flatten(1) - options.keep
        for row, y in zip(live, scores.cpu(), strict=True):
            y = y - clean[row].cpu()
            if options.antithetic:
                sums[row].add((y[::2] - y[1::2]) / 2, flat[::2])
            else:
                sums[row].add(y, flat)


def _grid(options: MaskOptions, spatial: tuple[int, ...], spacing: Sequence[float]) -> tuple[int, ...]:
    if isinstance(options.grid, int):
        return even_grid(spatial, spacing, options.grid)
    if len(options.grid) != len(spatial):
        msg = f"grid has {len(options.grid)} numbers; the image has {len(spatial)} axes"
        raise ExplainError(msg)
    return tuple(min(g, s) for g, s in zip(options.grid, spatial, strict=True))
