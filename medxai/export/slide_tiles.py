"""The tiles of a slide: a table, GeoJSON for QuPath, and a picture of the most and the least typical ones."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from medxai.export.colours import heat
from medxai.export.naming import NOTICE, chosen, is_hidden, method_title, stem
from medxai.export.outlines import outlines
from medxai.export.slide_attention import tile_evidence
from medxai.export.slide_classes import class_picture, shown_groups
from medxai.files import write_bytes, write_text
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result, SlideTiles

ROLE = "slide_tiles"
_GAP, _LINE = 6, 34


def applies(result: Result) -> str | None:
    """Return None for a slide that was decided tile by tile, otherwise the reason why not."""
    return None if result.prediction.tiles is not None else "no whole slide, or not decided tile by tile"


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the tables, for each chosen explanation its outlines as GeoJSON, and the pictures once."""
    tiles = result.prediction.tiles
    assert tiles is not None  # noqa: S101
    paths = [write_text(folder / f"{ROLE}.tsv", table(result, tiles))]
    if tiles.trust:
        paths.append(write_text(folder / f"{ROLE}_trust.tsv", trust_table(tiles)))
    for explanation in chosen(result, options):
        if not is_hidden(result.trust_of(explanation), options):
            paths.append(
                write_text(folder / f"{stem(ROLE, explanation)}.geojson", geojson(result, explanation, options))
            )
    if len(tiles.shown):
        paths.append(write_bytes(folder / f"{ROLE}.png", typical(result, tiles)))
    paths.append(write_bytes(folder / f"{ROLE}_classes.png", class_picture(result, tiles)))
    return paths


def table(result: Result, tiles: SlideTiles) -> str:
    """One line a tile: place in pixels of the finest level, probabilities, evidence, attention, tissue, quality."""
    prediction = result.prediction
    assert prediction.window_probabilities is not None  # noqa: S101
    heads = ["tile", "top", "left", "bottom", "right", *(f"p_{name}" for name in prediction.labels)]
    heads += [f"evidence_{item.method}" for item in result.explanations]
    heads += ["tissue", "flags"] if tiles.attention is None else ["attention", "tissue", "flags"]
    lines = ["\t".join(heads)]
    evidence = [tile_evidence(item) for item in result.explanations]
    for n, number in enumerate(tiles.numbers.tolist()):
        cells = [str(number), *(f"{v:.1f}" for v in tiles.boxes[n])]
        cells += [f"{p:.5f}" for p in prediction.window_probabilities[n]]
        cells += [f"{values[n]:.5g}" for values in evidence]
        cells += [] if tiles.attention is None else [f"{tiles.attention[n]:.5g}"]
        cells += [f"{tiles.tissue[n]:.3f}", tiles.flags[n] or "n/a"]
        lines.append("\t".join(cells))
    lines += [f"# {reason}" for reason in tiles.failed]
    return "\n".join(lines) + "\n"


def trust_table(tiles: SlideTiles) -> str:
    """One line for each tile that was judged: verdict, index and every figure of the trust gate, and why."""
    names = list(dict.fromkeys(name for _, report in tiles.trust for name in report.figures))
    lines = ["\t".join(["tile", "verdict", "index", *names, "reasons"])]
    for n, report in tiles.trust:
        cells = [str(tiles.numbers[n]), report.verdict, f"{report.index:.4g}"]
        cells += [f"{report.figures.get(name, float('nan')):.4g}" for name in names]
        lines.append("\t".join([*cells, "; ".join(report.reasons) or "n/a"]))
    return "\n".join(lines) + "\n"


def geojson(result: Result, explanation: Explanation, options: ExportOptions) -> str:
    """Outlines of the bands as a FeatureCollection in pixels of the finest level, as QuPath imports it."""
    tiles = result.prediction.tiles
    assert tiles is not None  # noqa: S101
    down, across = explanation.input_map.shape[0] / tiles.shape[0], explanation.input_map.shape[1] / tiles.shape[1]
    side = tiles.boxes[0, 2:] - tiles.boxes[0, :2]
    scale = np.array([side[1] / across, side[0] / down])  # pixels of a cell, x and y
    top = float(explanation.input_map.max(initial=0.0)) or 1.0
    features: list[dict[str, Any]] = []
    for band in options.bands:
        red, green, blue = (int(v) for v in heat(np.float32((band + 1) / 2)))
        for points in outlines((explanation.input_map / np.float32(top)).astype(np.float32), band):
            at = np.round(points * scale, 1).tolist()
            features.append({
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [at]},
                "properties": {
                    "objectType": "annotation",
                    "name": f"{method_title(explanation.method)} {explanation.class_label} >= {band:g} (explanation)",
                    "classification": {"name": f"evidence >= {band:g}", "color": [red, green, blue]},
                },
            })  # fmt: skip
    about = {"notice": NOTICE, "model": result.prediction.model, "decided": result.prediction.label}
    return json.dumps({"type": "FeatureCollection", "features": features, "properties": about}, indent=1) + "\n"


def typical(result: Result, tiles: SlideTiles) -> bytes:
    """A PNG: the tiles that speak most and least for the explained class, most for others, and those least sure."""
    from PIL import Image, ImageDraw

    size, groups = tiles.pictures.shape[1], shown_groups(result, tiles)
    across = max(len(group) for _, group in groups)
    width, height = across * (size + _GAP) + _GAP, len(groups) * (size + _LINE + _GAP) + _GAP
    image = Image.new("RGB", (width, height), (14, 18, 24))
    draw = ImageDraw.Draw(image)
    for row, (title, group) in enumerate(groups):
        above = _GAP + row * (size + _LINE + _GAP)
        draw.text((_GAP, above + 2), title, fill=(244, 190, 90))
        for column, (words, picture) in enumerate(group):
            left = _GAP + column * (size + _GAP)
            draw.text((left, above + 17), words, fill=(210, 214, 220))
            image.paste(Image.fromarray(picture), (left, above + _LINE))
    stream = io.BytesIO()
    image.save(stream, format="PNG", compress_level=6)
    return stream.getvalue()
