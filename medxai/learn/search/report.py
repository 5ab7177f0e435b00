"""Pictures of a search: how sure it became, of what, and at which cost."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.files import write_bytes
from medxai.learn.search.log import Epoch, probabilities
from medxai.networks.covidnet3d import CELLS, OPERATIONS, Architecture


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

    chance = probabilities(history)
    log = np.log(np.maximum(chance, 1e-12))
    share = -(chance * log).sum(2) / np.log(len(OPERATIONS))
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
    stream = io.BytesIO()
    figure.savefig(stream, dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]
    write_bytes(path, stream.getvalue())
