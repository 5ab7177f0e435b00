"""The map over a slide as a pyramidal, tiled OME-TIFF, as QuPath, OMERO and Bio-Formats open it.

Two images: the level with the evidence over it in colour, and the map alone, 0..1. Both have the level's micrometres
per pixel, and coarser copies below them in SubIFDs.
"""

from __future__ import annotations

import uuid
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai import __version__
from medxai.export.colours import blend
from medxai.export.naming import NOTICE, chosen, is_hidden, method_title, stem
from medxai.files import atomic_path
from medxai.identity import UID_NAMESPACE, sha256_text
from medxai.ingest.slide import shows_slide
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result

ROLE = "slide_overlay"
#: Rows and columns of stored tiles, a multiple of 16, and the longer side down to which the pyramid goes.
TILE, _SMALLEST = 256, 512


def applies(result: Result) -> str | None:
    """Return None for a slide with evidence, otherwise the reason why not."""
    if not shows_slide(result.study):
        return "no whole slide"
    if not any(explanation.map.max(initial=0.0) > 0 for explanation in result.explanations):
        return "no map of the slide has positive evidence"
    if find_spec("tifffile") is None:
        return "OME-TIFF of a slide needs tifffile, which is not installed: pip install 'medxai[pathology]'"
    return None


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write one file for each chosen explanation with evidence that the gate does not withhold."""
    paths = []
    for explanation in chosen(result, options):
        if explanation.map.max(initial=0.0) > 0 and not is_hidden(result.trust_of(explanation), options):
            paths.append(_file(result, explanation, folder / f"{stem(ROLE, explanation)}.ome.tif", options))
    return paths


def pyramid(pixels: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Return ``[H, W, ...]`` and coarser copies, means of two by two pixels, until the longer side is `_SMALLEST`.

    An odd row or column at the end is left out, so that the pixels of a copy are squares of the one before.
    """
    levels = [pixels]
    while max(levels[-1].shape[:2]) > _SMALLEST and min(levels[-1].shape[:2]) > 1:
        last = levels[-1]
        rows, columns = last.shape[0] // 2, last.shape[1] // 2
        squares = last[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, *last.shape[2:]).astype(np.float32)
        means = squares.mean((1, 3))
        levels.append((np.rint(means) if last.dtype == np.uint8 else means).astype(last.dtype))
    return levels


def _file(result: Result, explanation: Explanation, path: Path, options: ExportOptions) -> Path:
    from tifffile import TiffWriter

    volume, values = result.study.volume, explanation.normalised()
    colours = np.rint(volume.pixels.transpose(1, 2, 0)).astype(np.uint8)
    name = f"{method_title(explanation.method)} {explanation.class_label}"
    identity = uuid.uuid5(UID_NAMESPACE, sha256_text(*result.identity, ROLE, path.name))
    images = (
        (f"{name} over the slide, {NOTICE}", blend(colours, values, options.overlay_opacity), "rgb"),
        (f"{name}, 0 to 1, {NOTICE}", values.astype(np.float32), "minisblack"),
    )
    with atomic_path(path) as temporary, TiffWriter(temporary, ome=True, bigtiff=True) as stream:
        for title, pixels, photometric in images:
            levels = pyramid(pixels)
            down, across = (float(v) * 1000 for v in volume.spacing[1:])
            about = {
                "axes": "YXS" if photometric == "rgb" else "YX", "Name": title, "UUID": str(identity),
                "Creator": f"medxai {__version__}", "PhysicalSizeX": across, "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": down, "PhysicalSizeYUnit": "µm",
            }  # fmt: skip
            for number, level in enumerate(levels):
                per_cm = tuple(1e4 / (micrometres * 2**number) for micrometres in (across, down))
                stream.write(
                    level, photometric=photometric, tile=(TILE, TILE), compression="zlib", resolution=per_cm,
                    resolutionunit="CENTIMETER", subfiletype=int(number > 0), software=f"medxai {__version__}",
                    **({"subifds": len(levels) - 1, "metadata": about} if number == 0 else {"metadata": None}),
                )  # fmt: skip
    return path
