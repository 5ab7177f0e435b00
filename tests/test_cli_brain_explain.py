"""`medxai brain explain` on simulated features: everything written once, the same bytes, nothing of the patient."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.export.brain import cohort
from tests.studies import command, hashes


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    people = cohort.fewer(cohort.people(3), 12)
    bundle, allow = cohort.write_bundle(folder, people)
    lacking = people[1].features.subject
    features = cohort.write_cohort(folder / "features", people, space="", without={lacking: ("dfc",)})
    other = cohort.fewer(cohort.people(4), 11)[3]
    cohort.write_cohort(folder / "features", [*people, other], space="", without={lacking: ("dfc",)})
    for name in (p.features.subject for p in people):
        cohort.write_series(folder / "dicom" / name)
    return folder, features, bundle, allow, [p.features.subject for p in people], other.features.subject


def run(capfd, site, out: Path, *more: object):
    _, features, bundle, allow, _, _ = site
    return command(capfd, "brain", "explain", features, "-b", bundle, "-o", out, "--allow", allow, *more)


def test_explain_once_the_same_and_without_the_patient(site, capfd, tmp_path):
    folder, _, _, _, names, other = site
    out, lacking = tmp_path / "out", names[1]
    done = run(capfd, site, out, "--series", folder / "dicom", "--send-withheld")
    assert done.code == 2  # the subject of another atlas
    assert f"3 of 4 subjects: {out / 'index.html'}" in done.out
    failed = (out / "failures.tsv").read_text()
    assert other in failed
    assert "11 regions" in failed
    assert "12" in failed
    for name in names:
        written = {path.name for path in (out / name).iterdir()}
        assert {"page.html", "manifest.json", "parametric_map.dcm", "segmentation.dcm", "structured_report.dcm",
                "alff_map.nii.gz", "edges_sfc.tsv", "connectogram_fa.png", "glass_brain.png"} <= written  # fmt: skip
        assert ("edges_dfc.tsv" in written) == (name != lacking)
    said = json.loads((out / lacking / "manifest.json").read_text())["summary"]
    assert said["missing"] == ["dfc"]
    assert any("MISSING: DFC" in line for line in said["sentences"])
    assert set(said["order_dependence"]) == {"sfc", "fa"}
    assert "MISSING: DFC" in (out / lacking / "page.html").read_text()
    report = dcmread(out / lacking / "structured_report.dcm")
    assert any("MISSING: DFC" in str(e.value) for e in report.iterall() if e.keyword == "TextValue")
    for path in (p for p in out.rglob("*") if p.suffix in (".html", ".json", ".tsv")):
        text = path.read_text()
        assert "Secret" not in text
        assert "HOSPITAL" not in text
    before = hashes(out)
    again = run(capfd, site, out, "--series", folder / "dicom", "--send-withheld")
    assert again.out.count("explained before") == 3
    assert again.out.count("written before") == 3
    assert hashes(out) == before
    (out / names[0] / "edges_sfc.tsv").write_text("changed")
    fresh = run(capfd, site, out, "--series", folder / "dicom", "--send-withheld")
    assert fresh.out.count("written before") == 2
    assert hashes(out) == before  # written anew, to the same bytes


def test_refusals_name_what_is_wrong(site, capfd, tmp_path):
    _, features, bundle, allow, names, _ = site
    empty = tmp_path / "empty"
    empty.mkdir()
    done = command(capfd, "brain", "explain", empty, "-b", bundle, "-o", tmp_path / "a", "--allow", allow)
    assert done.code != 0
    assert "holds no features" in done.errors[0]
    done = command(capfd, "brain", "ablate", features, "-b", bundle, "-o", tmp_path / "b", "--allow", allow,
                   "--group", "patient=sick")  # fmt: skip
    assert "groups name sick" in done.errors[0]
    (tmp_path / "bare").mkdir()
    for name in names:
        (tmp_path / "bare" / name).symlink_to(features / name)
    done = command(capfd, "brain", "ablate", tmp_path / "bare", "-b", bundle, "-o", tmp_path / "c", "--allow", allow)
    assert "has no column 'group'" in done.errors[0]
