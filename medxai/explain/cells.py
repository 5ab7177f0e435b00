"""The native grid of a map: how many cells of what size it really has, whatever grid it is drawn on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medxai.study import Affine, Explanation, Volume


@dataclass(frozen=True)
class Cells:
    """Grid on which a map was computed, for one window of the network.

    Attributes:
        counts: cells along the axes of the prepared grid; two for images.
        size: of a cell along them, in mm where the image is calibrated, otherwise in pixels.
        windows: how many windows have such a grid each; frames for a cine.
    """

    counts: tuple[int, ...]
    size: tuple[float, ...]
    windows: int

    def text(self, *, unit: str = "mm", each: str = "window") -> str:
        """For people: ``map of 4 x 8 x 8 cells of 64 x 45 x 45 mm``.

        Args:
            unit: of `size`.
            each: what a window is.
        """
        counts = " x ".join(str(n) for n in self.counts)
        words = f"map of {counts} cell{'' if np.prod(self.counts) == 1 else 's'}"
        if self.size:
            words += f" of {' x '.join(f'{v:.3g}' for v in self.size)} {unit}"
        return words if self.windows == 1 else f"{words} in each of {self.windows} {each}s"


def cells_of(explanation: Explanation) -> Cells:
    """The native grid of a map.

    Args:
        explanation: with its raw map ``[n_windows, *s]``.
    """
    counts = tuple(int(n) for n in explanation.raw.shape[1:])
    size = tuple(float(v) for v in explanation.cell_mm[3 - len(counts) :])
    return Cells(counts, size if all(v > 0 for v in size) else (), int(explanation.raw.shape[0]))


def source_axes(explanation: Explanation, volume: Volume) -> tuple[int, int, int]:
    """For each axis ``(D, H, W)`` of a volume the axis of the prepared grid that runs along it.

    Args:
        explanation: of a volume.
        volume: it was made of.
    """
    own = _unit(volume.affine[:3, :3])
    prepared = _unit(explanation.input_affine[:3, :3])
    along = np.abs(own.T @ prepared)
    d, h, w = (int(row.argmax()) for row in along)
    return d, h, w


def _unit(columns: Affine) -> Affine:
    result: Affine = columns / np.linalg.norm(columns, axis=0)
    return result
