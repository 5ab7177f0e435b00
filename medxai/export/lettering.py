"""Text and colour bars drawn into pictures, with the font that Pillow carries."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from medxai.export.colours import UInt8, alpha, heat
from medxai.export.naming import ascii_text

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

INK = (232, 237, 243)
FAINT = (139, 152, 168)
AMBER = (255, 196, 92)
GROUND = (11, 15, 20)


@cache
def font(size: int) -> FreeTypeFont | ImageFont:
    """Return Pillow's own font at `size` pixels: the same letters on every machine."""
    from PIL import ImageFont as Fonts

    return Fonts.load_default(size)


def write_text(
    draw: ImageDraw, at: tuple[float, float], text: str, size: int, colour: tuple[int, int, int] = INK,
    *, anchor: str = "la", room: int | None = None,
) -> float:  # fmt: skip
    """Draw one line and return its width in pixels.

    Args:
        draw: canvas.
        at: anchor position (x, y).
        text: converted to ASCII.
        size: height of the font in pixels.
        colour: RGB.
        anchor: Pillow text anchor.
        room: width to stay within; longer text loses its end.
    """
    face = font(size)
    line = ascii_text(text, 400)
    while room is not None and len(line) > 4 and draw.textlength(line, font=face) > room:
        line = line[:-4].rstrip() + "..."
    draw.text(at, line, font=face, fill=colour, anchor=anchor)
    return float(draw.textlength(line, font=face))


def wrap(text: str, size: int, room: int) -> list[str]:
    """Break `text` into lines of at most `room` pixels, at spaces where there are any; nothing is lost."""
    face = font(size)
    lines = [""]
    for word in ascii_text(text, 400).split():
        if lines[-1] and face.getlength(f"{lines[-1]} {word}") > room:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while face.getlength(lines[-1]) > room and len(lines[-1]) > 1:  # one word wider than the line
            fits = max(n for n in range(1, len(lines[-1])) if n == 1 or face.getlength(lines[-1][:n]) <= room)
            lines[-1:] = [lines[-1][:fits], lines[-1][fits:]]
    return lines


def bar(height: int, width: int, opacity: float, ground: int = 70) -> UInt8:
    """Return a vertical colour bar ``[height, width, 3]``: 1 at the top, over mid-grey as anatomy would be.

    Args:
        height: pixels.
        width: pixels.
        opacity: of the strongest evidence, as in the pictures.
        ground: grey beneath.
    """
    values = np.linspace(1.0, 0.0, height, dtype=np.float32)
    weight = alpha(values, opacity)[:, np.newaxis]
    column = heat(values).astype(np.float32) * weight + ground * (1.0 - weight)
    return np.repeat(np.rint(column).astype(np.uint8)[:, np.newaxis, :], width, axis=1)
