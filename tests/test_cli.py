"""The command line: help without heavy imports, each command once for real, errors of one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from medxai import __version__
from medxai.predict.bundle import SHIPPED, bundle_sha256
from tests.pacs import Orthanc, StoreScp, free_port
from tests.studies import command, dicom_study, edit, jobs, nifti_study, python
from tests.tools import dicom_errors

Capture = pytest.CaptureFixture[str]
COMMANDS = (
    (), ("run",), ("repair",), ("send",), ("worklist",),
    ("bundle",), ("bundle", "list"), ("bundle", "inspect"), ("bundle", "verify"),
)  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help(words: tuple[str, ...], capfd: Capture) -> None:
    """Every command explains itself and its options."""
    done = command(capfd, *words, "--help")
    assert done.code == 0
    assert "Usage: medxai" in done.out
    assert done.err == ""


def test_version(capfd: Capture) -> None:
    """The version of the package."""
    assert command(capfd, "--version").out == f"medxai {__version__}\n"


def test_help_imports_no_library_of_weight() -> None:
    """Fast help: model, image and scheduler libraries stay out."""
    code = (
        "import sys\n"
        "from medxai.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert ended.code == 0\n"
        "heavy = {'torch', 'monai', 'SimpleITK', 'pydicom', 'prefect', 'numpy', 'sqlalchemy', 'highdicom', 'nibabel'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = python("-c", code)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "loaded: []"


def test_as_a_module_and_as_a_script() -> None:
    """``python -m medxai`` and the installed script end with the same codes."""
    assert python("-m", "medxai", "--version").out == f"medxai {__version__}\n"
    wrong = python("-m", "medxai", "bundle", "inspect", "no_such")
    assert wrong.code == 2
    assert wrong.err.startswith("error: there is no bundle no_such; shipped are ")
    assert len(wrong.err.splitlines()) == 1


@pytest.mark.parametrize("words", [("frobnicate",), ("run",), ("run", "x"), ("send", "x"), ("run", "--no-such")])
def test_wrong_usage(words: tuple[str, ...], capfd: Capture) -> None:
    """Exit code 2 and the usage, no traceback."""
    done = command(capfd, *words)
    assert done.code == 2
    assert "Usage: medxai" in done.err
    assert "Traceback" not in done.err


def test_bundle_list(capfd: Capture) -> None:
    """Name, version and task of what is shipped."""
    done = command(capfd, "bundle", "list")
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert "Lesion detection on chest CT phantoms" in lines["phantom_ct"]
    assert set(lines) == {p.parent.parent.name for p in SHIPPED.glob("*/configs/metadata.json")}


def test_bundle_inspect(capfd: Capture) -> None:
    """JSON with what a reader has to know before use."""
    done = command(capfd, "bundle", "inspect", "phantom_ct")
    about = json.loads(done.out)
    assert about["sha256"] == bundle_sha256(SHIPPED / "phantom_ct")
    assert about["labels"] == ["clean", "lesion"]
    assert about["modalities"] == ["CT"]
    assert about["intended_use"]
    assert command(capfd, "bundle", "inspect", SHIPPED / "phantom_ct").out == done.out


@pytest.mark.parametrize("name", sorted(p.parent.parent.name for p in SHIPPED.glob("*/configs/metadata.json")))
def test_shipped_bundles_are_good(name: str, capfd: Capture) -> None:
    """Each one passes its own check and is on the allow-list."""
    done = command(capfd, "bundle", "verify", name)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{name}: good, sha256 {bundle_sha256(SHIPPED / name)}\n"
    assert bundle_sha256(SHIPPED / name) in json.loads((SHIPPED / "allow.json").read_text())[name]


def test_bundle_verify_lists_every_problem(tmp_path: Path, capfd: Capture) -> None:
    """One line a problem, exit code 2."""
    bundle = Path(shutil.copytree(SHIPPED / "phantom_ct", tmp_path / "phantom_ct"))
    (bundle / "LICENSE").unlink()
    (bundle / "docs" / "README.md").unlink()
    done = command(capfd, "bundle", "verify", bundle)
    assert done.code == 2
    assert done.err.splitlines() == [
        "problem: docs/README.md (the model card) is missing",
        "problem: LICENSE is missing",
    ]
    (bundle / "models" / "model.safetensors").write_bytes(b"no tensors")
    done = command(capfd, "bundle", "verify", bundle)
    assert done.code == 2
    assert "damaged" in done.err


def _spoil(dataset: Dataset) -> None:
    dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "anonymous"
    dataset.FrameOfReferenceUID = ""
    del dataset.PatientName, dataset.SOPInstanceUID


def test_repair_makes_a_series_that_can_be_explained(tmp_path: Path, capfd: Capture) -> None:
    """Refused as it is, with the command to use; explained after the repair, with conforming results."""
    broken = dicom_study(tmp_path / "broken")
    pixels = {dcmread(path).PixelData for path in edit(broken, _spoil)}
    refused = command(capfd, "run", broken, "-b", "phantom_ct", "-o", tmp_path / "first")
    assert refused.code == 2
    assert all("medxai repair" in line for line in refused.errors)
    done = command(capfd, "repair", broken, tmp_path / "valid")
    assert (done.code, done.err) == (0, "")
    mapping = tmp_path / "valid" / "repair_mapping.json"
    assert done.out == f"14 files copied, 14 changed; old and new values in {mapping}\n"
    assert len(json.loads(mapping.read_text())["changes"]) == 14
    assert {dcmread(path).PixelData for path in (tmp_path / "valid").glob("*.dcm")} == pixels
    done = command(capfd, "run", tmp_path / "valid", "-b", "phantom_ct", "-o", tmp_path / "out", "--send-withheld")
    assert (done.code, done.err) == (0, "")
    (row,) = jobs(tmp_path / "out")
    assert dicom_errors(next((tmp_path / "out" / row.study_key).glob("parametric_map*.dcm"))) == []


@pytest.mark.parametrize("what", ["absent", "empty", "inside"])
def test_repair_refusals(what: str, tmp_path: Path, capfd: Capture) -> None:
    """Each with its path and cause."""
    source = tmp_path / "in"
    if what != "absent":
        source.mkdir()
    if what == "inside":
        dicom_study(source)
    done = command(capfd, "repair", source, source / "deep" if what == "inside" else tmp_path / "out")
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert str(source) in line
    assert {"absent": "does not exist", "empty": "no DICOM file", "inside": "must not lie inside"}[what] in line


@pytest.mark.pacs
def test_send_to_storescp(tmp_path: Path, storescp_server: StoreScp, capfd: Capture) -> None:
    """Folders are searched, what is not DICOM is left, the count is told."""
    folder = dicom_study(tmp_path / "in")
    (folder / "notes.txt").write_text("no image")
    address = f"SINK@{storescp_server.host}:{storescp_server.port}"
    done = command(capfd, "send", folder, "--to", address)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"14 objects delivered to {address}\n"
    sent = {dcmread(path).SOPInstanceUID for path in folder.glob("*.dcm")}
    assert {dcmread(path).SOPInstanceUID for path in storescp_server.folder.iterdir()} == sent


@pytest.mark.pacs
def test_send_results_to_orthanc(tmp_path: Path, orthanc_server: Orthanc, capfd: Capture) -> None:
    """The results of a run by STOW-RS and then by C-STORE."""
    study = dicom_study(tmp_path / "in", 301)
    assert command(capfd, "run", study, "-b", "phantom_ct", "-o", tmp_path / "out").code == 0
    uids = {str(dcmread(path).SOPInstanceUID) for path in (tmp_path / "out").glob("*/*.dcm")}
    for number, address in enumerate(
        (orthanc_server.web_url, f"{orthanc_server.aet}@{orthanc_server.host}:{orthanc_server.dicom_port}"), 1
    ):
        done = command(capfd, "send", tmp_path / "out", "--to", address)
        assert (done.code, done.out) == (0, f"{len(uids)} objects delivered to {address}\n")
        received = orthanc_server.received()
        assert {received[uid] for uid in uids} == {number}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nowhere", "neither AET@host:port nor the http"),
        ("closed", "did not answer; check host, port"),
        ("A" * 17 + "@h:1", "16"),
    ],
)
def test_send_errors(address: str, reason: str, tmp_path: Path, capfd: Capture) -> None:
    """A wrong address and a closed port: one line, exit code 2."""
    if address == "closed":
        address = f"SINK@127.0.0.1:{free_port()}"
    done = command(capfd, "send", dicom_study(tmp_path / "in"), "--to", address)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_send_nothing(tmp_path: Path, capfd: Capture) -> None:
    """A folder without DICOM."""
    (tmp_path / "notes.txt").write_text("no image")
    done = command(capfd, "send", tmp_path, "--to", "SINK@127.0.0.1:104")
    assert (done.code, done.err) == (2, "error: no DICOM file among what was given\n")


def test_run_and_worklist(tmp_path: Path, capfd: Capture) -> None:
    """Methods, class and label map reach the outputs; the list shows states and reasons, and filters."""
    out = tmp_path / "out"
    study, broken = dicom_study(tmp_path / "a"), dicom_study(tmp_path / "b", 8, missing=4)
    options = ("-m", "hirescam", "-m", "gradcam", "--class", "clean", "--labelmap", "--device", "cpu")
    done = command(capfd, "run", study, broken, "-b", "phantom_ct", "-o", out, *options)
    assert done.code == 2
    assert "1 of 2 studies explained" in done.out
    good, bad = sorted(jobs(out), key=lambda row: row.state)
    folder = out / good.study_key
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [(e["method"], e["class"]) for e in manifest["explanations"]] == [
        ("hirescam", "clean"),
        ("gradcam", "clean"),
    ]
    assert dcmread(next(folder.glob("segmentation*"))).SegmentationType == "LABELMAP"
    listed = command(capfd, "worklist", out)
    assert listed.code == 0
    assert good.study_key in listed.out
    assert bad.study_key in listed.out
    assert "geometry" in listed.out
    by_url = command(capfd, "worklist", f"sqlite:///{out.resolve()}/.medxai/worklist.sqlite")
    assert (by_url.code, by_url.out) == (0, listed.out)
    only = command(capfd, "worklist", out, "--state", "done")
    assert good.study_key in only.out
    assert bad.study_key not in only.out


def test_worklist_of_a_folder_without_one(tmp_path: Path, capfd: Capture) -> None:
    """A mistyped folder is an error, and nothing is made in it."""
    done = command(capfd, "worklist", tmp_path / "typo")
    assert done.code == 2
    assert str(tmp_path / "typo") in done.err
    assert not (tmp_path / "typo").exists()


def test_nifti_needs_its_modality_only_for_the_record(tmp_path: Path, capfd: Capture) -> None:
    """Without --modality a NIfTI file counts as of unknown modality and passes; with a wrong one it does not."""
    path = nifti_study(tmp_path / "volume.nii.gz")
    assert command(capfd, "run", path, "-b", "phantom_ct", "-o", tmp_path / "a").code == 0
    done = command(capfd, "run", path, "-b", "phantom_ct", "-o", tmp_path / "b", "--modality", "MR")
    assert done.code == 2
    assert "the study is MR" in done.errors[0]


def test_settings_schema_in_the_documentation_is_current() -> None:
    """docs/settings.json is what the settings are; regenerate it after a change."""
    from medxai.settings import RunSettings

    written = json.loads((Path(__file__).parent.parent / "docs" / "settings.json").read_text())
    assert written == json.loads(json.dumps(RunSettings.model_json_schema()))
