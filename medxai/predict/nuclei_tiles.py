"""The tiles in which nuclei of a slide are looked for: cores that touch, each seen with a margin."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.scaled import scaled_shape
from medxai.ingest.slides.tiles import TileBatch, TileGrid, tile_grid
from medxai.ingest.slides.tissue import LEAST_AREA_UM2, MASK_MPP, Tissue, find_tissue

#: Pixels of a side of the core of a tile, and of its margin in nuclear radii.
CORE, MARGIN_RADII = 448, 4
#: Share of a core that has to be tissue: nuclei at the edge of tissue count.
LEAST_TISSUE = 0.02
#: Of a plain picture, the mask of tissue has at least so many pixels on a side, and a part of it so much of its area.
_LEAST_MASK, _LEAST_PART = 64, 0.01

#: How many times fields of a slide that is coarser than the network may be enlarged.
MOST_ENLARGED = 2.5

#: Top, left, height and width in pixels of the finest level.
Region = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class NucleiTiles:
    """What is looked at.

    Attributes:
        cores: tiles that touch.
        margin: wanted pixels around a core that are looked at with it.
        tissue: of the slide.
        region: see `Region`, or None for the whole slide.
    """

    cores: TileGrid
    margin: int
    tissue: Tissue = field(repr=False)
    region: Region | None = None

    @property
    def seen(self) -> TileGrid:
        """The same tiles with their margin; places may be negative."""
        return replace(self.cores, places=self.cores.places - self.margin, size=self.cores.size + 2 * self.margin)


def tissue_of(slide: Slide) -> Tissue:
    """Where tissue lies; of a plain picture, which may be smaller than a part of tissue on a slide, more finely.

    Raises:
        IngestError: there is none.
    """
    if slide.kind != "picture":
        return find_tissue(slide)
    finest = slide.levels[0]
    sides = [pixels * mpp for pixels, mpp in zip(finest.shape, finest.mpp, strict=True)]
    mpp = max(*finest.mpp, min(MASK_MPP, min(sides) / _LEAST_MASK))
    return find_tissue(slide, mpp=mpp, least_area_um2=min(LEAST_AREA_UM2, _LEAST_PART * sides[0] * sides[1]))


def scale_of(slide: Slide, mpp: float) -> float:
    """Micrometres per pixel that tiles are taken at: those of the network, or of a slide that is coarser.

    Args:
        slide: open.
        mpp: of the network.

    Raises:
        IngestError: the slide is more than `MOST_ENLARGED` times as coarse.
    """
    finest = max(slide.levels[0].mpp)
    if finest > mpp * MOST_ENLARGED:
        msg = (
            f"nuclei are outlined at {mpp:g} um per pixel, and the slide has {finest:.3g}: more than {MOST_ENLARGED:g} "
            "times is not enlarged; take a finer scan"
        )
        raise IngestError(msg, study=slide.name)
    return max(mpp, finest)


def plan_tiles(
    slide: Slide, tissue: Tissue, *, mpp: float, radius: float, region: Region | None = None, most: int | None = None,
    core: int = CORE,
) -> NucleiTiles:  # fmt: skip
    """Lay touching tiles over the tissue.

    Args:
        slide: open.
        tissue: of it.
        mpp: micrometres per pixel of the tiles, see `scale_of`.
        radius: of a nucleus in wanted pixels.
        region: to be looked at alone.
        most: tiles, spread over the order; None for all.
        core: pixels of a side.

    Raises:
        IngestError: no level fits, there is no tissue, or none of it lies in the region.
    """
    cores = tile_grid(slide, tissue, size=core, mpp=mpp, least_tissue=LEAST_TISSUE)
    if region is not None:
        boxes = cores_within(slide, cores, region)
        cores = cores.take(np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])))
        if not len(cores):
            rows, columns = slide.levels[0].shape
            msg = (
                f"no tissue of the slide of {columns} x {rows} pixels lies in the region (top {region[0]}, left "
                f"{region[1]}, height {region[2]}, width {region[3]})"
            )
            raise IngestError(msg, study=slide.name)
    if most is not None:
        cores = cores.spread(most)
    margin = int(np.ceil(MARGIN_RADII * radius / 32)) * 32
    return NucleiTiles(cores, margin, tissue, region)


def field_pixels(slide: Slide, batch: TileBatch, number: int, grid: TileGrid) -> npt.NDArray[np.float32]:
    """Pixels ``[3, s, s]`` in 0..1 of a tile of a batch, mirrored where it reaches over the edge of the slide."""
    (top, left), (bottom, right) = inside(slide, grid, batch.places[number])
    tile = batch.tiles[number]
    pads = ((0, 0), (top, tile.shape[1] - bottom), (left, tile.shape[2] - right))
    return np.asarray(np.pad(tile[:, top:bottom, left:right], pads, mode="reflect"), np.float32)


def inside(slide: Slide, grid: TileGrid, place: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``[2, 2]`` first and last row and column of a tile that lie on the slide, in pixels of the tile."""
    shape = np.asarray(scaled_shape(slide, grid.choice))
    return np.clip(np.stack([-place, shape - place]), 0, grid.size)


def finest_per_wanted(slide: Slide, grid: TileGrid) -> npt.NDArray[np.float64]:
    """``[2]`` pixels of the finest level on the side of a wanted one, along rows and columns."""
    level = slide.levels[grid.choice.level]
    scale = np.asarray(slide.levels[0].shape) / np.asarray(level.shape) / np.asarray(grid.choice.factor)
    return np.asarray(scale, np.float64)


def cores_within(slide: Slide, cores: TileGrid, region: Region | None) -> npt.NDArray[np.float64]:
    """``[m, 4]`` top, left, bottom, right of cores in pixels of the finest level, cut to slide and region."""
    low, high = np.zeros(2), np.asarray(slide.levels[0].shape, np.float64)
    if region is not None:
        low = np.maximum(low, region[:2])
        high = np.minimum(high, np.add(region[:2], region[2:]))
    boxes = cores.finest(slide)
    return np.concatenate([np.maximum(boxes[:, :2], low), np.minimum(boxes[:, 2:], high)], axis=1)
