"""Pictures of one explained subject, PNG with the same bytes each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.explain.connectivity_map import course
from medxai.export.brain import connectogram
from medxai.export.brain.subject_view import TITLES, SubjectView
from medxai.files import atomic_path
from medxai.prepare.brain.onto import computed
from medxai.prepare.brain.subject import MODALITIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
_MODALITY_COLOURS = {"alff": "#3b6fb6", "dfc": "#d98c26", "sfc": "#4f9a5d", "fa": "#8c5fa8"}


def write_figures(view: SubjectView, folder: Path, group: Mapping[str, npt.NDArray[Any]], of: str) -> list[Path]:
    """Write all pictures of a subject; the paths.

    Args:
        view: the subject.
        folder: where to.
        group: mean map by modality of the group; empty where there is none.
        of: whose mean it is, in words.
    """
    paths = [_save(folder / "shares.png", (8.6, 3.4), partial(shares, view=view))]
    for name in view.matrices:
        paths.append(_save(folder / f"matrix_{name}.png", (6.4, 5.6), partial(matrix, view=view, name=name)))
        paths.append(_save(folder / f"connectogram_{name}.png", (6.6, 6.6), partial(circle, view=view, name=name)))
    if "dfc" in view.evidence.maps:
        mean = group.get("dfc")
        paths.append(_save(folder / "course_dfc.png", (8.6, 2.8), lambda figure: over_windows(figure, view, mean, of)))
    if "alff" in view.evidence.maps:
        paths.append(glass_brain(view, folder / "glass_brain.png"))
    compared = [name for name in MODALITIES if name in view.evidence.maps and name in group]
    if compared:
        size = (7.6, 2.9 * len(compared) + 0.4)
        paths.append(_save(folder / "group.png", size, lambda figure: beside_group(figure, view, group, compared, of)))
    return paths


def write_group_figures(view: SubjectView, folder: Path) -> tuple[tuple[str, str], ...]:
    """Write the pictures of a group's mean; their names with titles."""
    found = []
    if "alff" in view.evidence.maps:
        glass_brain(view, folder / "glass_brain.png")
        found.append(("glass_brain.png", "ALFF, mean map"))
    for name in view.matrices:
        _save(folder / f"matrix_{name}.png", (6.4, 5.6), partial(matrix, view=view, name=name))
        _save(folder / f"connectogram_{name}.png", (6.6, 6.6), partial(circle, view=view, name=name))
        found.append((f"matrix_{name}.png", f"{TITLES[name]}, mean map"))
        found.append((f"connectogram_{name}.png", f"{TITLES[name]}, strongest edges of the mean map"))
    return tuple(found)


def shares(figure: Figure, view: SubjectView) -> None:
    """Share of each modality with the sign of its value, and what pairs do beyond each alone."""
    found = view.evidence
    left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
    everyone = [name for name in MODALITIES if name in (*found.modalities, *found.missing)]
    for place, name in enumerate(everyone):
        if name in found.missing:
            left.text(place, 0.01, "missing", ha="center", va="bottom", fontsize=9, color="#a33", weight="bold")
            continue
        share, value = found.shares[name], found.values[name]
        left.bar(place, share, 0.62, color=_MODALITY_COLOURS[name], hatch="" if value >= 0 else "///", ec="white", lw=0)
        left.text(place, share, f"{share:.0%}\n{value:+.2f}", ha="center", va="bottom", fontsize=8)
    left.set_xticks(range(len(everyone)), [name.upper() for name in everyone])
    left.set_ylabel("share of the evidence")
    left.set_ylim(0, max([*found.shares.values(), 0.2]) * 1.3)
    left.set_title("Exact Shapley values of the logit; hatched: against the class", fontsize=8.5)
    left.spines[["top", "right"]].set_visible(False)
    size = len(found.modalities)
    top = max(float(np.abs(found.pairs).max(initial=0)), 1e-12)
    image = right.imshow(np.ma.masked_where(np.eye(size, dtype=bool), found.pairs), cmap="RdBu_r", vmin=-top, vmax=top)
    right.set_facecolor("0.88")
    for i in range(size):
        for j in range(size):
            if i != j:
                dark = abs(found.pairs[i, j]) > 0.6 * top
                right.text(j, i, f"{found.pairs[i, j]:+.2f}", ha="center", va="center", fontsize=8,
                           color="white" if dark else "black")  # fmt: skip
    names = [name.upper() for name in found.modalities]
    right.set_xticks(range(size), names, fontsize=8)
    right.set_yticks(range(size), names, fontsize=8)
    right.set_title(f"Pair synergy; in the maps: {found.map_synergy:+.3f}", fontsize=8.5)
    figure.colorbar(image, ax=right, shrink=0.8)


def matrix(figure: Figure, view: SubjectView, name: str) -> None:
    """Map of a matrix, its nodes ordered by network with the borders of the networks."""
    axes = figure.subplots()
    image = _matrix(axes, view, name, view.matrix(name))
    figure.colorbar(image, ax=axes, shrink=0.8, label="evidence, 0 to 1")
    axes.set_title(f"{TITLES[name]}: evidence for {view.evidence.labels[view.evidence.positive]}", fontsize=9)


def circle(figure: Figure, view: SubjectView, name: str) -> None:
    """Connectogram of a matrix."""
    from matplotlib.lines import Line2D

    axes = figure.subplots()
    networks, edges = view.networks(name), view.edges(name)
    connectogram.draw(axes, edges, view.regions(name), networks)
    axes.set_title(f"{TITLES[name]}: strongest {view.percent:g} % of the edges ({len(edges)})", fontsize=9)
    shades = connectogram.colours(networks)
    shown = [n for n in sorted(set(networks) - {""})] + ([""] if "" in networks else [])
    marks = [Line2D([], [], color=shades[n], lw=5, label=n or "no network") for n in shown]
    word = "connectivity" if name != "fa" else "weight"
    for sign, what in ((1, f"positive {word}"), (-1, f"negative {word}"), (0, f"no {word}")):
        if any(e.sign == sign for e in edges):
            marks.append(Line2D([], [], color=connectogram.SIGNS[sign], lw=1.6, label=what))
    figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=7, frameon=False)


def over_windows(figure: Figure, view: SubjectView, mean: npt.NDArray[Any] | None, of: str) -> None:
    """Mean evidence of the dynamic map in each window, with the group's."""
    axes = figure.subplots()
    values = course(view.evidence.maps["dfc"])
    windows = np.arange(1, len(values) + 1)
    axes.plot(windows, values, color=_MODALITY_COLOURS["dfc"], lw=1.8, marker="o", ms=3, label=view.features.subject)
    if mean is not None:
        axes.plot(windows, course(mean), color="0.45", lw=1.2, ls="--", label=of)
    axes.set_xlabel("window")
    axes.set_ylabel("mean evidence of the edges")
    axes.set_xlim(0.5, len(values) + 0.5)
    axes.set_ylim(bottom=0)
    cells = view.evidence.cells["dfc"][-1]
    axes.set_title(f"Dynamic connectivity over time; the layer has {cells} steps for {len(values)} windows", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)


def glass_brain(view: SubjectView, path: Path) -> Path:
    """Glass brain of the ALFF map in template space; in the subject's own space three projections without outline.

    The outline of nilearn is that of MNI space, and would be wrong for any other.
    """
    if not view.template:
        return _save(path, (8.6, 3.2), lambda figure: projections(figure, view))
    from nilearn import plotting

    from medxai.prepare.brain.image import Image, as_nifti

    affine = view.features.affine
    image = as_nifti(Image(view.evidence.maps["alff"], np.eye(4) if affine is None else affine))

    def make(figure: Figure) -> None:
        values = view.evidence.maps["alff"]
        top = float(np.quantile(values[_measured(view)], 0.9))
        plotting.plot_glass_brain(image, figure=figure, display_mode="lyrz", threshold=top, colorbar=True,
                                  cmap="inferno", black_bg=False, vmin=0.0, vmax=1.0, plot_abs=True)  # fmt: skip

    return _save(path, (9.6, 3.0), make, constrained=False)


def projections(figure: Figure, view: SubjectView) -> None:
    """Maximum of the ALFF map along each axis of its grid, over that of the feature, in mm."""
    values, feature = view.evidence.maps["alff"], view.features.alff
    affine = view.features.affine
    if feature is None or affine is None:
        return
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    figure.suptitle("Maximum intensity of the evidence, subject space (grid of the features)", fontsize=9)
    for axes, axis in zip(figure.subplots(1, 3), range(3), strict=True):
        rest = [a for a in range(3) if a != axis]
        aspect = float(steps[rest[0]] / steps[rest[1]])
        axes.imshow(np.abs(feature).max(axis), cmap="gray", origin="lower", aspect=aspect)
        shown = values.max(axis)
        image = axes.imshow(shown, cmap="inferno", origin="lower", aspect=aspect, vmin=0, vmax=1,
                            alpha=np.clip(shown, 0, 1) ** 0.7)  # fmt: skip
        axes.set_title(f"along axis {axis}: {_direction(affine[:3, axis])}", fontsize=8)
        axes.axis("off")
    figure.colorbar(image, ax=figure.axes, shrink=0.7)


def beside_group(
    figure: Figure, view: SubjectView, group: Mapping[str, npt.NDArray[Any]], names: Sequence[str], of: str
) -> None:
    """Each map of the subject beside the mean of the group, and how alike they are."""
    rows = figure.subplots(len(names), 2, squeeze=False)
    for (left, right), name in zip(rows, names, strict=True):
        own, mean = np.asarray(view.evidence.maps[name], dtype=float), np.asarray(group[name], dtype=float)
        # Zeros outside the brain are alike in everybody.
        pair = [v[_measured(view)] if name == "alff" else v.ravel() for v in (own, mean)]
        same = "n/a" if min(v.std() for v in pair) == 0 else f"{np.corrcoef(pair[0], pair[1])[0, 1]:.2f}"
        for axes, values, title in (
            (left, own, f"{TITLES[name]}: {view.features.subject}"),
            (right, mean, f"{of}; r = {same}"),
        ):
            if name == "alff":
                image = axes.imshow(values.max(0), cmap="inferno", origin="lower", vmin=0, vmax=1)
                axes.set_xlabel("maximum along the first axis of the grid", fontsize=7)
                axes.set_xticks([])
                axes.set_yticks([])
            else:
                flat = values.mean(-1) if values.ndim == 3 else values
                image = _matrix(axes, view, name, flat, small=True)
            axes.set_title(title, fontsize=8)
            figure.colorbar(image, ax=axes, shrink=0.75)


def _measured(view: SubjectView) -> npt.NDArray[np.bool_]:
    """``[D, H, W]`` where the subject's ALFF was computed."""
    assert view.features.alff is not None  # noqa: S101 - it has a map
    return computed(view.features.alff)


def _matrix(axes: Axes, view: SubjectView, name: str, values: npt.NDArray[Any], *, small: bool = False) -> Any:
    networks = view.networks(name)
    order = connectogram.order_of(networks)
    even = (values + values.T) / 2
    image = axes.imshow(even[order][:, order], cmap="inferno", vmin=0, vmax=max(float(even.max()), 1e-12))
    groups = [networks[i] for i in order]
    borders = [n for n in range(1, len(groups)) if groups[n] != groups[n - 1]]
    for border in borders:
        axes.axhline(border - 0.5, color="white", lw=0.7)
        axes.axvline(border - 0.5, color="white", lw=0.7)
    ends = [0, *borders, len(groups)]
    middles = [(a + b - 1) / 2 for a, b in pairwise(ends)]
    names = [groups[a] or "none" for a in ends[:-1]]
    shades = connectogram.colours(networks)
    axes.set_xticks(middles, names, rotation=45, ha="right", fontsize=5 if small else 7)
    axes.set_yticks(middles, names, fontsize=5 if small else 7)
    for label, group in zip([*axes.get_xticklabels(), *axes.get_yticklabels()], [*names, *names], strict=True):
        label.set_color(shades.get(group, connectogram.NO_NETWORK))
    axes.tick_params(length=0)
    return image


def _direction(vector: npt.NDArray[np.float64]) -> str:
    from medxai.export.placement import letters

    return letters(vector) or "?"


def _save(path: Path, size: tuple[float, float], make: Callable[[Figure], None], *, constrained: bool = True) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    make(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None}, facecolor="white")
    return path
