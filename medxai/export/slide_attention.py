"""What decided a slide beside what its map shows: attention over tiles against their evidence."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from medxai.export.colours import heat
from medxai.export.inlined import png_uri
from medxai.export.naming import method_title
from medxai.study import Explanation, FloatArray, Result, SlideTiles
from medxai.trust.ranks import rank_correlation

#: Share of the tiles that count as those of most attention, and of most evidence.
TOP = 0.1
_BACKGROUND = (14, 18, 24)
#: Longest side of a grid in pixels.
_SIDE = 360


def tile_evidence(explanation: Explanation) -> FloatArray:
    """``[n]`` mean positive evidence of each tile.

    Args:
        explanation: of a slide that was decided tile by tile.
    """
    evidence: FloatArray = np.maximum(explanation.raw, 0).mean((1, 2), dtype=np.float32)
    return evidence


def compared(result: Result) -> dict[str, Any] | None:
    """Attention against the evidence of the primary map, for the page; None where no attention decided.

    Args:
        result: with an explanation.

    Returns:
        ``words`` in a sentence, ``correlation`` (Spearman, over tiles; NaN where one is constant), ``shared``: how many
        of the ``top`` tiles of most attention are among as many of most evidence, and ``pictures``: both on the grid of
        tiles as data URIs, white hottest.
    """
    tiles = result.prediction.tiles
    if tiles is None or tiles.attention is None:
        return None
    explanation = result.explanations[0]
    evidence = tile_evidence(explanation)
    n = len(tiles.numbers)
    top = max(1, round(TOP * n))
    first, second = (set(np.argsort(-values, kind="stable")[:top].tolist()) for values in (tiles.attention, evidence))
    shared, rho = len(first & second), rank_correlation(tiles.attention, evidence)
    share = float(tiles.attention[sorted(first)].sum())
    alike = "cannot be compared in order" if rho != rho else f"agree in order with {rho:.2f} (Spearman, {n} tiles)"
    words = (
        f"The {top} tile{'' if top == 1 else 's'} of most attention decided with {share:.0%} of the weight; {shared} "
        f"of them {'is' if shared == 1 else 'are'} among the {top} of most evidence for {explanation.class_label}. "
        f"Attention and evidence {alike}."
    )
    pictures = [
        {"words": name, "image": _picture(tiles, values)}
        for name, values in (
            ("attention of the decision", tiles.attention),
            (f"evidence, {method_title(explanation.method)}", evidence),
        )
    ]
    return {"words": words, "correlation": rho, "top": top, "shared": shared, "pictures": pictures}


def _picture(tiles: SlideTiles, values: FloatArray) -> str:
    """The grid of tiles, each in the colour of its value over the largest, as a PNG in a data URI."""
    from PIL import Image

    down, across = tiles.shape
    grid = np.full((down, across, 3), _BACKGROUND, np.uint8)
    top = float(values.max(initial=0.0)) or 1.0
    grid[tiles.numbers // across, tiles.numbers % across] = heat((values / np.float32(top)).astype(np.float32))
    side = max(1, _SIDE // max(down, across))
    image = Image.fromarray(grid).resize((across * side, down * side), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return png_uri(stream.getvalue())
