"""A cine in every output: evidence on decisive frames alone, the course of the probabilities, confidences."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from medxai.explain.cine import cine_evidence
from medxai.export import ExportOptions, export_all, movie, page, secondary_capture, structured_report
from medxai.export.course import class_colours, course
from medxai.export.reporting import SCHEME
from medxai.study import Confidence, Result
from tests.export import build
from tests.export.read import read
from tests.tools import dicom_errors

DECISIVE = (0, 1, 2)


def coloured(picture: np.ndarray) -> bool:
    part = picture[:45, :61].astype(int)
    return bool(np.abs(part - part[..., :1]).max() > 8)


def test_evidence_lies_on_decisive_frames_alone(tmp_path: Path) -> None:
    case = build.us_case(cine=True)
    # The map itself has evidence in all frames, so that its absence is the exporter's doing.
    spread = build.explain(case.result.study.volume, np.full((5, 45, 61), 0.5, np.float32))
    result = replace(case.result, explanations=(spread,))
    (path,) = secondary_capture.write(result, tmp_path, ExportOptions())
    frames = read(path).pixel_array
    assert [coloured(frame) for frame in frames] == [index in DECISIVE for index in range(5)]
    stored = case.sources[0].pixel_array
    for index in (3, 4):
        assert np.array_equal(frames[index][:45, :61, 0], stored[index])
    assert dicom_errors(path) == []


def test_a_movie_has_every_frame_and_is_the_same_twice(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    case = build.us_case(cine=True)
    (path,) = movie.write(case.result, tmp_path, ExportOptions())
    first = path.read_bytes()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "vp9"
        assert float(stream.average_rate) == pytest.approx(25)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == 5
    assert [coloured_share(frame) > 0.01 for frame in decoded] == [index in DECISIVE for index in range(5)]
    assert movie.write(case.result, tmp_path, ExportOptions())[0].read_bytes() == first


def coloured_share(picture: np.ndarray) -> float:
    part = picture[:45, :61].astype(int)
    return float((part.max(-1) - part.min(-1) > 40).mean())


def test_a_gif_keeps_the_clock_of_the_cine(tmp_path: Path) -> None:
    case = build.us_case(cine=True)
    (path,) = movie.write(case.result, tmp_path, ExportOptions(movie="gif"))
    with Image.open(path) as image:
        frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
        assert image.info["duration"] == 40
    assert len(frames) == 5
    assert [coloured_share(np.asarray(frame)) > 0.01 for frame in frames] == [i in DECISIVE for i in range(5)]


def test_stills_have_no_movie() -> None:
    assert movie.applies(build.us_case(cine=False).result) == "the study is no cine"
    assert movie.applies(build.us_case(cine=True).result) is None


def test_the_course_is_drawn_where_the_numbers_are() -> None:
    result = build.us_case(cine=True).result
    evidence = cine_evidence(result.study.volume, result.prediction, result.explanations[0])
    assert evidence is not None
    picture = course(evidence, 500, 120).astype(int)
    usable = 120 - 5
    for frame in range(5):
        column = round((frame + 0.5) * 100)
        for number, colour in enumerate(class_colours(3)):
            row = round(usable - float(build.COURSE[frame, number]) * (usable - 2))
            around = picture[max(0, row - 3) : row + 4, column - 2 : column + 3].reshape(-1, 3)
            if (np.abs(build.COURSE[frame, number + 1 :] - build.COURSE[frame, number]) < 0.06).any():
                continue  # a later curve lies over it
            assert np.abs(around - np.array(colour)).sum(-1).min() < 60, (frame, number)
    marked = (np.abs(picture[-2] - np.array([255, 196, 92])).sum(-1) < 30).reshape(5, 100).mean(1)
    assert (marked > 0.9).tolist() == [index in DECISIVE for index in range(5)]


def test_the_page_follows_the_frames(tmp_path: Path) -> None:
    result = build.us_case(cine=True).result
    text = page.write(result, tmp_path, ExportOptions())[0].read_text()
    assert len(re.findall(r"<polyline ", text)) == 3
    assert re.findall(r'data-frame="(\d)"', text) == ["0", "1", "2"]
    assert "3 of 5 frames speak for bleeding" in text
    assert "83%" in text  # (0.8 + 0.86) / 2
    assert "do not rely" not in text
    (data,) = re.findall(r'<script type="application/json" id="case-data">(.*?)</script>', text, re.DOTALL)
    overlays = json.loads(data)["layers"][0]["overlays"]
    assert [bool(picture) for picture in overlays[3:]] == [False, False]
    assert any(overlays[:3])


def unsure(result: Result) -> Result:
    sure = Confidence((0.9, 0.3, 0.9), (0.9, 0.4, 0.9), passes=10, pictures=5, low=0.5)
    declined = build.COURSE[:, [1, 2, 0]]
    prediction = replace(result.prediction, confidence=sure, window_probabilities=np.ascontiguousarray(declined))
    return replace(result, prediction=prediction)


def test_low_confidence_and_declined_frames_are_said(tmp_path: Path) -> None:
    result = replace(unsure(build.us_case(cine=True).result))
    result = replace(result, prediction=replace(result.prediction, reject="normal"))
    text = page.write(result, tmp_path, ExportOptions())[0].read_text()
    assert "low confidence: do not rely on this decision" in text
    assert "60% of the frames are none that the model is for" in text
    report = structured_report.build(result, ExportOptions())
    assert codes_of(report)["low_confidence"]


def codes_of(report: object) -> dict[str, list[object]]:
    """Values of all content items by the code of their name, those of our scheme."""
    found: dict[str, list[object]] = {}

    def walk(items: object) -> None:
        for item in items or ():  # type: ignore[attr-defined]
            name = item.ConceptNameCodeSequence[0] if "ConceptNameCodeSequence" in item else None
            if name is not None and name.CodingSchemeDesignator == SCHEME:
                value: object = None
                if item.ValueType == "NUM":
                    value = float(item.MeasuredValueSequence[0].NumericValue)
                elif item.ValueType == "TEXT":
                    value = str(item.TextValue)
                elif item.ValueType == "CODE":
                    value = str(item.ConceptCodeSequence[0].CodeValue)
                    found.setdefault(str(value), []).append(value)
                found.setdefault(str(name.CodeValue), []).append(value)
            if item.ValueType == "CODE" and item.ConceptCodeSequence[0].CodingSchemeDesignator == SCHEME:
                found.setdefault(str(item.ConceptCodeSequence[0].CodeValue), []).append(True)
            walk(item.get("ContentSequence"))

    walk(report.ContentSequence)  # type: ignore[attr-defined]
    return found


def test_the_report_has_each_class_and_the_decisive_frames(tmp_path: Path) -> None:
    case = build.us_case(cine=True)
    (path,) = structured_report.write(case.result, tmp_path, ExportOptions())
    assert dicom_errors(path) == []
    report = read(path)
    found = codes_of(report)
    assert found["aleatoric"] == pytest.approx([0.9, 0.8, 0.95])
    assert found["epistemic"] == pytest.approx([0.9, 0.86, 0.99])
    assert found["confidence"] == pytest.approx([0.9, 0.83, 0.97])
    assert found["votes"] == pytest.approx([1, 3, 1])
    assert found["decisive"][0] == "1, 2, 3"
    assert found["declined"][0] == pytest.approx(0.2)  # the last frame is called "fracture"
    assert found["peak_depth"][0] == pytest.approx(28 * 0.3, abs=0.31)
    assert "low_confidence" not in found


def test_all_outputs_of_a_cine_are_made(tmp_path: Path) -> None:
    pytest.importorskip("av")
    outputs = export_all(build.us_case(cine=True).result, tmp_path / "run", ExportOptions())
    roles = {output.role for output in outputs}
    assert {"secondary_capture", "segmentation", "structured_report", "movie", "picture", "page"} <= roles
