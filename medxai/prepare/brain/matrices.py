"""Connectivity matrices that other programs made: tables, edge lists and Matlab files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError

#: Largest difference between a matrix and its transpose, as a share of its largest entry.
_SYMMETRY = 1e-3


def read_matrix(path: Path, regions: int | None = None, variable: str | None = None) -> npt.NDArray[np.float32]:
    """Read a symmetric matrix of connectivity.

    Args:
        path: ``.tsv``, ``.csv`` or ``.txt`` (with or without a row and a column of names), ``.edgelist`` (rows of two
            region numbers and a weight, from 0 or from 1), or ``.mat`` up to version 7.
        regions: how many there must be; edge lists need it where the last ones have no edge.
        variable: of a ``.mat`` file; needed where it holds several matrices.

    Returns:
        ``[N, N]`` float32 with a zero diagonal.

    Raises:
        IngestError: unreadable, not square, not symmetric, NaN or infinite, or of another size.
    """
    if not path.is_file():
        raise IngestError("there is no such file", study=path.name)
    suffix = path.suffix.lower()
    if suffix == ".mat":
        matrix = _matlab(path, variable)
    elif suffix == ".edgelist":
        matrix = _edges(path, regions)
    elif suffix in {".tsv", ".csv", ".txt"}:
        matrix = _table(path)
    else:
        raise IngestError("is no .tsv, .csv, .txt, .edgelist or .mat file", study=path.name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise IngestError(f"has shape {matrix.shape}; connectivity is square", study=path.name)
    if regions is not None and len(matrix) != regions:
        raise IngestError(f"has {len(matrix)} regions and the atlas {regions}", study=path.name)
    if not np.isfinite(matrix).all():
        raise IngestError(f"holds {int((~np.isfinite(matrix)).sum())} NaN or infinite values", study=path.name)
    off = np.abs(matrix - matrix.T).max()
    if off > _SYMMETRY * max(np.abs(matrix).max(), 1e-30):
        raise IngestError(f"is not symmetric (differences up to {off:.3g})", study=path.name)
    result = ((matrix + matrix.T) / 2).astype(np.float32)
    np.fill_diagonal(result, 0)
    return result


def _table(path: Path) -> npt.NDArray[np.float64]:
    try:
        lines = [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise IngestError("cannot be read as text", study=path.name) from error
    delimiter = next((d for d in ("\t", ",", ";") if lines and d in lines[0]), None)
    rows = [[cell.strip() for cell in line.split(delimiter)] for line in lines]
    if rows and not _numbers(rows[0][1:]):
        rows = rows[1:]
    if rows and not all(_numbers(row[:1]) for row in rows):
        rows = [row[1:] for row in rows]
    if not rows or len({len(row) for row in rows}) != 1 or not all(_numbers(row) for row in rows):
        raise IngestError("is no table of numbers with rows of one length", study=path.name)
    return np.array(rows, np.float64)


def _numbers(cells: list[str]) -> bool:
    try:
        [float(cell) for cell in cells]
    except ValueError:
        return False
    return True


def _edges(path: Path, regions: int | None) -> npt.NDArray[np.float64]:
    try:
        edges = np.loadtxt(path, ndmin=2)
    except (ValueError, OSError) as error:
        raise IngestError("is no list of two region numbers and a weight", study=path.name) from error
    if edges.shape[1] != 3 or (edges[:, :2] != np.rint(edges[:, :2])).any() or edges[:, :2].min(initial=0) < 0:
        raise IngestError("is no list of two region numbers and a weight", study=path.name)
    ends = edges[:, :2].astype(int)
    start = 0 if (ends == 0).any() else 1
    count = regions or int(ends.max()) + 1 - start
    if (ends - start).max() >= count:
        raise IngestError(f"has an edge of region {int(ends.max())}; the atlas has {count} regions", study=path.name)
    matrix = np.zeros((count, count))
    for (a, b), weight in zip(ends - start, edges[:, 2], strict=True):
        if matrix[a, b] not in (0, weight):
            raise IngestError(f"gives the edge {a + start} {b + start} two weights", study=path.name)
        matrix[a, b] = matrix[b, a] = weight
    return matrix


def _matlab(path: Path, variable: str | None) -> npt.NDArray[np.float64]:
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path)
    except NotImplementedError as error:
        raise IngestError("is a Matlab file of version 7.3; save it with -v7", study=path.name) from error
    except (ValueError, OSError, TypeError) as error:
        raise IngestError("cannot be read as a Matlab file", study=path.name) from error
    found = {
        name: value
        for name, value in content.items()
        if not name.startswith("__") and getattr(value, "ndim", 0) == 2 and np.issubdtype(value.dtype, np.number)
    }
    square = {name: value for name, value in found.items() if value.shape[0] == value.shape[1] > 1}
    if variable is not None:
        square = {variable: found[variable]} if variable in found else {}
    if len(square) != 1:
        words = f"holds {len(square)} square matrices ({', '.join(sorted(square)) or 'none'})"
        raise IngestError(f"{words} among {', '.join(sorted(found)) or 'no'} variables; name one", study=path.name)
    return np.asarray(next(iter(square.values())), np.float64)
