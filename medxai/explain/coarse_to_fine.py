"""The effects of all windows of a regular grid from a part of them, to a stated accuracy of the map."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from math import ceil

import torch
from torch import Tensor
from torch.nn import functional

from medxai.explain.windows import Windows

#: Effect ``[n]`` of windows ``index [n]``.
Ask = Callable[[Tensor], Tensor]

#: With fewer windows to choose there is too little to go by, and running all of them costs little.
LEAST = 120
#: Share of the windows that a round adds, in full batches of prepared networks.
ROUND, TOGETHER = 0.05, 16
#: How far the error of a guess is the same everywhere, the rest growing with the square of the effects around it.
_EVEN = 0.6
#: Errors of neighbours are alike, which the sum over independent ones does not know; found on the shipped bundles.
_CAUTION = 4.0
#: Noise of an effect over its spread, and steps of the solver.
_NOISE, _STEPS = 0.02, 40


def estimate(windows: Windows, accuracy: float, budget: float, ask: Ask) -> tuple[Tensor, int, float]:
    """Effect ``[windows]`` of all windows of one image, how many were run, and the correlation expected of the map.

    Every second window along each axis comes first, then, in rounds, those that are guessed worst: far from known
    ones and beside strong ones. A guess is the mean of a Gaussian process (kriging) whose covariance is what two
    windows have in common, half for neighbours along an axis. Windows of a new round tell how wrong the guesses
    were, and thereby how well the map made of known and guessed windows correlates with that of all.

    Args:
        windows: all of them.
        accuracy: correlation of the maps at which to stop.
        budget: share of the windows at which to stop, however good the map is.
        ask: runs windows.
    """
    grid, most = windows.grid, max(1, int(budget * windows.count))
    round_size = ceil(ROUND * windows.count / TOGETHER) * TOGETHER
    known = torch.zeros(grid, dtype=torch.bool)
    values = torch.zeros(grid)

    def run(index: Tensor) -> None:
        values.view(-1)[index] = ask(index)
        known.view(-1)[index] = True

    run(_every_second(grid).flatten().nonzero()[:most, 0])
    error, expected = None, 0.0
    while True:
        guessed = _krige(values, known)
        if known.all():
            return guessed.flatten(), windows.count, 1.0
        unsure = _unsure(values, known)
        if error is not None:
            expected = _expected(windows, guessed, error * unsure)
        count = int(known.sum())
        step = min(round_size, windows.count - count, most - count)
        if expected >= accuracy or step < 1:
            return guessed.flatten(), count, expected
        index = unsure.flatten().topk(step).indices
        before = guessed.flatten()[index]
        run(index)
        seen = ((values.flatten()[index] - before).square() / unsure.flatten()[index]).mean()
        error = seen if error is None else (error + seen) / 2


def _every_second(grid: tuple[int, ...]) -> Tensor:
    lines = [
        (torch.arange(size) % 2 == 0).view([size if a == axis else 1 for a in range(len(grid))])
        for axis, size in enumerate(grid)
    ]
    return reduce(torch.logical_and, lines)


def _krige(values: Tensor, known: Tensor) -> Tensor:
    """Known values as they are, elsewhere what they lead to expect; conjugate gradients, since all sums are local."""
    mean = values[known].mean()
    right = (values - mean) * known
    solution, rest = torch.zeros_like(right), right.clone()
    direction, size = rest, rest.square().sum()
    for _ in range(_STEPS):
        if size <= 0:
            break
        product = known * _smooth(direction) + _NOISE * direction
        step = size / (direction * product).sum()
        solution, rest = solution + step * direction, rest - step * product
        before, size = size, rest.square().sum()
        direction = rest + size / before * direction
    return torch.where(known, values, _smooth(solution) + mean)


def _unsure(values: Tensor, known: Tensor) -> Tensor:
    """Square of the error to expect of each guess, up to a common factor; -1 where nothing is guessed."""
    near = _smooth(known.float())
    strength = _smooth(values.square()) / near.clamp_min(1e-6)
    mean = values[known].square().mean().clamp_min(1e-30)
    far = 1 - near / _smooth(torch.ones_like(values))
    return ((_EVEN + (1 - _EVEN) * strength / mean) * far).masked_fill(known, -1.0)


def _expected(windows: Windows, guessed: Tensor, squares: Tensor) -> float:
    """Correlation of a map with the true one, from the squared errors that its guessed windows are expected to have."""
    cover = windows.spread(torch.ones(1, windows.count))
    error = _CAUTION * (windows.spread(squares.clamp_min(0).view(1, -1)) / cover.square()).mean()
    spread = windows.average(guessed.view(1, -1)).var()
    return float((spread / (spread + error)).sqrt()) if float(spread) > 0 else 0.0


def _smooth(values: Tensor) -> Tensor:
    """Each cell of a grid and half of its neighbours, along every axis."""
    for axis in range(values.ndim):
        size = values.shape[axis]
        padded = functional.pad(values, [0, 0] * (values.ndim - 1 - axis) + [1, 1])
        values = values + 0.5 * (padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size))
    return values
