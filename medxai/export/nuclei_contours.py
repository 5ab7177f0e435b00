"""Contours of nuclei in pixels of the finest level, as a table and as GeoJSON for QuPath."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medxai.export.naming import NOTICE
from medxai.export.outlines import Points, outlines
from medxai.files import atomic_path
from medxai.predict.slide_nuclei import SlideNuclei

#: Colours of certain and of doubtful nuclei; after Wong 2011, apart also when colours are seen poorly.
CERTAIN, DOUBTFUL = (0, 158, 115), (230, 159, 0)
_HEADS = ("nucleus", "tile", "row", "column", "area_um2", "flags", "agreement", "block", "evidence")


def contour(nuclei: SlideNuclei, number: int) -> Points:
    """Return the closed contour ``[k, 2]`` of a nucleus: column and row from the outer corner of the first pixel.

    The first and the last point are equal; holes are left out.

    Args:
        nuclei: of a slide.
        number: which of them.
    """
    points = outlines(nuclei.masks.mask(number).astype(np.float32), 0.5)[0]
    return np.asarray((points + nuclei.masks.corners[number, ::-1]) * nuclei.scale[::-1])


def write_table(nuclei: SlideNuclei, path: Path) -> Path:
    """Write one line a nucleus, tab-separated, and a comment for each tile that could not be read."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write("\t".join(_HEADS) + "\n")
        areas = nuclei.areas_um2
        for n in range(len(nuclei)):
            row, column = nuclei.centres[n].tolist()
            cells = [
                str(n + 1), str(nuclei.tiles[n]), f"{row:.2f}", f"{column:.2f}", f"{areas[n]:.2f}",
                nuclei.flags[n] or "n/a", f"{nuclei.agreement[n]:.3f}", str(nuclei.block[n]),
                f"{nuclei.evidence[n]:.3f}",
            ]  # fmt: skip
            stream.write("\t".join(cells) + "\n")
        stream.writelines(f"# {reason}\n" for reason in nuclei.failed)
    return path


def write_geojson(nuclei: SlideNuclei, path: Path, model: str) -> Path:
    """Write a FeatureCollection of detections in pixels of the finest level, as QuPath imports it.

    Args:
        nuclei: of a slide.
        path: of the file, which is written feature by feature.
        model: bundle name and version.
    """
    about = json.dumps({"notice": NOTICE, "model": model})
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(f'{{"type": "FeatureCollection", "properties": {about}, "features": [')
        for n, feature in enumerate(_features(nuclei)):
            stream.write(",\n" if n else "\n")
            stream.write(feature)
        stream.write("\n]}\n")
    return path


def _features(nuclei: SlideNuclei) -> Iterator[str]:
    areas = nuclei.areas_um2
    for n, words in enumerate(nuclei.flags):
        name, colour = ("doubtful nucleus", DOUBTFUL) if words else ("nucleus", CERTAIN)
        yield json.dumps({
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [np.round(contour(nuclei, n), 2).tolist()]},
            "properties": {
                "objectType": "detection",
                "name": f"nucleus {n + 1}" + (f": {words}" if words else ""),
                "classification": {"name": name, "color": list(colour)},
                "measurements": {
                    "Area um^2": round(float(areas[n]), 2),
                    "Evidence": round(float(nuclei.evidence[n]), 3),
                    "Agreement of the field": round(float(nuclei.agreement[n]), 3),
                    "Block": int(nuclei.block[n]),
                },
            },
        })  # fmt: skip
