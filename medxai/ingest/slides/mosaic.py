"""Rectangles put together from stored tiles, with the last tiles kept so that neighbours are not decoded twice."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.ingest.slides.level import Colours

#: Bytes of decoded tiles that a slide keeps: a row of tiles of 256 x 256 across 80,000 pixels.
CACHE_BYTES = 64 * 2**20


class TileCache:
    """The tiles that were used last, at most `most` bytes of them (and at least one)."""

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self._most, self._bytes = most, 0
        self._tiles: OrderedDict[Hashable, Colours] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Colours]) -> Colours:
        """Return the tile of `key`, made when it is not there; an error of `make` is kept by nobody."""
        if key in self._tiles:
            self._tiles.move_to_end(key)
            return self._tiles[key]
        tile = self._tiles[key] = make()
        self._bytes += tile.nbytes
        while self._bytes > self._most and len(self._tiles) > 1:
            _, old = self._tiles.popitem(last=False)
            self._bytes -= old.nbytes
        return tile


@dataclass(frozen=True, eq=False)
class Mosaic:
    """The tiles of one level.

    Attributes:
        shape: rows and columns of the level.
        tile: rows and columns of a tile.
        places: ``[n, 2]``, row and column of the first pixel of each tile.
        decode: tile number -> ``[*tile, 3]``.
        buckets: tile numbers by the (row, column) of tiles that their first pixel falls into.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    places: npt.NDArray[np.int64]
    decode: Callable[[int], Colours]
    buckets: dict[tuple[int, int], list[int]]

    @classmethod
    def of(
        cls,
        shape: tuple[int, int],
        tile: tuple[int, int],
        places: npt.NDArray[np.int64],
        decode: Callable[[int], Colours],
    ) -> Mosaic:
        """Return the level with its tiles sorted into buckets."""
        buckets = defaultdict(list)
        for number, (row, column) in enumerate(places.tolist()):
            buckets[row // tile[0], column // tile[1]].append(number)
        return cls(shape, tile, places, decode, dict(buckets))

    def read(self, row: int, column: int, height: int, width: int, cache: TileCache, key: int) -> Colours:
        """Return ``[height, width, 3]`` of a rectangle within the level; tiles that are not stored are white.

        Args:
            row: of the first pixel.
            column: likewise.
            height: pixels.
            width: likewise.
            cache: of decoded tiles.
            key: of this level in the cache.
        """
        pixels = np.full((height, width, 3), 255, np.uint8)
        rows = range((row - self.tile[0] + 1) // self.tile[0], (row + height - 1) // self.tile[0] + 1)
        columns = range((column - self.tile[1] + 1) // self.tile[1], (column + width - 1) // self.tile[1] + 1)
        for number in (n for r in rows for c in columns for n in self.buckets.get((r, c), ())):
            first_row, first_column = self.places[number].tolist()
            top, left = max(first_row, row), max(first_column, column)
            bottom = min(first_row + self.tile[0], row + height)
            right = min(first_column + self.tile[1], column + width)
            if bottom <= top or right <= left:
                continue

            def make(number: int = number) -> Colours:
                return self.decode(number)

            stored = cache.get((key, number), make)
            pixels[top - row : bottom - row, left - column : right - column] = stored[
                top - first_row : bottom - first_row, left - first_column : right - first_column
            ]
        return pixels
