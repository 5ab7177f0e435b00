"""Quality of the tiles of a slide, measured on all of them or on some that are spread over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.quality import Quality, TileMeasures, judge, measure_tile
from medxai.ingest.slides.tiles import FailedTile, TileGrid, stream
from medxai.ingest.slides.tissue import Tissue


@dataclass(frozen=True, eq=False)
class Survey:
    """What tiles are worth.

    Attributes:
        grid: the tiles that were measured, in their order.
        quality: of them.
        failed: tiles that could not be read.
    """

    grid: TileGrid
    quality: Quality
    failed: tuple[FailedTile, ...]


def survey(slide: Slide, grid: TileGrid, tissue: Tissue, *, most: int = 400) -> Survey:
    """Measure at most `most` tiles of a grid, evenly spread.

    Args:
        slide: open.
        grid: over its tissue.
        tissue: of the slide.
        most: tiles.
    """
    taken = grid.spread(most)
    level = slide.levels[taken.choice.level]
    mpp = float(np.mean(level.mpp) / np.mean(taken.choice.factor))
    measures: list[TileMeasures] = []
    numbers: list[int] = []
    failed: list[FailedTile] = []
    for batch in stream(slide, taken, batch=16, as_float=False):
        failed.extend(batch.failed)
        numbers.extend(batch.numbers.tolist())
        measures.extend(measure_tile(tile.transpose(1, 2, 0), mpp, tissue) for tile in batch.tiles)
    read = taken.take(np.flatnonzero(np.isin(taken.numbers, numbers)))
    return Survey(read, judge(measures), tuple(failed))
