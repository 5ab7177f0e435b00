from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medxai.ingest.dicom_series import read_series
from tests.export.build import affine_of, anatomy, ct_series, save_sources
from tests.ingest.corpus import Outcome, misplaced, outcomes, page, roots
from tests.tools import require_data


def _check(found: list[Outcome]) -> None:
    assert not [outcome for outcome in found if outcome.kind == "crash"]
    assert not [outcome for outcome in found if outcome.off > 0.05]
    assert all(outcome.words for outcome in found)


def test_pydicoms_files_are_read_or_end_with_a_reason() -> None:
    found = list(outcomes(roots()["pydicom"]))
    _check(found)
    assert sum(outcome.kind == "read" for outcome in found) > 40
    assert sum(outcome.off == outcome.off for outcome in found) >= 8
    assert "\n| 1 | refused |" in page({"pydicom": found})


def test_pydicom_datas_files_are_read_or_end_with_a_reason() -> None:
    root = roots().get("pydicom-data")
    if root is None:
        pytest.skip("the package pydicom-data is not installed")
    _check(list(outcomes(root)))


@pytest.mark.data
@pytest.mark.slow
def test_real_files_are_read_or_end_with_a_reason() -> None:
    require_data()
    for title, root in roots().items():
        if title.startswith("real data") and "us_" not in title and "histo" not in title:
            _check(list(outcomes(root)))


def test_a_shifted_volume_is_noticed(tmp_path: Path) -> None:
    shape = (7, 9, 11)
    files = save_sources(ct_series(affine_of(shape, (3.0, 0.9, 0.7)), anatomy(shape)), tmp_path)
    volume = read_series(files, "x")[0]
    assert misplaced(volume) < 1e-3
    moved = volume.affine.copy()
    moved[1, 3] += 0.5
    assert misplaced(replace(volume, affine=moved)) == pytest.approx(0.5, abs=1e-3)
    turned = volume.affine.copy()
    turned[:3, 0] = -turned[:3, 0]
    assert np.isfinite(misplaced(replace(volume, affine=turned)))
    assert misplaced(replace(volume, affine=turned)) > 1
