"""Nothing that identifies a patient leaves by logs, file names, databases or pictures.

Results in DICOM keep the identity on purpose, since they return to the archive of their study, and the records of
the quarantine list source paths, since somebody has to find the files; nothing else does.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from pydicom import Dataset, dcmread

from medxai import pipeline
from medxai.ingest.discover import discover
from medxai.session import open_session
from tests.studies import command, dicom_study, edit, hashes, jobs, nifti_study, python, settings_for

FAMILY, GIVEN = "Zwoelfender", "Quirinus"
PLANTED = {
    "PatientName": f"{FAMILY}^{GIVEN}",
    "PatientID": "PID-ZZ-900817",
    "PatientBirthDate": "19321107",
    "AccessionNumber": "ACC-55-UUX",
    "ReferringPhysicianName": "Hausarztin^Ottoline",
    "InstitutionName": "Spital Oberfichtelbach",
    "PatientAddress": "Amselweg 77",
    "PatientComments": f"{GIVEN} called",
    "StudyID": "STID-4471",
    "StudyDescription": f"Thorax {FAMILY}",
    "OperatorsName": "Knipser^Traugott",
}
#: Looked for in every output, in lower case.
WORDS = tuple(
    word.lower()
    for word in (
        FAMILY, GIVEN, "PID-ZZ-900817", "900817", "19321107", "1932-11-07", "07.11.1932", "ACC-55-UUX", "Ottoline",
        "Hausarztin", "Oberfichtelbach", "Amselweg", "STID-4471", "Traugott",
    )
)  # fmt: skip


def plant(dataset: Dataset) -> None:
    """Give a slice an identity."""
    for name, value in PLANTED.items():
        setattr(dataset, name, value)


def found_in(data: bytes) -> list[str]:
    """The planted words in some bytes."""
    low = data.lower()
    return [word for word in WORDS if word.encode() in low]


def clean(text: str) -> bool:
    """True when no planted word occurs."""
    return not found_in(text.encode())


@dataclass(frozen=True)
class Inputs:
    """Good and bad studies of one named patient, in folders and files that carry the name."""

    root: Path
    good: int
    bad: int


def make_inputs(root: Path) -> Inputs:
    """Good: DICOM, NIfTI, and DICOM in an archive. Bad: each kind of failure with the name in its reach."""
    folder = root / f"{FAMILY}_{GIVEN} 07.11.1932"
    series = dicom_study(folder / f"CT {FAMILY}", 3)
    for path in edit(series, plant):
        path.rename(path.with_name(f"{FAMILY}_{path.name}"))
    nifti_study(folder / f"{FAMILY}^{GIVEN}.nii.gz", 4)
    packed = dicom_study(root / "packed", 5)
    edit(packed, plant)
    with zipfile.ZipFile(folder / f"{FAMILY}.zip", "w") as archive:
        for path in packed.iterdir():
            archive.write(path, f"{GIVEN}/{FAMILY} {path.name}")
        archive.writestr(f"{GIVEN}/{FAMILY}.dcm", f"Report on {GIVEN} {FAMILY}")
    shutil.rmtree(packed)

    def odd_number(dataset: Dataset) -> None:
        plant(dataset)
        dataset.add_new(0x00281053, "LO", GIVEN)  # RescaleSlope that is a name: arithmetic will quote it

    def odd_uid(dataset: Dataset) -> None:
        plant(dataset)
        dataset.add_new(0x00200052, "LO", f"{FAMILY}.{GIVEN}")

    def odd_place(dataset: Dataset) -> None:
        plant(dataset)
        dataset.add_new(0x00200032, "LO", [GIVEN, FAMILY, "0"])

    def odd_date(dataset: Dataset) -> None:
        plant(dataset)
        dataset.add_new(0x00080023, "LO", f"{FAMILY} 19321107")  # ContentDate
        dataset.add_new(0x00100040, "LO", f"{GIVEN} {FAMILY} male or so")  # PatientSex

    for number, change in enumerate((odd_number, odd_uid, odd_place)):
        edit(dicom_study(folder / f"{number} {FAMILY}", 10 + number), change, None)
    edit(dicom_study(folder / f"date {FAMILY}", 20), odd_date)
    edit(dicom_study(folder / f"gap {FAMILY}", 21, missing=4), plant)
    truncated = dicom_study(folder / f"cut {FAMILY}", 22)
    path = edit(truncated, plant)[2]
    path.write_bytes(path.read_bytes()[:-900])
    (folder / f"{FAMILY}.dcm").write_text(f"{GIVEN} {FAMILY}, born 19321107")
    (folder / f"{FAMILY}.png").write_text(f"{GIVEN} {FAMILY}, no picture")
    (folder / f"{GIVEN}.nii").write_bytes(f"{GIVEN} {FAMILY}".encode() * 100)
    return Inputs(folder, good=4, bad=9)


def leaks(output: Path) -> list[str]:
    """Outputs of a run that hold a planted word in name or content, DICOM results and quarantine records aside."""
    bad = []
    for path in output.rglob("*"):
        name = path.relative_to(output).as_posix()
        if not clean(name):
            bad.append(f"name {name}")
        if not path.is_file() or path.suffix == ".dcm" or path.parent.name == "quarantine":
            continue
        data = path.read_bytes()
        if path.name.endswith(".gz"):
            data = gzip.decompress(data)
        bad += [f"{word} in {name}" for word in found_in(data)]
    return bad


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Written once; runs do not change them."""
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def debug_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Every record of every logger, as chatty as they can be."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="medxai")
    return caplog


def test_the_inputs_do_hold_what_is_looked_for(inputs: Inputs) -> None:
    """The test would notice: each word stands in the inputs."""
    text = b" ".join(p.read_bytes() + str(p).encode() for p in inputs.root.rglob("*") if p.is_file())
    assert set(WORDS) - set(found_in(text)) == {"1932-11-07"}


def test_a_run_at_debug_level(
    inputs: Inputs, tmp_path: Path, debug_log: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Log records with their tracebacks, both streams, worklist, names and contents of outputs."""
    settings = settings_for(inputs.root, tmp_path / "out")
    session = open_session(settings)
    with pipeline.studies(session) as discovery:
        rows = [pipeline.reject(session, rejected) for rejected in discovery.rejected]
        rows += [pipeline.run_study(session, source) for source in discovery.sources]
    assert sorted(row.state for row in rows) == ["done"] * inputs.good + ["quarantined"] * inputs.bad
    assert len([record for record in debug_log.records if record.name.startswith("medxai")]) >= inputs.bad
    assert found_in(debug_log.text.encode()) == []
    captured = capfd.readouterr()
    assert clean(captured.out + captured.err)
    assert leaks(tmp_path / "out") == []
    assert all(clean(row.reason) for row in rows)


def test_the_command_with_all_warnings(inputs: Inputs, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``--verbose`` with Python's warnings on: pseudonyms only; the list of the worklist likewise."""
    out = tmp_path / "out"
    done = python(
        "-W", "always", "-m", "medxai", "-v", "run", inputs.root, "-b", "phantom_ct", "-o", out, "--modality", "CT"
    )  # fmt: skip
    assert done.code == 2
    assert len(done.errors) == inputs.bad
    assert found_in((done.out + done.err).encode()) == []
    listed = command(capfd, "worklist", out)
    assert listed.code == 0
    assert jobs(out)[0].study_key in listed.out
    assert clean(listed.out + listed.err)
    assert leaks(out) == []


def test_dicom_results_keep_the_identity(inputs: Inputs, tmp_path: Path) -> None:
    """On purpose: an object without its patient could not return to the archive."""
    source = inputs.root / f"CT {FAMILY}"
    settings = settings_for(source, tmp_path / "out")
    session = open_session(settings)
    with pipeline.studies(session) as discovery:
        row = pipeline.run_study(session, discovery.sources[0])
    paths = list((tmp_path / "out" / row.study_key).glob("*.dcm"))
    assert paths
    for path in paths:
        result = dcmread(path)
        assert result.PatientName == PLANTED["PatientName"]
        assert result.PatientID == PLANTED["PatientID"]
        assert result.AccessionNumber == PLANTED["AccessionNumber"]


def test_pictures_do_not_depend_on_who_it_is(tmp_path: Path) -> None:
    """Letters in pixels escape a search for bytes, but two patients with the same pixels get the same picture."""
    pictures = []
    for name in ("one", "two"):
        series = dicom_study(tmp_path / name / "in", 3)
        if name == "two":
            edit(series, plant)
        settings = settings_for(series, tmp_path / name / "out")
        session = open_session(settings)
        with pipeline.studies(session) as discovery:
            folder = session.folder(pipeline.run_study(session, discovery.sources[0]).study_key)
        shown = [dcmread(path).PixelData for path in sorted(folder.glob("secondary_capture_*.dcm"))]
        pictures.append((hashes(folder)["picture_gradcam_1-lesion.png"], shown))
    assert pictures[0] == pictures[1]


def test_keys_are_no_plain_hash_of_an_identifier(inputs: Inputs, tmp_path: Path) -> None:
    """Pseudonyms come from UIDs and content: the same patient's studies have unrelated keys."""
    found = discover([inputs.root], tmp_path)
    keys = [source.key for source in found.sources] + [rejected.key for rejected in found.rejected]
    assert len(set(keys)) == len(keys)
    assert all(clean(source.key) for source in found.sources)


@pytest.mark.flow
@pytest.mark.slow
def test_the_batch_and_its_prefect_database(inputs: Inputs, tmp_path: Path) -> None:
    """Rows, logs, artifacts, parameters and stored results of Prefect at its most talkative."""
    config = tmp_path / "batch.yaml"
    home, out = tmp_path / "prefect", tmp_path / "out"
    config.write_text(
        yaml.safe_dump(
            {
                "inputs": [str(inputs.root)],
                "output": str(out),
                "bundle": "phantom_ct",
                "modality": "CT",
                "fail_above": 1.0,
            }
        )
    )
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_LOGGING_LEVEL": "DEBUG"}
    done = python("-W", "always", "-m", "flows.explain_batch", config, env=environment)
    assert done.code == 2, done.err[-2000:]
    assert len(done.errors) == inputs.bad
    assert found_in((done.out + done.err).encode()) == []
    assert leaks(out) == []
    assert (home / "prefect.db").stat().st_size > 100_000
    stored = {path: found_in(path.read_bytes()) for path in home.rglob("*") if path.is_file()}
    assert {str(path): words for path, words in stored.items() if words} == {}
    assert any(b"explain-phantom_ct-" in path.read_bytes() for path in home.glob("prefect.db*"))
    empty = tmp_path / f"{FAMILY} empty"
    empty.mkdir()
    config.write_text(yaml.safe_dump({"inputs": [str(empty)], "output": str(out), "bundle": "phantom_ct"}))
    nothing = python("-m", "flows.explain_batch", config, env=environment)
    assert nothing.code == 2
    assert "no DICOM, NIfTI, picture or video found" in nothing.err
    assert not any(found_in(path.read_bytes()) for path in home.rglob("*") if path.is_file())
