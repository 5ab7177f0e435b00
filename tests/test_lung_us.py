"""The shipped lung ultrasound bundle from file to objects: real cines, and what it must not take for a lung."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydicom import dcmread
from pydicom.data import get_testdata_file

from medxai import pipeline
from medxai.records.worklist import JobRow
from medxai.session import open_session
from medxai.settings import make_settings
from tests.export.test_cine import codes_of
from tests.tools import dicom_errors, require_data


def run(out: Path, *paths: Path, **settings: Any) -> list[JobRow]:
    """Put files through the bundle, as `medxai run` does."""
    session = open_session(make_settings({"inputs": paths, "output": out, "bundle": "lung_us", **settings}))
    with pipeline.studies(session) as discovery:
        rows = [pipeline.reject(session, rejected) for rejected in discovery.rejected]
        return rows + [pipeline.run_study(session, source) for source in discovery.sources]


def one(tmp_path: Path, *paths: Path, **settings: Any) -> JobRow:
    (row,) = run(tmp_path / "out", *paths, **settings)
    return row


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the cine that pydicom carries, an echocardiogram without body part."""
    path = Path(str(get_testdata_file("examples_ybr_color.dcm")))
    (row,) = run(tmp_path_factory.mktemp("heart") / "out", path)
    assert row.state == "done", row.reason
    return Path(row.folder)


def test_a_heart_is_explained_and_never_supported(heart: Path) -> None:
    manifest = json.loads((heart / "manifest.json").read_text())
    (explanation,) = manifest["explanations"]
    assert explanation["trust"]["verdict"] != "supported"
    assert any("names no body part" in reason for reason in explanation["trust"]["reasons"])
    roles = {output["role"] for output in manifest["outputs"]}
    assert {"secondary_capture", "structured_report", "picture", "movie", "page"} <= roles


def test_the_objects_of_a_cine_are_valid_and_say_what_was_decided(heart: Path) -> None:
    paths = sorted(heart.glob("*.dcm"))
    assert all(dicom_errors(path) == [] for path in paths)
    (report,) = [dcmread(path) for path in paths if path.name.startswith("structured_report")]
    found = codes_of(report)
    assert len(found["aleatoric"]) == len(found["epistemic"]) == len(found["confidence"]) == 4
    assert sum(found["votes"]) == 30  # type: ignore[arg-type]
    capture = next(dcmread(path) for path in paths if path.name.startswith("secondary_capture"))
    assert int(capture.NumberOfFrames) == 30


def test_coloured_doppler_is_put_aside(tmp_path: Path) -> None:
    row = one(tmp_path, Path(str(get_testdata_file("US1_UNCR.dcm"))))
    assert row.state == "quarantined"
    assert "coloured, as in Doppler" in str(row.reason)


def test_another_organ_in_the_header_is_put_aside(tmp_path: Path) -> None:
    dataset = dcmread(str(get_testdata_file("examples_ybr_color.dcm")))
    dataset.BodyPartExamined = "HEART"
    dataset.save_as(tmp_path / "heart.dcm")
    row = one(tmp_path, tmp_path / "heart.dcm")
    assert row.state == "quarantined"
    assert "the study shows HEART" in str(row.reason)


def noise(rows: int = 240, columns: int = 320) -> np.ndarray:
    rng = np.random.default_rng(3)
    fan = np.hypot(np.arange(rows)[:, None], np.arange(columns)[None] - columns / 2) < rows
    return (fan * np.clip(60 + 30 * rng.standard_normal((rows, columns)), 0, 220)).astype(np.uint8)


def test_letters_over_a_still_limit_its_map(tmp_path: Path) -> None:
    picture = Image.fromarray(noise())
    ImageDraw.Draw(picture).text((60, 30), "LUNG RIGHT 12 cm", fill=255, font_size=26)
    picture.save(tmp_path / "still.png")
    row = one(tmp_path, tmp_path / "still.png", modality="US", force=True)
    assert row.state == "done", row.reason
    trust = json.loads((Path(row.folder) / "manifest.json").read_text())["explanations"][0]["trust"]
    assert trust["verdict"] != "supported"
    assert any("letters or marks cover" in reason for reason in trust["reasons"])


def test_a_clip_of_one_frame_is_a_still_and_a_broken_one_is_put_aside(tmp_path: Path) -> None:
    pytest.importorskip("av")
    Image.fromarray(noise()).save(tmp_path / "one.gif", save_all=True)
    row = one(tmp_path, tmp_path / "one.gif", force=True)
    assert row.state == "done", row.reason
    assert not list(Path(row.folder).glob("movie_*"))
    frames = [Image.fromarray(noise()) for _ in range(6)]
    frames[0].save(tmp_path / "whole.gif", save_all=True, append_images=frames[1:], duration=40)
    data = (tmp_path / "whole.gif").read_bytes()
    (tmp_path / "broken.mp4").write_bytes(bytes(np.random.default_rng(0).permutation(list(data[:4000])).tolist()))
    (broken,) = run(tmp_path / "other", tmp_path / "broken.mp4")
    assert broken.state == "quarantined"
    assert "cannot be decoded as video" in str(broken.reason)


def test_other_pictures_are_declined(tmp_path: Path) -> None:
    """A breast and a slice of a brain are put aside by the network itself, stained tissue by its colours."""
    breast = [p for p in sorted(require_data("us_breast_busi", "benign").glob("*.png")) if "mask" not in p.name]
    paths = [
        breast[200],
        sorted(require_data("histo_camelyon").glob("*.jpg"))[0],
        sorted(require_data("mr_brain_tumor_brisc").glob("[0-9]*.png"))[0],
    ]
    rows = run(tmp_path / "out", *paths, modality="US")
    assert len(rows) == 3
    assert {row.state for row in rows} == {"quarantined"}
    reasons = sorted(str(row.reason) for row in rows)
    assert sum("uninformative" in reason for reason in reasons) == 2
    assert sum("coloured, as in Doppler" in reason for reason in reasons) == 1, reasons  # stained tissue


def test_a_real_clip_has_its_course(tmp_path: Path) -> None:
    pytest.importorskip("av")
    row = one(tmp_path, require_data("us_lung", "covid", "Cov_recommendations_likebutterfly_mov5.mov"))
    assert row.state == "done", row.reason
    text = (Path(row.folder) / "case.html").read_text()
    assert text.count("<polyline ") == 4
    assert "frames speak for" in text
    manifest = json.loads((Path(row.folder) / "manifest.json").read_text())
    assert manifest["decided"] == "covid"
    assert sum(manifest["prediction"].values()) == pytest.approx(1, abs=1e-5)
