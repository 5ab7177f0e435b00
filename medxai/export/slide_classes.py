"""Which class every tile of a slide has and how surely, as a picture; and the tiles that are shown as examples."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from medxai.export.naming import percent
from medxai.study import Result, SlideTiles

Picture = npt.NDArray[np.uint8]
#: Colours that are told apart by the colour-blind (Okabe and Ito 2008); the first, grey, is for the first class.
COLOURS = ((150, 160, 170), (230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66))
_BACKGROUND = (14, 18, 24)
#: Longest side of the grid in pixels, and a line of the legend.
_SIDE, _LINE = 480, 18


def shown_groups(result: Result, tiles: SlideTiles) -> list[tuple[str, list[tuple[str, Picture]]]]:
    """The tiles that are shown, by group: its name, and of each tile words and picture ``[s, s, 3]``.

    The words give the probability of the group's class, in the group of those least sure that of the likeliest, and
    the verdict about the tile's map where it was judged.

    Args:
        result: of a slide that was decided tile by tile.
        tiles: of it.
    """
    each, labels = result.prediction.window_probabilities, result.prediction.labels
    assert each is not None  # noqa: S101
    verdicts = {n: report.verdict for n, report in tiles.trust}
    groups: dict[str, list[tuple[str, Picture]]] = {}
    for which, title, picture in zip(tiles.shown.tolist(), tiles.shown_as, tiles.pictures, strict=True):
        label = title.partition(" ")[2]
        index = labels.index(label) if label in labels else int(each[which].argmax())
        name = "" if label in labels else f" {labels[index]}"
        words = f"tile {tiles.numbers[which]}: {percent(float(each[which, index]))}{name}"
        words += f", map {verdicts[which]}" if which in verdicts else ""
        groups.setdefault(title, []).append((words, picture))
    return list(groups.items())


def class_picture(result: Result, tiles: SlideTiles) -> bytes:
    """A PNG: the grid of tiles, each in the colour of its class, fainter the less sure, with a legend.

    Args:
        result: of a slide that was decided tile by tile.
        tiles: of it.
    """
    from PIL import Image, ImageDraw

    each, labels = result.prediction.window_probabilities, result.prediction.labels
    assert each is not None  # noqa: S101
    down, across = tiles.shape
    chance = 1 / len(labels)
    sure = np.clip((each.max(1) - chance) / (1 - chance), 0, 1)[:, None] * 0.8 + 0.2
    own = np.array([COLOURS[n % len(COLOURS)] for n in each.argmax(1).tolist()], np.float32)
    grid = np.full((down, across, 3), _BACKGROUND, np.uint8)
    mixed = own * sure + np.array(_BACKGROUND, np.float32) * (1 - sure)
    grid[tiles.numbers // across, tiles.numbers % across] = np.rint(mixed).astype(np.uint8)
    side = max(1, _SIDE // max(down, across))
    plane = Image.fromarray(grid).resize((across * side, down * side), Image.Resampling.NEAREST)
    image = Image.new("RGB", (max(plane.width, 200), plane.height + _LINE * len(labels) + 4), _BACKGROUND)
    image.paste(plane, (0, 0))
    draw = ImageDraw.Draw(image)
    for n, label in enumerate(labels):
        above = plane.height + 4 + n * _LINE
        draw.rectangle((4, above + 2, 16, above + 14), fill=COLOURS[n % len(COLOURS)])
        draw.text((22, above + 2), label, fill=(210, 214, 220))
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()
