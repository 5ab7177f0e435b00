"""A batch of chest CTs: what the model was not made for is put aside with figures, the rest is done with its limits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medxai.predict.bundle import bundle_sha256
from medxai.predict.bundle_spec import ChestSpec
from sample_cases.synthetic_ct import synthetic_ct
from sample_cases.write import write_nifti
from tests.predict.build import BLOCK, tiny_bundle
from tests.studies import command, jobs, record

SPEC = ChestSpec(thickest_mm=8.0, least_mm=160.0)
CHEST = BLOCK.model_copy(update={"chest": SPEC, "organ": "lungs"})
SHAPE, SPACING = (24, 84, 96), (8.0, 4.0, 4.0)


def test_the_batch_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Contrast medium into quarantine with the reason; beside it a good chest is done, and metal limits its maps."""
    bundle, _ = tiny_bundle(tmp_path, CHEST)
    allow = tmp_path / "allow.json"
    allow.write_text(json.dumps({"tiny": [bundle_sha256(bundle)]}))
    studies = tmp_path / "studies"
    studies.mkdir()
    write_nifti(studies / "enhanced.nii.gz", synthetic_ct(1, SHAPE, SPACING, "consolidation", contrast_hu=300.0))
    write_nifti(studies / "metal.nii.gz", synthetic_ct(1, SHAPE, SPACING, "consolidation", metal=True))
    line = ["run", studies, "--bundle", bundle, "--out", tmp_path / "out", "--allow", allow, "--modality", "CT"]
    done = command(capfd, *line)
    assert done.code == 2
    states = {job.state: job for job in jobs(tmp_path / "out")}
    assert set(states) == {"done", "quarantined"}
    reason = record(tmp_path / "out", states["quarantined"].study_key)["reason"]
    assert "the mediastinum is brighter than 100 HU" in reason
    assert reason.endswith("--force goes on")
    manifest = json.loads((Path(states["done"].folder) / "manifest.json").read_text())
    (explanation,) = manifest["explanations"]
    assert explanation["trust"]["verdict"] != "supported"
    assert any("metal in the body" in words for words in explanation["trust"]["reasons"])
    assert 0 <= explanation["trust"]["figures"]["outside_lungs"] <= 1
    assert explanation["grid"].startswith("map of ")
    assert len(explanation["slices"]["shares"]) == 24
    assert np.sum(explanation["slices"]["shares"]) == pytest.approx(1, abs=0.01)
