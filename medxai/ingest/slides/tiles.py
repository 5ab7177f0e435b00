"""The tiles of a slide: an ordered grid over the tissue, and the stream of their pixels in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.choose import MOST_ENLARGED, TOLERANCE, LevelChoice, choose_level
from medxai.ingest.slides.level import Colours, Slide
from medxai.ingest.slides.scaled import read_scaled, scaled_shape
from medxai.ingest.slides.tissue import Mask, Tissue

#: Share of a tile that has to be tissue.
LEAST_TISSUE = 0.5


@dataclass(frozen=True, eq=False)
class TileGrid:
    """Places of square tiles, row by row.

    Coordinates are (row, column) in wanted pixels from the corner of the slide: micrometres are `mpp` times them where
    nothing was left at the tolerance, and pixels of the level are them divided by the factor.

    Attributes:
        choice: level and factor.
        size: pixels of a side of a tile.
        step: pixels from tile to tile.
        shape: rows and columns of the grid, kept and left-out places together.
        numbers: ``[n]``, place in the whole grid counted row by row; the name of a tile, also in a shard.
        places: ``[n, 2]``, row and column of the first pixel.
        shares: ``[n]``, share of the tile that is tissue.
    """

    choice: LevelChoice
    size: int
    step: int
    shape: tuple[int, int]
    numbers: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    shares: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.numbers)

    def shards(self, count: int) -> list[TileGrid]:
        """Return `count` grids of neighbouring tiles that together are this one, of sizes that differ by one at most.

        What was done shard by shard can be gone on with: the same slide and settings give the same shards.
        """
        if count < 1:
            msg = f"a grid has at least one shard, not {count}"
            raise IngestError(msg)
        ends = [len(self) * number // count for number in range(count + 1)]
        return [self.take(slice(*pair)) for pair in pairwise(ends)]

    def take(self, which: slice | npt.NDArray[np.int64]) -> TileGrid:
        """Return the tiles at some positions of this grid."""
        return replace(self, numbers=self.numbers[which], places=self.places[which], shares=self.shares[which])

    def spread(self, most: int) -> TileGrid:
        """Return at most `most` tiles, evenly spread over the order."""
        if len(self) <= most:
            return self
        return self.take(np.rint(np.linspace(0, len(self) - 1, most)).astype(np.int64))

    def finest(self, slide: Slide) -> npt.NDArray[np.float64]:
        """Return ``[n, 4]``, top, left, bottom, right of the tiles in pixels of the finest level."""
        level = slide.levels[self.choice.level]
        scale = np.asarray(slide.levels[0].shape) / np.asarray(level.shape) / np.asarray(self.choice.factor)
        return np.concatenate([self.places * scale, (self.places + self.size) * scale], axis=1)


@dataclass(frozen=True)
class FailedTile:
    """A tile that could not be read.

    Attributes:
        number: in the grid.
        place: row and column in wanted pixels.
        reason: one line.
    """

    number: int
    place: tuple[int, int]
    reason: str


@dataclass(frozen=True, eq=False)
class TileBatch:
    """Neighbouring tiles.

    Attributes:
        tiles: ``[B, 3, size, size]`` RGB, float32 0..1 or uint8 0..255.
        numbers: ``[B]``, see `TileGrid`.
        places: ``[B, 2]``, row and column of the first pixel in wanted pixels.
        failed: tiles among and before these that could not be read.
    """

    tiles: npt.NDArray[Any]
    numbers: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    failed: tuple[FailedTile, ...] = ()


def tile_grid(
    slide: Slide, tissue: Tissue | None, *, size: int, mpp: float, step: int | None = None,
    least_tissue: float = LEAST_TISSUE, tolerance: float = TOLERANCE, most_enlarged: float = MOST_ENLARGED,
) -> TileGrid:  # fmt: skip
    """Lay tiles over a slide, the first at its corner, the last over its edge where needed.

    Args:
        slide: open.
        tissue: where it lies; None takes every tile.
        size: pixels of a side at `mpp`.
        mpp: micrometres per pixel of the tiles.
        step: pixels from tile to tile; None for tiles that touch.
        least_tissue: share of a tile that has to be tissue, 0..1; what lies outside the slide counts as none.
        tolerance: see `choose_level`.
        most_enlarged: see `choose_level`.

    Raises:
        IngestError: no level fits, a number is out of range, or no tile has enough tissue.
    """
    step = size if step is None else step
    if size < 1 or step < 1 or not 0 <= least_tissue <= 1:
        msg = f"size {size} and step {step} have to be at least 1, and the least share of tissue {least_tissue} in 0..1"
        raise IngestError(msg, study=slide.name)
    choice = choose_level(slide, mpp, tolerance=tolerance, most_enlarged=most_enlarged)
    rows, columns = scaled_shape(slide, choice)
    down, across = (1 + max(0, -(-(length - size) // step)) for length in (rows, columns))
    index = np.indices((down, across)).reshape(2, -1).T
    grid = TileGrid(
        choice=choice,
        size=size,
        step=step,
        shape=(down, across),
        numbers=np.arange(down * across),
        places=np.ascontiguousarray(index * step, np.int64),
        shares=np.ones(down * across, np.float32),
    )
    if tissue is None:
        return grid
    # The mask's pixels are squares of the slide; tiles are placed on it by their share of the level.
    extent = np.asarray(slide.levels[choice.level].shape) * np.asarray(slide.levels[choice.level].mpp) / tissue.mpp
    scale = extent / (np.asarray(slide.levels[choice.level].shape) * np.asarray(choice.factor))
    shares = shares_of(tissue.mask, grid.places * scale, (grid.places + size) * scale)
    grid = replace(grid, shares=shares.astype(np.float32))
    kept = grid.take(np.flatnonzero((shares >= least_tissue) & (shares > 0)))
    if len(kept) == 0:
        msg = (
            f"none of {len(grid)} tiles of {size} pixels at {mpp:g} um is tissue to {least_tissue:.0%} (the best has "
            f"{shares.max():.0%}): take smaller tiles or a lower share"
        )
        raise IngestError(msg, study=slide.name)
    return kept


def shares_of(mask: Mask, first: npt.NDArray[np.float64], last: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the share of each rectangle that a mask covers, to parts of its pixels; nothing lies outside of it.

    Args:
        mask: ``[H, W]``.
        first: ``[n, 2]``, top and left in pixels of the mask.
        last: ``[n, 2]``, bottom and right.
    """
    from scipy.ndimage import map_coordinates

    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(0).cumsum(1)

    def upto(row: npt.NDArray[np.float64], column: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(map_coordinates(sums, [row, column], order=1, mode="nearest"), np.float64)

    (top, left), (bottom, right) = first.T, last.T
    inside = upto(bottom, right) - upto(top, right) - upto(bottom, left) + upto(top, left)
    return np.asarray(np.clip(inside / np.prod(last - first, axis=1), 0.0, 1.0), np.float64)


def stream(
    slide: Slide, grid: TileGrid, batch: int = 32, *, as_float: bool = True,
    change: Callable[[Colours], Colours] | None = None,
) -> Iterator[TileBatch]:  # fmt: skip
    """Yield the tiles of a grid in its order; memory holds one batch and the last stored tiles.

    A tile that needs a damaged part of the slide is left out of the batch and told of as failed. A batch has fewer
    than `batch` tiles at the end only, and none when all of the last failed.

    Args:
        slide: open.
        grid: all tiles, or a shard of them.
        batch: tiles in a batch.
        as_float: float32 in 0..1 in place of uint8.
        change: colours of a tile ``[size, size, 3]`` -> the same shape, for colour management or stains.
    """
    if batch < 1:
        msg = f"a batch has at least one tile, not {batch}"
        raise IngestError(msg, study=slide.name)
    found: list[Colours] = []
    positions: list[int] = []
    failed: list[FailedTile] = []
    for position, (row, column) in enumerate(grid.places.tolist()):
        try:
            tile = read_scaled(slide, grid.choice, row, column, grid.size, grid.size)
        except TileError as error:
            failed.append(FailedTile(int(grid.numbers[position]), (row, column), error.reason))
            continue
        found.append(tile if change is None else change(tile))
        positions.append(position)
        if len(found) == batch:
            yield _batch(grid, found, positions, failed, as_float)
            found, positions, failed = [], [], []
    if found or failed:
        yield _batch(grid, found, positions, failed, as_float)


def _batch(
    grid: TileGrid, found: list[Colours], positions: list[int], failed: list[FailedTile], as_float: bool
) -> TileBatch:
    tiles: npt.NDArray[Any] = np.empty((len(found), 3, grid.size, grid.size), np.float32 if as_float else np.uint8)
    for into, tile in zip(tiles, found, strict=True):
        into[:] = tile.transpose(2, 0, 1)
    if as_float:
        tiles /= np.float32(255)
    which = np.asarray(positions, np.int64)
    return TileBatch(tiles, grid.numbers[which], grid.places[which], tuple(failed))
