from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from medxai.export import ExportOptions, export_all, page
from tests.export import build


@pytest.mark.parametrize("make", [build.ct_case, lambda: build.us_case(cine=True), lambda: build.us_case(cine=False)])
def test_the_page_is_complete_and_needs_nothing_else(make, tmp_path):
    case = make()
    export_all(case.result, tmp_path / "run", ExportOptions())
    text = (tmp_path / "run" / "case.html").read_text()
    without_images = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", without_images)
    for word in (
        "bleeding", "87.4 %", "fracture", "normal", "Grad-CAM", "features.norm5", "not for diagnosis",
        "b" * 64, "c" * 64, case.result.study.input_sha256, "head_ct 1.2.0",
    ):  # fmt: skip
        assert word in text
    assert "SECRET" not in text
    assert "Secret" not in text
    frames = 1 if case.result.study.volume.axes == "HW" else case.result.study.volume.shape[0]
    assert text.count("data:image/jpeg") == frames + 1  # the first one is there without the script, too


def test_objects_are_listed_by_uid(tmp_path):
    outputs = export_all(build.ct_case().result, tmp_path / "run", ExportOptions())
    text = (tmp_path / "run" / "case.html").read_text()
    rows = page._objects(tmp_path / "run")
    kinds = {"Parametric Map", "Segmentation", "Secondary Capture Image", "Comprehensive 3D SR"}
    assert {row["kind"] for row in rows} == kinds
    assert sum(row["count"] for row in rows) == sum(output.path.endswith(".dcm") for output in outputs)
    assert all(row["series"] in text for row in rows)


def test_cells_of_an_image_without_calibration_are_in_pixels(tmp_path):
    case = build.us_case(cine=False)
    volume = replace(case.result.study.volume, calibrated=False)
    result = replace(case.result, study=replace(case.result.study, volume=volume))
    text = page.write(result, tmp_path, ExportOptions())[0].read_text()
    assert "1.2x0.8 pixels" in text
    assert "0.8 mm" not in text


def test_names_are_escaped(tmp_path):
    case = build.ct_case()
    evil = "<script>alert(1)</script>"
    prediction = replace(case.result.prediction, labels=("normal", evil, "</script><b>"))
    explanation = replace(case.result.explanations[0], class_label=evil, layer="</script>")
    result = replace(case.result, prediction=prediction, explanations=(explanation,))
    text = page.write(result, tmp_path, ExportOptions())[0].read_text()
    assert evil not in text
    assert text.count("<script") == 2
    assert text.count("</script>") == 2


def test_flags_come_with_their_reason(tmp_path):
    case = build.ct_case()
    volume = case.result.study.volume
    nothing = build.explain(volume, np.zeros(volume.shape, np.float32))
    text = page.write(replace(case.result, explanations=(nothing,)), tmp_path, ExportOptions())[0].read_text()
    assert "No positive evidence" in text
    assert "all gradients are zero" in text


def test_a_long_series_stays_small(tmp_path):
    case = build.ct_case(shape=(120, 64, 64))
    path = page.write(case.result, tmp_path, ExportOptions())[0]
    assert path.stat().st_size < 6_000_000


def _two_maps(first: str, second: str) -> object:
    from medxai.study import TrustReport

    result = build.ct_case().result
    assert len(result.explanations) == 2
    trust = tuple(TrustReport(verdict, ("a reason",)) for verdict in (first, second))  # type: ignore[arg-type]
    return replace(result, trust=trust)


@pytest.mark.parametrize(
    ("verdicts", "hidden"), [(("withheld", "limited"), [True, False]), (("limited", "withheld"), [False, True])]
)
def test_only_withheld_maps_are_hidden(verdicts, hidden, tmp_path):
    export_all(_two_maps(*verdicts), tmp_path / "run", ExportOptions())
    text = (tmp_path / "run" / "case.html").read_text()
    assert f"const hidden = {str(hidden).lower()}" in text
    assert ('id="toggle" aria-pressed="false">Show withheld overlay' in text) == hidden[0]
    export_all(_two_maps(*verdicts), tmp_path / "sent", ExportOptions(send_withheld=True))
    assert "const hidden = [false, false]" in (tmp_path / "sent" / "case.html").read_text()


def test_the_button_follows_the_chosen_map(tmp_path):
    """In a browser, where there is one: first map withheld, then the other one, then back with its overlay shown."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("the program chromium is not installed")
    export_all(_two_maps("withheld", "limited"), tmp_path / "run", ExportOptions())
    path = tmp_path / "run" / "case.html"
    script = """<script>
      const said = [], id = name => document.getElementById(name);
      const note = () => said.push(`${id("toggle").textContent}/${id("toggle").getAttribute("aria-pressed")}/${id("over").hidden}`);
      const choose = map => { id("layer").value = map; id("layer").onchange({ target: id("layer") }); note(); };
      note(); choose("1"); choose("0"); id("toggle").click(); note(); choose("1"); id("toggle").click(); note(); choose("0");
      document.body.dataset.said = said.join(";");
    </script></body>"""  # noqa: E501
    path.write_text(path.read_text().replace("</body>", script))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/c",
               "--dump-dom", path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (said,) = re.findall(r'data-said="([^"]*)"', done.stdout)
    assert said.split(";") == [
        "Show withheld overlay/false/true", "Overlay/true/false", "Show withheld overlay/false/true",
        "Show withheld overlay/true/false", "Overlay/true/false", "Overlay/false/true",
        "Show withheld overlay/true/false",
    ]  # fmt: skip
