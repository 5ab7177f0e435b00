"""What the tiles of a slide say together, for people: how many there are, and how much tissue each class has."""

from __future__ import annotations

from typing import Any

import numpy as np

from medxai.export.inlined import jpeg_uri, png_uri
from medxai.export.naming import percent
from medxai.export.slide_attention import compared
from medxai.export.slide_classes import class_picture, shown_groups
from medxai.study import Result

#: What tiles may be flagged as.
FLAGS = ("blurred", "pen", "fold", "unlike")
#: Why a slide has no DICOM objects beside its page.
NO_OBJECTS = (
    "None. Objects refer to a DICOM image, and this slide is in another format: convert it to DICOM first, and explain "
    "the converted one."
)


def tissue_shares(result: Result) -> dict[str, float]:
    """Share 0..1 of the tissue in tiles of each class; a tile counts with its tissue for its most probable class.

    Args:
        result: of a slide that was decided tile by tile.
    """
    tiles, each = result.prediction.tiles, result.prediction.window_probabilities
    assert tiles is not None and each is not None  # noqa: S101, PT018
    area = np.bincount(each.argmax(axis=1), weights=tiles.tissue, minlength=len(result.prediction.labels))
    return {name: float(part / (area.sum() or 1.0)) for name, part in zip(result.prediction.labels, area, strict=True)}


def tiles_line(result: Result) -> str:
    """One line: how many tiles decided, and how much of the tissue they gave to the decided class.

    Args:
        result: of a slide that was decided tile by tile.
    """
    tiles, label = result.prediction.tiles, result.prediction.label
    assert tiles is not None  # noqa: S101
    lost = f", {len(tiles.failed)} could not be read or were left out" if tiles.failed else ""
    how = "" if tiles.attention is None else " and attention over them"
    return (
        f"decided by {len(tiles.numbers)} tiles{lost}{how}; {percent(tissue_shares(result)[label])} of tissue {label}"
    )


def summary(result: Result) -> dict[str, Any] | None:
    """Counts, shares and pictures of tiles for the page; None for what was not decided tile by tile.

    Args:
        result: with an explanation.
    """
    tiles, each = result.prediction.tiles, result.prediction.window_probabilities
    if tiles is None or each is None:
        return None
    flagged = {word: sum(word in flags.split() for flags in tiles.flags) for word in FLAGS}
    groups = [
        (title, [{"image": jpeg_uri(picture), "words": words} for words, picture in group])
        for title, group in shown_groups(result, tiles)
    ]
    return {
        "label": result.explanations[0].class_label,
        "read": len(tiles.numbers),
        "failed": len(tiles.failed),
        "left_out": sum("left out" in reason for reason in tiles.failed),
        "attention": compared(result),
        "flagged": sum(bool(flags) for flags in tiles.flags),
        "flags": ", ".join(f"{count} {word}" for word, count in flagged.items() if count),
        "shares": [(name, percent(share)) for name, share in tissue_shares(result).items()],
        "groups": groups,
        "classes": png_uri(class_picture(result, tiles)),
    }
