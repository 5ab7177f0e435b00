"""On which slices of a volume the evidence lies, ranked: where a reader looks first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from medxai.explain.cells import cells_of, source_axes
from medxai.study import Affine, Explanation, FloatArray, Volume

#: Slices that are named in reports.
NAMED = 5


@dataclass(frozen=True)
class SliceShare:
    """Evidence of one source slice.

    Attributes:
        index: on the ``D`` axis, from 0.
        share: of the evidence of the whole map, 0..1.
        position_mm: of the slice along the normal of the stack in LPS mm: for axial slices the z of their middle.
        image: number that viewers show: InstanceNumber, or the frame of a multi-frame object; None without a header.
        instance: SOPInstanceUID; empty without a header.
    """

    index: int
    share: float
    position_mm: float
    image: int | None = None
    instance: str = ""

    def text(self) -> str:
        """For people: ``slice 14 (image 31, at -112.0 mm): 12.0%``."""
        image = "" if self.image is None else f"image {self.image}, "
        return f"slice {self.index + 1} ({image}at {self.position_mm:.1f} mm): {self.share:.1%}"


@dataclass(frozen=True)
class Ranking:
    """All slices of a volume by their share of the evidence.

    Attributes:
        slices: the largest share first, equal ones in the order of the stack; empty for a map without evidence.
        note: what must be known to read them, for example that the map has no depth of its own; empty when it has.
    """

    slices: tuple[SliceShare, ...]
    note: str = ""


def rank_slices(volume: Volume, explanation: Explanation) -> Ranking | None:
    """Rank the source slices of a volume; None for images and cines.

    Args:
        volume: ``DHW``.
        explanation: with its map on the grid of `volume`.
    """
    if volume.axes != "DHW":
        return None
    shares = slice_shares(explanation.map)
    note = depth_note(volume, explanation)
    if not shares.any():
        return Ranking((), note)
    places = _positions(volume)
    order = np.argsort(-shares, kind="stable")
    return Ranking(tuple(_slice(volume, int(d), float(shares[d]), float(places[d])) for d in order), note)


def describe_slices(volume: Volume, explanation: Explanation) -> dict[str, Any] | None:
    """The ranking for JSON: shares of all slices in the order of the stack, the first `NAMED` ones, the note.

    UIDs of the source are left out: they belong to the archive that the study came from.

    Args:
        volume: of the study.
        explanation: its map.
    """
    ranking = rank_slices(volume, explanation)
    if ranking is None:
        return None
    return {
        "shares": [round(float(share), 5) for share in slice_shares(explanation.map)],
        "first": [
            {"slice": s.index + 1, "share": round(s.share, 5), "position_mm": round(s.position_mm, 2), "image": s.image}
            for s in ranking.slices[:NAMED]
        ],
        "note": ranking.note,
    }


def slice_shares(values: FloatArray) -> FloatArray:
    """Share of the sum of ``[D, H, W]`` in each slice ``[D]``; all zero for a map without evidence."""
    sums = np.maximum(values, 0).reshape(values.shape[0], -1).sum(axis=1, dtype=np.float64)
    total = float(sums.sum())
    shares: FloatArray = (sums / total if total > 0 else sums).astype(np.float32)
    return shares


def depth_note(volume: Volume, explanation: Explanation) -> str:
    """Say when slices cannot be told apart by a map, since one cell spans all of them, or a whole window."""
    cells = cells_of(explanation)
    if len(cells.counts) != 3 or not cells.size:
        return ""
    axis = source_axes(explanation, volume)[0]
    count, deep = cells.counts[axis], cells.size[axis]
    extent = volume.shape[0] * volume.spacing[0]
    if count == 1 and (cells.windows == 1 or deep >= extent):
        return (
            f"the map has no depth of its own: one cell of {deep:.0f} mm covers all {volume.shape[0]} slices, "
            "so that their order says nothing of where the evidence lies"
        )
    if deep <= volume.spacing[0]:
        return ""
    own = "within a window the map has no depth of its own: " if count == 1 else ""
    return f"{own}one cell is {deep:.0f} mm deep, slices nearer to each other than that are hardly told apart"


def _positions(volume: Volume) -> Affine:
    """Place of the middle of each slice along the unit normal of the stack that points to its nearest axis of LPS."""
    row, column = volume.affine[:3, 1], volume.affine[:3, 2]
    normal = np.cross(column, row)
    normal = normal / np.linalg.norm(normal)
    normal = normal * np.sign(normal[np.abs(normal).argmax()])
    height, width = volume.shape[1:]
    middle = row * (height - 1) / 2 + column * (width - 1) / 2
    first = volume.positions
    if first is None:
        first = volume.affine[:3, 3] + np.arange(volume.shape[0])[:, None] * volume.affine[:3, 0]
    places: Affine = (first + middle) @ normal
    return places


def _slice(volume: Volume, index: int, share: float, place: float) -> SliceShare:
    if not volume.source:
        return SliceShare(index, share, place)
    header = volume.source[index if len(volume.source) > 1 else 0]
    if volume.frame_numbers:
        image: int | None = volume.frame_numbers[index]
    else:
        number = header.get("InstanceNumber")
        image = int(number) if number is not None and str(number).strip() else None
    return SliceShare(index, share, place, image, str(header.get("SOPInstanceUID", "")))
