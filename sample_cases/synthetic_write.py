"""Synthetic CTs as NIfTI, DICOM, a table of the truth and a contact sheet, byte for byte the same for a seed."""

from __future__ import annotations

import csv
import gzip
import io
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.files import write_bytes, write_text
from sample_cases.synthetic_ct import Finding, SyntheticCt, benchmark
from sample_cases.write import SeriesStyle, write_dicom, write_nifti

_COLUMNS = ("case", "label", "kernel", "noise_hu", "findings", "kind", "x_mm", "y_mm", "z_mm", "volume_ml")


def write_benchmark(
    n: int,
    seed: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    *,
    out: Path | None = None,
    dicom: bool = False,
    sheet: Path | None = None,
) -> None:
    """Write the cases of a benchmark and say on standard error how far it is.

    Args:
        n: number of cases.
        seed: of the benchmark.
        shape: voxels ``(D, H, W)``.
        spacing: mm along them.
        out: folder for ``case_000.nii.gz``, ``case_000_lungs.nii.gz``, ``case_000_truth.nii.gz`` and ``truth.csv``,
            one row a finding (LPS mm), and one row for a case without any.
        dicom: write ``dicom/case_000/*.dcm`` as well.
        sheet: PNG of all cases.
    """
    rows: list[tuple[str, ...]] = []
    kept = []
    for number, case in enumerate(benchmark(n, seed, shape, spacing)):
        name = f"case_{number:03d}"
        if out is not None:
            write_nifti(out / f"{name}.nii.gz", case)
            write_mask(out / f"{name}_lungs.nii.gz", case.lungs.astype(np.uint8), case)
            write_mask(out / f"{name}_truth.nii.gz", case.truth, case)
            if dicom:
                style = SeriesStyle(f"SYNTHETIC^{number:03d}", f"SYNTHETIC-{number:03d}")
                write_dicom(out / "dicom" / name, case, style, seed)
        if sheet is not None:
            kept.append(case)
        rows += _rows(name, case)
        print(f"{name}: {case.label}, {len(case.findings)} finding(s); {number + 1} of {n}", file=sys.stderr)
    if out is not None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *rows])
        print(f"truth in {write_text(out / 'truth.csv', text.getvalue())}")
    if sheet is not None and kept:
        from sample_cases.synthetic_sheet import write_sheet

        print(f"picture in {write_sheet(sheet, kept)}")


def write_mask(path: Path, mask: npt.NDArray[np.uint8], case: SyntheticCt) -> Path:
    """Write ``[D, H, W]`` uint8 on the grid of `case` as gzipped NIfTI-1, axes (x, y, z), RAS affine."""
    import nibabel

    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ case.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(mask.transpose(2, 1, 0), ras)
    image.set_sform(ras, code=1)
    image.set_qform(ras, code=1)
    image.header.set_xyzt_units("mm")
    return write_bytes(path, gzip.compress(image.to_bytes(), mtime=0))


def _rows(name: str, case: SyntheticCt) -> list[tuple[str, ...]]:
    first = (name, case.label, case.kernel, f"{case.noise_hu:.1f}", str(len(case.findings)))
    return [(*first, *_finding(finding)) for finding in case.findings] or [(*first, "", "", "", "", "")]


def _finding(finding: Finding) -> tuple[str, ...]:
    return (finding.kind, *(f"{v:.2f}" for v in finding.centre_mm), f"{finding.volume_ml:.2f}")
