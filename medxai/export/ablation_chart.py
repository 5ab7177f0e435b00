"""Pictures of a network ablation: effects with their intervals and null, and what networks do together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from medxai.trust.network_ablation import NetworkEffect


def effect_chart(
    effects: Sequence[NetworkEffect], path: Path, metric: str = "accuracy", verb: str = "Drop", title: str = ""
) -> None:
    """Bar chart: effect of each network, 95 % interval, the middle 95 % of random sets as large, corrected p.

    Args:
        effects: of `medxai.trust.network_ablation.NetworkAblation.effects`; without a null there is neither band nor p.
        path: PNG to write.
        metric: its name and unit, on the axis.
        verb: what the effect is, ``Drop`` or ``Gain``.
        title: what was done, to whom.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    tops = []
    for place, item in enumerate(effects):
        low, high = np.percentile(item.null, [2.5, 97.5]) if len(item.null) else (0.0, 0.0)
        axes.bar(place, item.effect, 0.44, color="#3b6fb6", zorder=3, label=None if place else "network")
        axes.plot([place] * 2, [item.low, item.high], color="black", lw=1.2, zorder=4,
                  label=None if place else "95 % interval of it over subjects")  # fmt: skip
        if len(item.null):
            axes.fill_between([place - 0.42, place + 0.42], low, high, color="#f0cfa3", zorder=2, lw=0,
                              label=None if place else f"95 % of {len(item.null)} random sets as large")  # fmt: skip
        tops.append(max(item.high, high, item.effect, 0))
    span = max(tops) - min(0, *(item.low for item in effects))
    for place, (item, top) in enumerate(zip(effects, tops, strict=True)):
        mark = " *" if item.p_holm < 0.05 else ""
        said = f"p={item.p_holm:.3f}{mark}" if len(item.null) else "p n/a"
        axes.text(place, top + 0.02 * span, said, ha="center", va="bottom", fontsize=8)
    axes.axhline(0, color="black", lw=0.8, zorder=3)
    axes.margins(y=0.12)
    axes.set_xticks(range(len(effects)), [f"{item.network}\n{item.regions} regions" for item in effects], fontsize=8)
    axes.set_ylabel(f"{verb} of {metric}")
    axes.set_title("\n".join(filter(None, (title, "p one-sided, corrected after Holm; * below 0.05"))), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def synergy_picture(matrix: npt.ArrayLike, networks: Sequence[str], path: Path, metric: str = "accuracy") -> None:
    """Matrix of what two networks do together beyond each alone, with its numbers; the scale is symmetric about 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    values = np.asarray(matrix, dtype=float)
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    top = max(float(np.abs(values).max()), 1e-12)
    shown = np.ma.masked_where(np.eye(len(values), dtype=bool), values)
    axes.set_facecolor("0.8")  # the diagonal
    image = axes.imshow(shown, cmap="RdBu_r", vmin=-top, vmax=top)
    for i in range(len(values)):
        for j in range(len(values)):
            if i != j:
                dark = abs(values[i, j]) > 0.6 * top
                axes.text(j, i, f"{values[i, j]:+.3f}", ha="center", va="center", fontsize=7,
                          color="white" if dark else "black")  # fmt: skip
    axes.set_xticks(range(len(networks)), networks, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(networks)), networks, fontsize=8)
    axes.set_title("Drop without both networks less the two single drops\nred: more than their sum; blue: less",
                   fontsize=9)  # fmt: skip
    figure.colorbar(image, ax=axes, shrink=0.8, label=metric[0].upper() + metric[1:])
    figure.savefig(path, dpi=120, metadata={"Software": None})
