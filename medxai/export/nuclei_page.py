"""One self-contained page of the nuclei of a slide: how many, where, and how far that is to be relied on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai import __version__
from medxai.export.inlined import jpeg_uri, png_uri, template
from medxai.export.naming import NOTICE
from medxai.export.nuclei_pictures import SHOWN_SIDE, closer, contoured, disagreement, evidence
from medxai.files import write_text
from medxai.predict.slide_nuclei import SeenField, SlideNuclei

if TYPE_CHECKING:
    pass

#: Fields of either kind on the page.
SHOWN = 3
#: What is doubtful about a nucleus, in words.
DOUBTS = {
    "unseeded": "no middle was detected in it",
    "uncertain": "the evidence covers less than a quarter of it",
    "merged?": "it is large enough to be several",
    "split?": "it is small and touches another: it may be a part",
}


def shown_fields(nuclei: SlideNuclei) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the numbers of typical tiles (density nearest the median) and of doubtful ones (most doubtful nuclei).

    A tile is not in both; tiles without nuclei are in neither, nor are tiles without doubtful ones doubtful, or those
    with less than half the tissue of the median typical.
    """
    counts, doubtful = nuclei.counts(), nuclei.counts(doubtful=True)
    share = doubtful / np.maximum(counts, 1)
    full = np.flatnonzero(counts > 0)
    worst = [n for n in full[np.lexsort((full, -doubtful[full]))].tolist() if share[n] > 0][:SHOWN]
    density = counts / np.maximum(nuclei.tissue_mm2, 1e-9)
    least = np.median(nuclei.tissue_mm2) / 2
    others = np.array([n for n in full.tolist() if n not in worst and nuclei.tissue_mm2[n] >= least], np.int64)
    far = np.abs(density[others] - np.median(density[full])) if len(full) else np.zeros(0)
    typical = others[np.argsort(far, kind="stable")][:SHOWN]
    return nuclei.numbers[typical], nuclei.numbers[np.array(worst, np.int64)]


def write_page(
    nuclei: SlideNuclei, fields: Mapping[str, Sequence[SeenField]], folder: Path, about: Mapping[str, Any]
) -> Path:
    """Write ``nuclei.html`` and return its path.

    Args:
        nuclei: of the slide.
        fields: ``typical`` and ``doubtful`` ones.
        folder: where the other files lie already, ``nuclei.png`` among them.
        about: ``key``, ``caution`` of the bundle, ``scope`` (what was looked at), ``notes``, ``objects`` (why there
            are none, or ""), and ``provenance``, pairs of words.
    """
    flagged = {word: sum(word in words.split() for words in nuclei.flags) for word in DOUBTS}
    blocks, counts = np.unique(nuclei.field_block, return_counts=True)
    areas = nuclei.areas_um2
    context = {
        **about,
        "notice": NOTICE,
        "count": len(nuclei),
        "density": "-" if np.isnan(nuclei.density) else f"{nuclei.density:.0f}",
        "tissue": f"{nuclei.tissue_mm2.sum():.3g}",
        "area": f"{np.median(areas):.1f} ({np.quantile(areas, 0.25):.1f} to {np.quantile(areas, 0.75):.1f})"
        if len(areas)
        else "-",
        "read": len(nuclei.numbers),
        "planned": nuclei.planned,
        "failed": nuclei.failed,
        "doubtful": sum(bool(words) for words in nuclei.flags),
        "doubts": [(word, DOUBTS[word], count) for word, count in flagged.items()],
        "blocks": ", ".join(f"block {b} in {n}" for b, n in zip(blocks.tolist(), counts.tolist(), strict=True)),
        "agreement": f"{np.median(nuclei.field_agreement):.2f}",
        "overview": png_uri((folder / "nuclei.png").read_bytes()),
        "fields": [
            {"title": title, "rows": [_row(field, nuclei) for field in fields[kind]]}
            for kind, title in (
                ("typical", "Typical fields"),
                ("doubtful", "Doubtful fields: those with the most doubtful nuclei"),
            )
        ],
        "files": sorted(path.name for path in folder.iterdir() if path.suffix != ".html" and path.name[0] != "."),
        "software": f"medxai {__version__}",
    }
    return write_text(folder / "nuclei.html", template("nuclei.html.j2").render(**context))


def _row(field: SeenField, nuclei: SlideNuclei) -> dict[str, Any]:
    at = int(np.flatnonzero(nuclei.numbers == field.number)[0])
    words = [words for words, tile in zip(nuclei.flags, nuclei.tiles.tolist(), strict=True) if tile == field.number]
    doubts = {word: sum(word in said.split() for said in words) for word in DOUBTS}
    listed = ", ".join(f"{count} {word}" for word, count in doubts.items() if count) or "none doubtful"
    top, left = nuclei.boxes[at, :2]
    part = closer(field)
    return {
        "words": (
            f"Tile {field.number}, from row {top:.0f} and column {left:.0f} on: {len(words)} nuclei, {listed}. Shown: "
            f"the {SHOWN_SIDE} x {SHOWN_SIDE} pixels with the most."
        ),
        "evidence_words": f"Evidence of block {field.block}, agreement {field.agreement:.2f}",
        "contours": jpeg_uri(contoured(part)),
        "evidence": jpeg_uri(evidence(part)),
        "disagreement": jpeg_uri(disagreement(part.colours, part.labels, part.evidence)),
    }
