"""Pictures of a search: how sure it became, of what, and at which cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from medxai.files import atomic_path
from medxai.learn.search.gumbel import entropy
from medxai.learn.search.log import Epoch
from medxai.networks.covidnet3d import (
    BOTTLENECKS,
    CELLS,
    OPERATIONS,
    SKIP,
    Architecture,
    CovidNet3d,
    operation,
    parameters,
    plan,
)


def draw_search(
    rows: Sequence[Epoch], history: npt.NDArray[np.float32], path: Path, architecture: Architecture
) -> None:
    """Losses and temperature, entropy of every cell over the epochs, and the final probabilities with the choice.

    Args:
        rows: log of the search.
        history: ``[epochs, cells, operations]`` architecture weights.
        path: PNG.
        architecture: what was chosen.
    """
    from matplotlib.figure import Figure

    chance = softmax(history.astype(np.float64), axis=2)
    share = entropy(torch.from_numpy(history)).numpy()
    epochs = [row.epoch for row in rows]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 1))
    left.plot(epochs, [row.train_loss for row in rows], label="cross-entropy, shared weights")
    left.plot(epochs, [row.validation_loss for row in rows], label="cross-entropy, architecture weights")
    left.plot(epochs, [row.entropy for row in rows], "k--", label="mean entropy (1: undecided)")
    left.set(xlabel="epoch", ylabel="nats, share", title="Search")
    left.legend(loc="lower left", fontsize=8)
    twin = left.twinx()
    twin.plot(epochs, [row.temperature for row in rows], color="tab:red", lw=0.8)
    twin.set_ylabel("temperature", color="tab:red")
    ends = np.cumsum(CELLS)
    image = middle.imshow(
        share.T, aspect="auto", vmin=min(0.5, float(share.min())), vmax=1, cmap="viridis",
        extent=(0.5, len(rows) + 0.5, len(chance[0]) - 0.5, -0.5),
    )  # fmt: skip
    middle.set(xlabel="epoch", ylabel="cell", title="Entropy of each cell")
    figure.colorbar(image, ax=middle)
    image = right.imshow(chance[-1], aspect="auto", vmin=0, cmap="Blues")
    right.set_xticks(range(len(OPERATIONS)), OPERATIONS, rotation=60)
    right.set(ylabel="cell", title="Probability after the last epoch, and the choice")
    for cell, name in enumerate(architecture.operations):
        right.plot(OPERATIONS.index(name), cell, "o", color="tab:orange", ms=4)
    for axis in (middle, right):
        for end in ends[:-1]:
            axis.axhline(end - 0.5, color="w" if axis is middle else "0.6", lw=0.8)
    figure.colorbar(image, ax=right)
    save(figure, path)


def save(figure: object, path: Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]


def architecture_card(
    architecture: Architecture,
    window: Sequence[int],
    spacing_mm: Sequence[float],
    chance: npt.NDArray[np.float64] | None = None,
) -> str:
    """Markdown: the operation of every cell, what it costs and the grid of its output, in voxels and mm.

    Args:
        architecture: of a network.
        window: input size ``(D, H, W)``.
        spacing_mm: of its voxels.
        chance: ``[cells, operations]`` probabilities at the end of the search, where it was searched.
    """
    network = CovidNet3d.of(architecture, 1)
    sizes = np.array(window)
    grid = np.ceil(sizes / 2).astype(int)
    lines = [
        "## Architecture",
        f"CovidNet3D {architecture.size}, strides {architecture.depth}, cells {architecture.placement}, "
        f"{parameters(network):,} parameters with one logit.",
        "",
        f"| cell | stage | width | operation | kernel, expansion | parameters | output grid | cell of a map, mm |"
        f"{' probability |' if chance is not None else ''}",
        "|" + "---|" * (8 + (chance is not None)),
    ]
    stages = np.repeat(np.arange(1, len(CELLS) + 1), CELLS)
    for number, ((_, width, stride), name) in enumerate(zip(plan(architecture), architecture.operations, strict=True)):
        grid = np.ceil(grid / np.array(stride)).astype(int)
        size = sizes / grid * np.array(spacing_mm)
        form = "-" if name == SKIP else "{} x {}".format(*BOTTLENECKS[name])
        cells = [str(number + 1), str(stages[number]), str(width), name, form]
        cells += [f"{parameters(operation(name, width)):,}", " x ".join(map(str, grid))]
        cells.append(" x ".join(f"{v:g}" for v in size))
        if chance is not None:
            cells.append(f"{chance[number, OPERATIONS.index(name)]:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
