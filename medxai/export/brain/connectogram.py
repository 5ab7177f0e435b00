"""A connectogram: nodes on a circle, grouped by network, the strongest edges as arcs in the colour of their sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medxai.explain.connectivity_map import Edge

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Yeo's networks in colours that common figures use; others get colours in turn.
_KNOWN = {
    "Visual": "#781286", "Vis": "#781286", "Somatomotor": "#4682b4", "SomMot": "#4682b4", "DorsalAttn": "#00760e",
    "DorsAttn": "#00760e", "VentralAttn": "#c43afa", "SalVentAttn": "#c43afa", "Limbic": "#b5a642",
    "Frontoparietal": "#e69422", "Cont": "#e69422", "Default": "#cd3e4e",
}  # fmt: skip
_OTHERS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#1f78b4", "#b15928")
NO_NETWORK = "#888888"
#: Positive and negative connectivity.
SIGNS = {1: "#c8402f", -1: "#2b6cb8", 0: "#777777"}


def order_of(networks: Sequence[str]) -> npt.NDArray[np.intp]:
    """Nodes by network (sorted by name, those without one last), within it in the order of the atlas."""
    names = [name or "\uffff" for name in networks]
    return np.array(sorted(range(len(names)), key=lambda i: (names[i], i)), dtype=np.intp)


def colours(networks: Sequence[str]) -> dict[str, str]:
    """Colour of each network, the same whatever the order of the nodes."""
    found, turn = {"": NO_NETWORK}, 0
    for name in sorted(set(networks) - {""}):
        if name in _KNOWN:
            found[name] = _KNOWN[name]
        else:
            found[name] = _OTHERS[turn % len(_OTHERS)]
            turn += 1
    return found


def draw(axes: Axes, edges: Sequence[Edge], regions: Sequence[str], networks: Sequence[str]) -> None:
    """Draw onto square axes; the width of an arc is its evidence, names stand at nodes that have an edge.

    Args:
        axes: without anything on them.
        edges: strongest first.
        regions: names of the nodes.
        networks: of the nodes, "" for none.
    """
    from matplotlib.patches import PathPatch, Wedge
    from matplotlib.path import Path

    order, shades = order_of(networks), colours(networks)
    count = len(order)
    groups = [networks[i] for i in order]
    starts = [n for n in range(count) if n == 0 or groups[n] != groups[n - 1]]
    # A gap of one and a half nodes between networks; the first begins at the top and the rest follow clockwise.
    step = 2 * np.pi / (count + 1.5 * len(starts))
    angle, place = np.zeros(count), 0.0
    for n in range(count):
        place += 1.5 if n in starts and n else 0.0
        angle[order[n]] = np.pi / 2 - (place + 0.5) * step
        place += 1.0
    xy = np.c_[np.cos(angle), np.sin(angle)]
    half = step * 0.46
    for node in range(count):
        turn = np.degrees([angle[node] - half, angle[node] + half])
        axes.add_patch(Wedge((0, 0), 1.05, turn[0], turn[1], width=0.06, color=shades[networks[node]], lw=0))
    top = max((e.evidence for e in edges), default=1.0)
    for e in reversed(edges):  # the strongest on top
        share = e.evidence / top
        control = (xy[e.a] + xy[e.b]) * 0.12
        path = Path([tuple(xy[e.a] * 0.98), tuple(control), tuple(xy[e.b] * 0.98)],
                    [Path.MOVETO, Path.CURVE3, Path.CURVE3])  # fmt: skip
        axes.add_patch(PathPatch(path, fc="none", ec=SIGNS[e.sign], lw=0.6 + 2.0 * share**2, alpha=0.35 + 0.6 * share))
    for node in sorted({node for e in edges for node in (e.a, e.b)}):
        degrees = float(np.degrees(angle[node]))
        left = not -90 <= degrees <= 90
        x, y = (xy[node] * 1.08).tolist()
        axes.text(x, y, regions[node].removeprefix("7Networks_").removeprefix("17Networks_"),
                  rotation=degrees + 180 if left else degrees, rotation_mode="anchor", fontsize=5.5, va="center",
                  ha="right" if left else "left")  # fmt: skip
    axes.set_xlim(-1.62, 1.62)
    axes.set_ylim(-1.62, 1.62)
    axes.set_aspect("equal")
    axes.axis("off")
