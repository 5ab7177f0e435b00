"""What a pathologist sees: outlines with their count, evidence and its block, what disagrees; and how labels arose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.export.colours import blend
from medxai.export.nuclei_pictures import disagreement, outlined
from medxai.files import atomic_path
from medxai.learn.nuclei.data import PointField
from medxai.learn.nuclei.labels import make_labels
from medxai.learn.nuclei.pseudo import best_thresholds, field_cams, pseudo_label
from medxai.learn.nuclei.settings import NucleiSettings
from medxai.learn.nuclei.truth import MaskedField
from medxai.networks.nuclei_unet import NucleiUNet
from medxai.predict.nuclei import NucleiField
from medxai.predict.nuclei_blocks import best_block

Pixels = npt.NDArray[np.uint8]
_TRUE, _FOUND, _SEED = (30, 160, 60), (20, 40, 220), (250, 220, 40)
#: Colours of outlines by what is doubtful; the first that applies.
_DOUBTS = {"unseeded": (150, 0, 150), "uncertain": (220, 30, 30), "merged?": (235, 130, 30), "split?": (0, 170, 190)}


def draw_fields(fields: Sequence[MaskedField], answers: Sequence[NucleiField], mpp: float, target: Path) -> Path:
    """A row for each field: truth, outlines, evidence, disagreement, doubts."""
    titles = ("field, true outlines", "found, seeds", "evidence", "mask and evidence disagree", "doubtful nuclei")
    figure, axes = _grid(len(fields), len(titles))
    for row, (field, found) in enumerate(zip(fields, answers, strict=True)):
        density = len(found.flags) / (found.labels.size * (mpp / 1000) ** 2)
        marked = outlined(field.pixels, found.labels, [_FOUND] * len(found.flags))
        for line, column in np.rint(found.seeds[~np.isnan(found.seeds[:, 0])]).astype(int):
            marked[max(0, line - 1) : line + 2, max(0, column - 1) : column + 2] = _SEED
        said = [next((_DOUBTS[word] for word in _DOUBTS if word in flags), (160, 160, 160)) for flags in found.flags]
        pictures = (
            outlined(field.pixels, field.instances, [_TRUE] * int(field.instances.max())),
            marked,
            blend(field.pixels, found.evidence, 0.8),
            disagreement(field.pixels, found.labels, found.evidence),
            outlined(field.pixels, found.labels, said),
        )
        words = (
            f"{int(field.instances.max())} nuclei",
            f"{len(found.flags)} nuclei, {density:.0f} per mm²",
            f"block {found.block}, agreement {found.agreement:.2f}",
            "blue: mask alone; pink: evidence alone",
            f"{sum(bool(flags) for flags in found.flags)} of {len(found.flags)}",
        )
        for axis, picture, text in zip(axes[row], pictures, words, strict=True):
            axis.imshow(picture)
            axis.set_xlabel(text, fontsize=9)
    return _finish(figure, axes, titles, target)


def draw_labels(network: NucleiUNet, fields: Sequence[PointField], settings: NucleiSettings, target: Path) -> Path:
    """A row for each training field: points, cells, M, the maps of the blocks, and P of the network as it is."""
    titles = ("field, points", "cells", "M", *(f"block {n}" for n in range(1, 5)), "P")
    figure, axes = _grid(len(fields), len(titles), 2.0)
    for row, field in enumerate(fields):
        labels = make_labels(field.pixels, field.points, settings.network.radius)
        cams = field_cams(network, field)
        alpha, thetas = best_thresholds(cams, labels, settings.selection)
        chosen = best_block(alpha)
        marked = field.pixels.copy()
        for line, column in np.rint(field.points).astype(int):
            marked[max(0, line - 1) : line + 2, max(0, column - 1) : column + 2] = _SEED
        pictures = [marked, _label(labels.voronoi), _label(labels.main)]
        pictures += [blend(field.pixels, cam, 0.8) for cam in cams]
        pictures.append(_label(pseudo_label(cams[chosen], labels, float(thetas[chosen]), settings.selection.band)))
        words = ["", "", "", *(f"{value:.2f}" + " *" * (n == chosen) for n, value in enumerate(alpha)), ""]
        for axis, picture, text in zip(axes[row], pictures, words, strict=True):
            axis.imshow(picture)
            axis.set_xlabel(text, fontsize=9)
    return _finish(figure, axes, titles, target)


def draw_training(histories: Sequence[Sequence[dict[str, Any]]], target: Path) -> Path:
    """Agreement of each block and the share of fields that chose it, over the refreshes; means over seeds."""
    plt = _pyplot()
    epochs = [row["epoch"] for row in histories[0]]
    alpha = np.mean([[row["alpha"] for row in one] for one in histories], 0)
    counts = np.array([[row["blocks"] for row in one] for one in histories], float)
    shares = (counts / np.maximum(counts.sum(2, keepdims=True), 1)).mean(0)
    area = np.mean([[row["area"] for row in one] for one in histories], 0)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for block in range(alpha.shape[1]):
        axes[0].plot(epochs, alpha[:, block], marker="o", label=f"block {block + 1}")
        axes[1].plot(epochs, shares[:, block], marker="o", label=f"block {block + 1}")
    axes[2].plot(epochs, area, marker="o", color="black")
    names = ("agreement with M", "share of fields that chose the block", "area of P over that of M")
    for axis, name in zip(axes, names, strict=True):
        axis.set(xlabel="epoch", xticks=epochs)
        axis.set_ylim(0, 1.05 * max(1.0, axis.get_ylim()[1]))
        axis.set_title(name, fontsize=10)
    axes[1].legend(fontsize=8, loc="center right")
    return _saved(figure, target)


def _label(label: npt.NDArray[np.int8]) -> Pixels:
    """Nucleus red, tissue dark, ignored grey."""
    return np.array([(30, 30, 70), (230, 80, 80), (190, 190, 190)], np.uint8)[label]


def _grid(rows: int, columns: int, side: float = 2.6) -> tuple[Any, Any]:
    size = (side * columns, (side + 0.25) * rows)
    figure, axes = _pyplot().subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, axes


def _finish(figure: Any, axes: Any, titles: Sequence[str], target: Path) -> Path:
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10)
    return _saved(figure, target)


def _saved(figure: Any, target: Path) -> Path:
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=90, metadata={"Software": None})
    _pyplot().close(figure)
    return target


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt
