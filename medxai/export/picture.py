"""A mosaic as PNG: the slices that carry the evidence, each as image and as image with evidence."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.export.colours import UInt8, blend
from medxai.export.display import View, evidence_curve, frames, plane, rgb_plane, spread, view_of, window_of
from medxai.export.lettering import AMBER, FAINT, GROUND, INK, bar, write_text
from medxai.export.naming import NOTICE, chosen, is_hidden, method_title, percent, stem, trust_line
from medxai.export.provenance import cell_text
from medxai.export.slide import reduced
from medxai.export.slide_summary import tiles_line
from medxai.files import write_bytes
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

ROLE = "picture"

_EDGE, _GAP, _HEADER, _CAPTION, _SIDE = 28, 14, 136, 24, 84


def applies(result: Result) -> str | None:
    """Return None: every image can be drawn."""
    return None if result.explanations else "there is no explanation"


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write one mosaic per chosen explanation and return the paths."""
    result, paths = reduced(result), []
    for explanation in chosen(result, options):
        stream = io.BytesIO()
        mosaic(result, explanation, options).save(stream, format="PNG", compress_level=6)
        paths.append(write_bytes(folder / f"{stem(ROLE, explanation)}.png", stream.getvalue()))
    return paths


def mosaic(result: Result, explanation: Explanation, options: ExportOptions) -> Image:
    """Return the mosaic as an RGB picture.

    Slices are shown in the conventional view (see `view_of`), in true proportions and in the order of the study;
    the one with the strongest evidence has an amber frame.
    """
    from PIL import Image, ImageDraw

    volume = result.study.volume
    values = explanation.normalised()
    if is_hidden(result.trust_of(explanation), options):
        values = np.zeros_like(values)
    curve = evidence_curve(volume, values)
    indices = spread(curve, options.picture_slices)
    view, window = view_of(volume), window_of(volume, result.model_window)
    rows, columns = view.apply(np.empty(volume.shape[-2:], dtype=np.uint8)).shape
    side = {1: 620, 2: 420, 3: 340, 4: 340}.get(len(indices), 240)
    width, height = view.size(rows, columns, side)
    across = _across(len(indices), 2 * width / (height + _CAPTION))
    down = -(-len(indices) // across)
    block_w, block_h = 2 * width + 4, height + _CAPTION
    grid_w, grid_h = across * block_w + (across - 1) * _GAP, down * block_h + (down - 1) * _GAP
    total_w = max(grid_w + 2 * _EDGE + _SIDE, 980)
    canvas = Image.new("RGB", (total_w, _HEADER + grid_h + _EDGE + 26), GROUND)
    draw = ImageDraw.Draw(canvas)
    _header(draw, result, explanation, total_w)
    left0 = _EDGE + (total_w - _SIDE - 2 * _EDGE - grid_w) // 2
    strongest = int(curve.argmax())
    for number, index in enumerate(indices):
        x = left0 + (number % across) * (block_w + _GAP)
        y = _HEADER + (number // across) * (block_h + _GAP)
        base = view.apply(rgb_plane(volume, index, window))
        here = np.ascontiguousarray(view.apply(plane(volume, values, index)))
        mixed = blend(np.ascontiguousarray(base), here, options.overlay_opacity)
        for offset, tile in ((0, base), (width + 4, mixed)):
            canvas.paste(_resized(tile, width, height), (x + offset, y))
        peak = float(curve.max(initial=0.0)) > 0 and index == strongest and frames(volume) > 1
        if peak:
            draw.rectangle((x - 3, y - 3, x + block_w + 2, y + height + 2), outline=AMBER, width=2)
        _letters(draw, view, x, y, width, height)
        _caption(draw, result, index, float(curve[index]), x, y + height + 5, peak)
    _scale(canvas, draw, options.overlay_opacity, total_w, grid_h)
    _footer(draw, result, explanation, canvas.size)
    return canvas


def _across(count: int, proportion: float) -> int:
    """Return the number of blocks per row that brings the mosaic nearest to a 16:9 screen."""
    return min(range(1, count + 1), key=lambda n: (abs(np.log(n * proportion / -(-count // n) / 1.7)), n))


def _resized(tile: UInt8, width: int, height: int) -> Image:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(tile))
    return image.resize((width, height), Image.Resampling.LANCZOS if image.width > width else Image.Resampling.BICUBIC)


def _header(draw: ImageDraw, result: Result, explanation: Explanation, total: int) -> None:
    decided = result.prediction
    probability = float(decided.probabilities[explanation.class_index])
    room = total - 2 * _EDGE - 330
    end = _EDGE + write_text(draw, (_EDGE, 26), explanation.class_label, 32, INK, room=room)
    write_text(draw, (end + 18, 26), percent(probability), 32, AMBER)
    if explanation.class_index != decided.index:
        text = f"evidence for this class; the decision is {decided.label} ({percent(decided.probability)})"
        write_text(draw, (_EDGE, 111), text, 14, FAINT)
    cell = cell_text(result, explanation)
    line = f"{method_title(explanation.method)} at layer {explanation.layer}, one cell = {cell}"
    write_text(draw, (_EDGE, 69), line, 16, FAINT, room=total - 2 * _EDGE)
    _badge(draw, total - _EDGE, 28)
    report = result.trust_of(explanation)
    if report is not None:
        colour = FAINT if report.verdict == "supported" else AMBER
        write_text(draw, (_EDGE, 90), trust_line(report), 15, colour, room=total - 2 * _EDGE)


def _badge(draw: ImageDraw, right: int, top: int) -> None:
    width = 268
    draw.rounded_rectangle((right - width, top, right, top + 30), 15, outline=AMBER, width=1)
    write_text(draw, (right - width / 2, top + 15), NOTICE, 16, AMBER, anchor="mm")


def _letters(draw: ImageDraw, view: View, x: int, y: int, width: int, height: int) -> None:
    places = (
        (view.left, (x + 5, y + height / 2), "lm"),
        (view.right, (x + width - 5, y + height / 2), "rm"),
        (view.top, (x + width / 2, y + 4), "mt"),
        (view.bottom, (x + width / 2, y + height - 4), "mb"),
    )
    for text, at, anchor in places:
        if text:
            write_text(draw, (at[0] + 1, at[1] + 1), text, 14, (0, 0, 0), anchor=anchor)
            write_text(draw, at, text, 14, INK, anchor=anchor)


def _caption(draw: ImageDraw, result: Result, index: int, value: float, x: int, y: int, peak: bool) -> None:
    volume = result.study.volume
    if frames(volume) == 1:
        write_text(draw, (x, y), "image" if result.prediction.tiles is None else tiles_line(result), 14, FAINT)
        return
    name = "frame" if volume.axes == "THW" else "slice"
    end = write_text(draw, (x, y), f"{name} {index + 1} / {frames(volume)}", 14, INK if peak else FAINT)
    text = f"evidence {value:.2f}" + (", strongest" if peak else "")
    write_text(draw, (x + end + 12, y), text, 14, AMBER if peak else FAINT)


def _scale(canvas: Image, draw: ImageDraw, opacity: float, total: int, grid_h: int) -> None:
    from PIL import Image

    length = min(grid_h, 300)
    x, y = total - _EDGE - 52, _HEADER + (grid_h - length) // 2
    canvas.paste(Image.fromarray(bar(length, 18, opacity)), (x, y))
    for share in (1.0, 0.75, 0.5, 0.25, 0.0):
        at = y + round((1.0 - share) * (length - 1))
        draw.line((x + 18, at, x + 23, at), fill=FAINT)
        write_text(draw, (x + 27, at), f"{share:g}", 14, INK if share in (0.0, 1.0) else FAINT, anchor="lm")


def _footer(draw: ImageDraw, result: Result, explanation: Explanation, size: tuple[int, int]) -> None:
    text = f"{result.prediction.model}, case {result.study.key}. Evidence is relative to its maximum in this study."
    if "empty" in explanation.flags or float(explanation.map.max(initial=0.0)) <= 0:
        text = f"No positive evidence: {explanation.reason or 'the map is zero everywhere'}. {text}"
    write_text(draw, (_EDGE, size[1] - 16), text, 14, FAINT, anchor="ls", room=size[0] - 2 * _EDGE)
