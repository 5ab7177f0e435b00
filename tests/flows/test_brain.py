"""The flow does what the command does, and each resumes the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.brain import features_flow
from medxai.prepare.brain.cohort import run_dataset
from medxai.prepare.brain.settings import FeatureSettings
from tests.prepare.brain.test_cohort import atlas, functional


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_flow_and_command_resume_each_other(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    functional(root, "sub-01", 1)
    functional(root, "sub-02", 2, volumes=40)
    settings = FeatureSettings(input=root, output=tmp_path / "out", atlas=atlas(tmp_path / "atlas"))
    assert [o.state for o in features_flow(settings)] == ["done", "failed"]
    assert [o.state for o in run_dataset(settings)] == ["done before", "failed"]
    assert "40 volumes" in (settings.output / "failures.tsv").read_text()
