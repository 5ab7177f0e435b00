"""De-identification on labelled files: nothing planted is left, what belongs together stays together."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag
from typer.testing import CliRunner

from medxai.cli import app
from medxai.errors import IngestError, MedxaiError
from medxai.ingest.deidentify import deidentify
from medxai.ingest.discover import discover
from medxai.ingest.identifiers import valid_uid
from medxai.ingest.profile import Profile, _actions, apply_profile
from medxai.ingest.read import read_study
from tests.export.build import affine_of, anatomy, ct_series, save_sources, ultrasound
from tests.tools import require_data

KEY = b"a secret of this site, long enough"
SHAPE = (3, 10, 14)
MARK = "Zwoelfender"


def planted(vr: str, number: int) -> Any:
    """A value of this representation that can be found again; None where none can."""
    if vr in ("LO", "LT", "SH", "ST", "UT", "UC", "PN", "CS", "AE"):
        return f"{MARK.upper()}{number}"[:16]
    if vr == "UI":
        return f"1.2.3.4711.{number}"
    if vr in ("DA", "DT"):
        return "19321107"
    return {"TM": "111213", "AS": "077Y", "DS": "4711.5", "IS": "471100", "UR": f"http://{MARK}.example"}.get(vr)


def everything() -> Dataset:
    """An image that has a planted value in every attribute of the profile, at the top and in an item below it."""
    (dataset, *_) = ct_series(affine_of(SHAPE), anatomy(SHAPE))
    item = Dataset()
    for number, tag in enumerate(_actions()):
        if tag[0] <= 0x0002 or not keyword_for_tag(tag) or tag[0] == 0x7FE0:
            continue
        vr = dictionary_VR(tag)
        value = planted(vr, number)
        if value is not None:
            dataset.add_new(tag, vr, value)
            item.add_new(tag, vr, value)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4711.1"
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "DCM", "kept"
    dataset.AnatomicRegionSequence = [item]  # a sequence that the profile keeps
    dataset.private_block(0x0009, "ACME", create=True).add_new(0x01, "LO", MARK)
    dataset.add_new((0x6000, 0x4000), "LT", MARK)
    return dataset


@pytest.mark.parametrize("shift", [False, True])
def test_nothing_planted_is_left(shift: bool) -> None:
    dataset = everything()
    assert len(dataset) > 250
    apply_profile(dataset, Profile(KEY, shift_dates=shift))
    left = [
        (element.keyword or str(element.tag), element.value)
        for element in dataset.iterall()
        if element.VR != "SQ"
        and re.search(f"{MARK}|1\\.2\\.3\\.4711|19321107|^4711|077Y|SECRET", str(element.value), re.IGNORECASE)
    ]
    assert left == []
    assert not any(element.tag.is_private for element in dataset.iterall())
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.AnatomicRegionSequence[0].CodeMeaning == "kept"
    codes = [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence]
    assert codes == (["113100", "113107"] if shift else ["113100"])
    uids = [e.value for e in dataset.iterall() if e.VR == "UI" and isinstance(e.value, str) and e.value]
    assert all(valid_uid(uid) for uid in uids)


def write(folder: Path, patient: str, tag: str, **more: object) -> list[Path]:
    """A series of a patient."""
    sources = ct_series(affine_of(SHAPE), anatomy(SHAPE), tag)
    for dataset in sources:
        dataset.PatientID, dataset.PatientName = patient, f"Name^{patient}"
        for name, value in more.items():
            setattr(dataset, name, value)
    return save_sources(sources, folder)


def test_what_belongs_together_stays_together(tmp_path: Path) -> None:
    """Two studies of one patient and one of another: pseudonyms, references, days between, geometry and pixels."""
    for number, (patient, day) in enumerate(
        (("Ann-001", "20240110"), ("Ann-001", "20240117"), ("Bob-002", "20240110"))
    ):
        write(tmp_path / "in" / str(number), patient, f"s{number}", StudyDate=day, AcquisitionDate=day)
    profile = Profile(KEY, shift_dates=True)
    report = deidentify(tmp_path / "in", tmp_path / "out", profile, crosswalk=tmp_path / "names.csv")
    assert (report.written, report.patients) == (9, 2)
    assert not report.refused
    files = [dcmread(path) for path in sorted((tmp_path / "out").rglob("*.dcm"))]
    by_patient: dict[str, set[str]] = {}
    for dataset in files:
        by_patient.setdefault(str(dataset.PatientID), set()).add(str(dataset.StudyDate))
        assert dataset.PatientName == dataset.PatientID
    days = sorted(tuple(sorted(values)) for values in by_patient.values())
    two = next(pair for pair in days if len(pair) == 2)
    first, second = (datetime.strptime(value, "%Y%m%d") for value in two)
    assert (second - first).days == 7
    assert "20240110" not in two
    assert len({str(d.FrameOfReferenceUID) for d in files}) == 3
    before = [read_study(s).volume for s in discover([tmp_path / "in"], tmp_path / "w").sources]
    after = [read_study(s).volume for s in discover([tmp_path / "out"], tmp_path / "w").sources]
    assert len(after) == 3
    for volume in after:
        assert np.array_equal(volume.pixels, before[0].pixels)
        assert np.allclose(volume.affine, before[0].affine)
    with (tmp_path / "names.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["patient_id"] for row in rows} == {"Ann-001", "Bob-002"}
    assert {row["pseudonym"] for row in rows} == set(by_patient)
    assert (tmp_path / "names.csv").stat().st_mode & 0o077 == 0
    again = deidentify(tmp_path / "in", tmp_path / "again", profile)
    assert again.written == 9
    for path in sorted((tmp_path / "out").rglob("*.dcm")):
        assert (tmp_path / "again" / path.relative_to(tmp_path / "out")).read_bytes() == path.read_bytes()
    other = deidentify(tmp_path / "in", tmp_path / "other", Profile(b"another secret of a site"))
    assert other.written == 9
    assert {p.name for p in (tmp_path / "other").iterdir()}.isdisjoint({p.name for p in (tmp_path / "out").iterdir()}
                                                                       - {"deidentification.json"})  # fmt: skip


def test_report_names_attributes_and_no_values(tmp_path: Path) -> None:
    write(tmp_path / "in", "Ann-001", "s", InstitutionName="Spital Oberfichtelbach", PatientAge="094Y")
    deidentify(tmp_path / "in", tmp_path / "out", Profile(KEY, keep_characteristics=True))
    text = (tmp_path / "out" / "deidentification.json").read_text()
    content = json.loads(text)
    assert content["attributes"]["InstitutionName"] == {"replaced": 3}
    assert content["attributes"]["PatientID"] == {"pseudonym": 3}
    assert content["options"] == ["Retain Patient Characteristics Option"]
    for word in ("Ann-001", "Oberfichtelbach", "19500101", "094Y"):
        assert word not in text
    dataset = dcmread(next((tmp_path / "out").rglob("*.dcm")))
    assert dataset.PatientAge == "090Y"
    assert dataset.PatientSex == "F"
    assert dataset.StudyDate == ""
    assert dataset.PatientBirthDate == ""


def test_a_file_that_still_says_who_it_was_is_left_out(tmp_path: Path) -> None:
    """An attribute that the profile keeps may repeat the name: that file does not go out."""
    files = write(tmp_path / "in", "Ann-001", "s")
    dataset = dcmread(files[1])
    dataset.FilterType = "for Ann-001"
    dataset.save_as(files[1])
    report = deidentify(tmp_path / "in", tmp_path / "out", Profile(KEY))
    assert report.written == 2
    assert report.refused == {"FilterType repeats a name, number or date of the patient; left out": 1}
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 2


def test_burnt_in_text(tmp_path: Path) -> None:
    """Refused, masked outside the regions, or kept; a header that says NO is believed."""
    pixels = np.full((40, 60), 200, np.float32)
    dataset = ultrasound(pixels)
    region = Dataset()
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 10, 8
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 49, 31
    dataset.SequenceOfUltrasoundRegions = [region]
    save_sources([dataset], tmp_path / "in")
    refused = deidentify(tmp_path / "in", tmp_path / "refused", Profile(KEY))
    assert (refused.written, sum(refused.refused.values())) == (0, 1)
    assert "may show text" in next(iter(refused.refused))
    masked = deidentify(tmp_path / "in", tmp_path / "masked", Profile(KEY), burnt_in="mask")
    assert masked.written == 1
    found = dcmread(next((tmp_path / "masked").rglob("*.dcm")))
    inside = np.zeros((40, 60), bool)
    inside[8:32, 10:50] = True
    assert (found.pixel_array[~inside] == 0).all()
    assert (found.pixel_array[inside] == 200).all()
    assert found.BurnedInAnnotation == "NO"
    assert deidentify(tmp_path / "in", tmp_path / "kept", Profile(KEY), burnt_in="keep").written == 1
    dataset.SequenceOfUltrasoundRegions = []
    save_sources([dataset], tmp_path / "in")
    assert deidentify(tmp_path / "in", tmp_path / "none", Profile(KEY), burnt_in="mask").written == 0
    dataset.BurnedInAnnotation = "NO"
    save_sources([dataset], tmp_path / "in")
    assert deidentify(tmp_path / "in", tmp_path / "said", Profile(KEY)).written == 1


def test_real_colour_cine_is_masked(tmp_path: Path) -> None:
    report = deidentify(require_data("us_dicom"), tmp_path / "out", Profile(KEY), burnt_in="mask")
    assert report.written >= 1
    for path in (tmp_path / "out").rglob("*.dcm"):
        dataset = dcmread(path)
        regions = dataset.SequenceOfUltrasoundRegions
        outside = np.ones((dataset.Rows, dataset.Columns), bool)
        for region in regions:
            outside[
                region.RegionLocationMinY0 : region.RegionLocationMaxY1 + 1,
                region.RegionLocationMinX0 : region.RegionLocationMaxX1 + 1,
            ] = False
        array = dataset.pixel_array
        frames = array if array.ndim == 4 else array[None]
        assert (frames[:, outside] == 0).all()
        assert frames[:, ~outside].any()


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="at least 16"):
        Profile(b"short")
    with pytest.raises(IngestError, match="does not exist"):
        deidentify(tmp_path / "none", tmp_path / "out", Profile(KEY))
    (tmp_path / "in").mkdir()
    with pytest.raises(IngestError, match="holds no DICOM"):
        deidentify(tmp_path / "in", tmp_path / "out", Profile(KEY))
    with pytest.raises(IngestError, match="inside the source"):
        deidentify(tmp_path / "in", tmp_path / "in" / "out", Profile(KEY))


def test_command(tmp_path: Path) -> None:
    write(tmp_path / "in", "Ann-001", "s")
    (tmp_path / "key").write_bytes(KEY)
    given = ["deidentify", str(tmp_path / "in"), str(tmp_path / "out"), "--key-file"]
    done = CliRunner().invoke(app, [*given, str(tmp_path / "key"), "--shift-dates"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "3 files of 1 patients written" in done.output
    missing = CliRunner().invoke(app, [*given, str(tmp_path / "nokey")])
    assert isinstance(missing.exception, MedxaiError)
    assert "openssl rand" in str(missing.exception)


def test_result_conforms(tmp_path: Path) -> None:
    """dciodvfy finds no more errors in the copy than in the original."""
    tool = Path(sys.executable).parent / "dciodvfy"
    files = write(tmp_path / "in", "Ann-001", "s")
    deidentify(tmp_path / "in", tmp_path / "out", Profile(KEY))

    def errors(path: Path) -> set[str]:
        done = subprocess.run([str(tool), str(path)], check=False, capture_output=True, text=True)
        return {line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")}

    copy = next((tmp_path / "out").rglob("*.dcm"))
    assert errors(copy) <= errors(files[0])


def test_a_short_number_leaves_no_slice_out(tmp_path: Path) -> None:
    """A PatientID of four digits occurs in many a new UID and coordinate; the same number as a value is found."""
    series = ct_series(affine_of((120, 4, 4)), anatomy((120, 4, 4)))
    for number, dataset in enumerate(series):
        dataset.PatientID = "5566"
        dataset.WindowWidth = 5566
        dataset.ImagePositionPatient = [0.25566, 0, number]
    save_sources(series, tmp_path / "in")
    report = deidentify(tmp_path / "in", tmp_path / "out", Profile(KEY))
    assert (report.written, dict(report.refused)) == (120, {})
    series[0].SeriesNumber = 5566
    save_sources(series[:1], tmp_path / "one")
    report = deidentify(tmp_path / "one", tmp_path / "two", Profile(KEY))
    assert report.refused == {"SeriesNumber repeats a name, number or date of the patient; left out": 1}


def test_a_damaged_file_does_not_end_the_run(tmp_path: Path) -> None:
    """A region without a place, a file without a transfer syntax: counted with the reason, the others are copied."""
    good, odd, bare = (ct_series(affine_of(SHAPE), anatomy(SHAPE))[n] for n in range(3))
    odd.Modality, odd.SequenceOfUltrasoundRegions = "US", [Dataset()]
    save_sources([good, odd, bare], tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        if dcmread(path).SOPInstanceUID == bare.SOPInstanceUID:
            path.write_bytes(path.read_bytes().replace(b"\x02\x00\x10\x00UI", b"\x02\x00\x11\x00UI"))
    report = deidentify(tmp_path / "in", tmp_path / "out", Profile(KEY), burnt_in="mask")
    assert (report.written, sum(report.refused.values())) == (1, 2)
    assert list(report.refused) == ["cannot be copied (AttributeError); the file is damaged or incomplete"]
