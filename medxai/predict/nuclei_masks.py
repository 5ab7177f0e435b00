"""Masks of many small objects of a large plane, a bit for each pixel of their boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class NucleiMasks:
    """Masks of n objects.

    Attributes:
        corners: ``[n, 2]`` row and column of the first pixel of the box in the plane.
        sizes: ``[n, 2]`` rows and columns of the box.
        areas: ``[n]`` pixels of the object.
        bytes_of: ``[n]`` bytes of the object in `bits`.
        bits: all masks one after the other, each row by row and filled up to whole bytes.
    """

    corners: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    areas: npt.NDArray[np.int64]
    bytes_of: npt.NDArray[np.int64]
    bits: npt.NDArray[np.uint8]

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        return np.asarray(np.cumsum(self.bytes_of) - self.bytes_of, np.int64)

    def __len__(self) -> int:
        return len(self.areas)

    def mask(self, number: int) -> Mask:
        """``[h, w]``, True on the object."""
        start = int(self._starts[number])
        rows, columns = self.sizes[number].tolist()
        bits = np.unpackbits(self.bits[start : start + int(self.bytes_of[number])], count=rows * columns)
        return np.asarray(bits.reshape(rows, columns), bool)

    def shared(self, one: int, other: int) -> int:
        """Pixels that two objects have in common."""
        first = np.maximum(self.corners[one], self.corners[other])
        last = np.minimum(self.corners[one] + self.sizes[one], self.corners[other] + self.sizes[other])
        if (last <= first).any():
            return 0
        parts = []
        for number in (one, other):
            (top, left), (bottom, right) = first - self.corners[number], last - self.corners[number]
            parts.append(self.mask(number)[top:bottom, left:right])
        return int(np.count_nonzero(parts[0] & parts[1]))

    def take(self, which: npt.NDArray[np.int64]) -> NucleiMasks:
        """The objects at some positions."""
        starts = self._starts
        bits = [self.bits[starts[n] : starts[n] + self.bytes_of[n]] for n in which.tolist()]
        joined = np.concatenate(bits) if bits else self.bits[:0]
        return NucleiMasks(self.corners[which], self.sizes[which], self.areas[which], self.bytes_of[which], joined)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """For storing; several of them are joined by concatenating each array."""
        return {name: getattr(self, name) for name in ("corners", "sizes", "areas", "bytes_of", "bits")}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """What `arrays` gave."""
        return cls(*(arrays[name] for name in ("corners", "sizes", "areas", "bytes_of", "bits")))


def pack(corners: Sequence[npt.NDArray[np.int64]], masks: Sequence[Mask]) -> NucleiMasks:
    """Return masks ``[h, w]`` whose first pixels lie at `corners` (row, column)."""
    packed = [np.packbits(mask) for mask in masks]
    return NucleiMasks(
        corners=np.array(corners, np.int64).reshape(-1, 2),
        sizes=np.array([mask.shape for mask in masks], np.int64).reshape(-1, 2),
        areas=np.array([np.count_nonzero(mask) for mask in masks], np.int64),
        bytes_of=np.array([len(part) for part in packed], np.int64),
        bits=np.concatenate(packed) if packed else np.zeros(0, np.uint8),
    )
