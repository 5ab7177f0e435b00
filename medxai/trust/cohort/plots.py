"""Plots of a leaderboard: intervals of every method and control, and faithfulness against place."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.files import atomic_path
from medxai.trust.cohort.leaderboard import Leaderboard, Line
from medxai.trust.cohort.measures import FAITH, PLACE, faithfulness_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_METHOD, _CONTROL, _SECOND = "#1b6ca8", "#9a9a9a", "#d1742f"
_DPI = 110
#: Methods whose means lie nearer than this share one label.
_NEAR = 0.025
#: Characters of a line of the key.
_KEY_WIDTH = 34


def plot_leaderboard(board: Leaderboard, path: Path, title: str) -> Path:
    """Methods from top to bottom by place: average precision, and faithfulness by each way of removing."""
    from matplotlib.figure import Figure

    lines = [line for line in board.lines[::-1] if not math.isnan(line.measures[PLACE].value)]
    figure = Figure(figsize=(10, 1.6 + 0.24 * len(lines)), layout="constrained")
    places, faiths = figure.subplots(1, 2, sharey=True)
    _intervals(places, lines, PLACE, 0.0, [_CONTROL if line.control else _METHOD for line in lines])
    operators = faithfulness_of(board.plan.masking)[1:]
    for number, measure in enumerate(operators):
        shift = 0.24 * (number - (len(operators) - 1) / 2)
        colour = (_METHOD, _SECOND, "#4f8f4f", "#7a4fa0")[number % 4]
        colours = [_CONTROL if line.control else colour for line in lines]
        _intervals(faiths, lines, measure.name, shift, colours)
        faiths.plot([], [], "o", color=colour, label=f"removal by {measure.name.removeprefix(FAITH + '_')}")
    places.set_yticks(range(len(lines)), [line.name for line in lines], fontsize=8)
    for tick, line in zip(places.get_yticklabels(), lines, strict=True):
        tick.set_color("#6f6f6f" if line.control else "black")
    places.set_xlabel("average precision of the lesion's voxels")
    faiths.set_xlabel("insertion - deletion (probability)")
    faiths.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
    faiths.legend(fontsize=7, loc="lower right")
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def plot_relation(board: Leaderboard, path: Path, title: str) -> Path:
    """Means of every method, and how the order by faithfulness agrees with that by place within cases.

    Points are numbered from the best place down; methods that lie together share a number.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.2), layout="constrained")
    means, key, cases = figure.subplots(1, 3, width_ratios=(5, 2.6, 4))
    together: dict[tuple[int, int], list[Line]] = {}
    for line in board.lines:
        x, y = line.measures[FAITH], line.measures[PLACE]
        if math.isnan(x.value) or math.isnan(y.value):
            continue
        colour = _CONTROL if line.control else _METHOD
        means.errorbar(x.value, y.value, [[y.value - y.low], [y.high - y.value]],
                       [[x.value - x.low], [x.high - x.value]], fmt="o", color=colour, markersize=4, linewidth=0.4,
                       alpha=0.55)  # fmt: skip
        together.setdefault((round(x.value / _NEAR), round(y.value / _NEAR)), []).append(line)
    rows = []
    for number, lines in enumerate(together.values(), start=1):
        spot = (lines[0].measures[FAITH].value, lines[0].measures[PLACE].value)
        means.annotate(str(number), spot, fontsize=8, fontweight="bold", xytext=(4, 3), textcoords="offset points")
        words = textwrap.wrap(", ".join(line.name for line in lines), _KEY_WIDTH)
        rows += [f"{number:>2}  {words[0]}", *(f"      {word}" for word in words[1:])]
    key.axis("off")
    key.text(0, 1, "\n".join(rows), va="top", fontsize=7, linespacing=1.25, transform=key.transAxes)
    means.set_xlabel("insertion - deletion (probability)")
    means.set_ylabel("average precision")
    finite = board.correlations[np.isfinite(board.correlations)]
    cases.hist(finite, bins=np.linspace(-1, 1, 21).tolist(), color=_METHOD)
    cases.axvline(0, color="black", linewidth=0.8)
    if not math.isnan(board.within.value):
        cases.axvline(board.within.value, color=_SECOND, linewidth=1.5, label=f"mean {board.within}")
        cases.legend(fontsize=8)
    cases.set_xlabel("Spearman of faithfulness and place over the methods of a case", fontsize=9)
    cases.set_ylabel("cases")
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def _intervals(axes: Any, lines: Sequence[Line], measure: str, shift: float, colours: Sequence[str]) -> None:
    for number, (line, colour) in enumerate(zip(lines, colours, strict=True)):
        found = line.measures[measure]
        if not math.isnan(found.low):
            axes.plot([found.low, found.high], [number + shift] * 2, color=colour, linewidth=1.4)
        axes.plot(found.value, number + shift, "o", color=colour, markersize=3.5)


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, metadata={"Software": None})
    return path
