"""Evidence of a subject as tables (TSV): edges, blocks of networks, the course over windows, ranked regions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from medxai.explain.connectivity_map import block_means, course
from medxai.export.brain.subject_view import SubjectView
from medxai.files import write_text


def write_tables(view: SubjectView, folder: Path) -> list[Path]:
    """Write all tables of a subject; the paths."""
    paths = []
    for name in view.matrices:
        paths += [write_edges(view, name, folder), write_blocks(view, name, folder)]
    if "dfc" in view.evidence.maps:
        paths.append(write_course(view, folder))
    paths.append(write_regions(view, folder))
    return paths


def write_edges(view: SubjectView, modality: str, folder: Path) -> Path:
    """``edges_MODALITY.tsv``: the strongest edges with names, networks, evidence, and sign and value of the matrix."""
    regions, networks, own = view.regions(modality), view.networks(modality), view.connectivity(modality)
    own = (own + own.T) / 2
    rows = [
        (
            rank, regions[e.a], regions[e.b], networks[e.a] or "n/a", networks[e.b] or "n/a", _number(e.evidence),
            {1: "+", -1: "-"}.get(e.sign, "0"), _number(float(own[e.a, e.b])),
        )
        for rank, e in enumerate(view.edges(modality), 1)
    ]  # fmt: skip
    heads = ("rank", "region_a", "region_b", "network_a", "network_b", "evidence", "sign", "value")
    return _write(folder / f"edges_{modality}.tsv", heads, rows)


def write_blocks(view: SubjectView, modality: str, folder: Path) -> Path:
    """``blocks_MODALITY.tsv``: mean evidence of the edges within and between networks, and how many edges there are."""
    found = block_means(view.matrix(modality), view.networks(modality))
    rows = [
        (a, b, _number(float(found.means[i, j])), int(found.edges[i, j]))
        for i, a in enumerate(found.networks)
        for j, b in enumerate(found.networks)
        if i <= j
    ]
    return _write(folder / f"blocks_{modality}.tsv", ("network_a", "network_b", "mean_evidence", "edges"), rows)


def write_course(view: SubjectView, folder: Path) -> Path:
    """``course_dfc.tsv``: mean evidence of all edges in each window, counted from 1."""
    rows = [(window, _number(float(value))) for window, value in enumerate(course(view.evidence.maps["dfc"]), 1)]
    return _write(folder / "course_dfc.tsv", ("window", "mean_evidence"), rows)


def write_regions(view: SubjectView, folder: Path) -> Path:
    """``regions.tsv``: regions ranked within each map."""
    rows = [
        (name, item.rank, item.region, item.network or "n/a", _number(item.value), _number(item.relative))
        for name, ranked in view.ranked().items()
        for item in ranked
    ]
    return _write(folder / "regions.tsv", ("modality", "rank", "region", "network", "evidence", "relative"), rows)


def _write(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    lines = ["\t".join(heads), *("\t".join(str(value) for value in row) for row in rows)]
    return write_text(path, "\n".join(lines) + "\n")


def _number(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.6g}"
