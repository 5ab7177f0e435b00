"""A slide at a glance: its thumbnail with the outline of the tissue, the tiles, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medxai.export.lettering import GROUND, INK, write_text
from medxai.export.outlines import outlines
from medxai.export.slide import LONGEST_PICTURE
from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.survey import Survey
from medxai.ingest.slides.thumbnail import thumbnail
from medxai.ingest.slides.tiles import TileGrid
from medxai.ingest.slides.tissue import Tissue

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

#: Colours that are neither those of stains nor mistaken for each other when colours are seen poorly; after Wong 2011.
_COLOURS = {
    "good": (0, 158, 115),
    "blurred": (230, 159, 0),
    "ink": (0, 114, 178),
    "fold": (204, 0, 102),
    "unreadable": (0, 0, 0),
    "not looked at": (150, 150, 150),
}
_OUTLINE = (20, 20, 20)
_FOOT, _LETTERS = 44, 16
_LEAST_WIDTH = 900
#: Small slides are shown larger, to this length of the longer side.
_SHORTEST_PICTURE = 800


def overview(slide: Slide, tissue: Tissue, grid: TileGrid, found: Survey) -> Image:
    """Return the picture, RGB, at most `LONGEST_PICTURE` pixels on the longer side.

    Args:
        slide: open.
        tissue: whose outline is drawn.
        grid: all tiles; those that `found` did not look at are grey.
        found: quality of tiles.
    """
    from PIL import Image as Pictures
    from PIL import ImageDraw as Drawing

    finest = slide.levels[0]
    picture, per_um = backdrop(slide)
    width, height = picture.size
    canvas = Pictures.new("RGB", (max(width, _LEAST_WIDTH), height + _FOOT), GROUND)
    canvas.paste(picture, (0, 0))
    draw = Drawing.Draw(canvas)
    scale = tissue.mpp * per_um
    for points in outlines(tissue.mask.astype(np.float32), 0.5):
        draw.line([(float(x) * scale, float(y) * scale) for x, y in points], fill=_OUTLINE, width=3)
    words = _words(grid, found)
    per_pixel = np.array([height, width]) / np.asarray(finest.shape)
    corners = grid.finest(slide) * np.concatenate([per_pixel, per_pixel])
    # Where tiles overlap, those with a fault are to be seen.
    order = ["not looked at", *_COLOURS]
    for number in sorted(range(len(grid)), key=lambda n: order.index(words[n])):
        top, left, bottom, right = (float(v) for v in corners[number])
        # Tiles may reach over the edge of the slide.
        last_column, last_row = min(right, width) - 2, min(bottom, height) - 2
        frame = (left + 1, top + 1, max(last_column, left + 2), max(last_row, top + 2))
        draw.rectangle(frame, outline=_COLOURS[words[number]], width=2)
    _legend(draw, words, height)
    return canvas


def backdrop(slide: Slide) -> tuple[Image, float]:
    """Return the slide as a picture to draw on, RGB, and its pixels on a micrometre.

    Args:
        slide: open; small ones are enlarged to `_SHORTEST_PICTURE`, large ones reduced to `LONGEST_PICTURE`.
    """
    from PIL import Image as Pictures

    finest = slide.levels[0]
    longest = max(side * mpp for side, mpp in zip(finest.shape, finest.mpp, strict=True)) / max(finest.mpp)
    small = thumbnail(slide, longest=min(LONGEST_PICTURE, int(longest)))
    zoom = max(1.0, _SHORTEST_PICTURE / max(small.pixels.shape[:2]))
    height, width = (round(side * zoom) for side in small.pixels.shape[:2])
    picture = Pictures.fromarray(small.pixels).resize((width, height), Pictures.Resampling.BICUBIC)
    return picture, zoom / small.mpp


def _words(grid: TileGrid, found: Survey) -> list[str]:
    known = {int(tile.number): "unreadable" for tile in found.failed}
    quality = found.quality
    for number, blurred, inked, folded in zip(
        found.grid.numbers.tolist(), quality.blurred, quality.inked, quality.folded, strict=True
    ):
        known[number] = "ink" if inked else "fold" if folded else "blurred" if blurred else "good"
    return [known.get(number, "not looked at") for number in grid.numbers.tolist()]


def _legend(draw: ImageDraw, words: list[str], height: int) -> None:
    x = 14.0
    for word, colour in _COLOURS.items():
        count = words.count(word)
        if not count:
            continue
        draw.rectangle((x, height + 14, x + 16, height + 30), outline=INK, fill=colour)
        x += 24 + write_text(draw, (x + 24, height + 13), f"{word} {count}", _LETTERS) + 24
