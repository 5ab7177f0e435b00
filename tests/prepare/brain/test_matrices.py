"""Matrices of other programs: every form gives the same numbers; what is wrong is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from medxai.errors import IngestError
from medxai.prepare.brain.matrices import read_matrix
from tests.tools import require_data

MATRIX = np.array([[0, 0.5, 0.25], [0.5, 0, 0.125], [0.25, 0.125, 0]])


def write(folder: Path, kind: str) -> Path:
    path = folder / f"m.{kind.split('-')[0]}"
    match kind:
        case "tsv":
            np.savetxt(path, MATRIX, delimiter="\t")
        case "csv":
            np.savetxt(path, MATRIX, delimiter=",")
        case "txt":
            np.savetxt(path, MATRIX)
        case "tsv-named":
            rows = ["\t".join([name, *map(str, row)]) for name, row in zip("abc", MATRIX, strict=True)]
            path.write_text("\n".join(["\ta\tb\tc", *rows]))
        case "csv-headed":
            path.write_text("a,b,c\n" + "\n".join(",".join(map(str, row)) for row in MATRIX))
        case "edgelist-0":
            path.write_text("0 1 0.5\n0 2 0.25\n1 2 0.125\n")
        case "edgelist-1":
            path.write_text("1 2 0.5\n1 3 0.25\n2 3 0.125\n3 2 0.125\n")
        case "mat":
            scipy.io.savemat(path, {"connectivity": MATRIX, "names": np.array(["a", "b", "c"]), "n": 3})
    return path


@pytest.mark.parametrize("kind", ["tsv", "csv", "txt", "tsv-named", "csv-headed", "edgelist-0", "edgelist-1", "mat"])
def test_every_form(tmp_path: Path, kind: str) -> None:
    assert np.array_equal(read_matrix(write(tmp_path, kind), 3), MATRIX.astype(np.float32))


def test_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "m.tsv"

    def refused(matrix: np.ndarray, words: str, regions: int | None = None) -> None:
        np.savetxt(path, matrix, delimiter="\t")
        with pytest.raises(IngestError, match=words):
            read_matrix(path, regions)

    refused(MATRIX[:2], "square")
    refused(MATRIX + np.triu(MATRIX), "not symmetric")
    refused(np.where(MATRIX == 0.5, np.nan, MATRIX), "2 NaN")
    refused(MATRIX, "has 3 regions and the atlas 90", 90)
    path.write_text("1\t2\n3\n")
    with pytest.raises(IngestError, match="rows of one length"):
        read_matrix(path)
    with pytest.raises(IngestError, match="no such file"):
        read_matrix(tmp_path / "none.tsv")
    (tmp_path / "m.xyz").touch()
    with pytest.raises(IngestError, match=r"is no \.tsv"):
        read_matrix(tmp_path / "m.xyz")
    scipy.io.savemat(tmp_path / "m.mat", {"a": MATRIX, "b": MATRIX})
    with pytest.raises(IngestError, match=r"holds 2 square matrices \(a, b\)"):
        read_matrix(tmp_path / "m.mat")
    assert read_matrix(tmp_path / "m.mat", variable="b").shape == (3, 3)
    (tmp_path / "m.edgelist").write_text("1 2 0.5\n2 1 0.4\n")
    with pytest.raises(IngestError, match="two weights"):
        read_matrix(tmp_path / "m.edgelist")
    (tmp_path / "m.edgelist").write_text("1 5 0.5\n")
    with pytest.raises(IngestError, match="edge of region 5; the atlas has 3"):
        read_matrix(tmp_path / "m.edgelist", 3)


@pytest.mark.data
def test_published_matrices() -> None:
    assert read_matrix(require_data("connectome", "strucMatrix_ctx_schaefer_100.csv")).shape == (100, 100)
    edges = sorted(require_data("connectome_mice").glob("*.edgelist"))[0]
    assert read_matrix(edges, 332).shape == (332, 332)
