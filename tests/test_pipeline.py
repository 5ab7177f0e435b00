"""One study through all stages without a scheduler: what comes out, what is done again, what is not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import Dataset, dcmread

from medxai import analysis, pipeline
from medxai.errors import MedxaiError
from medxai.records.outbox import Outbox
from medxai.records.worklist import JobRow
from medxai.session import config_hash, open_session
from medxai.settings import RunSettings, make_settings
from medxai.study import Study, Volume
from tests.studies import (
    dicom_study,
    edit,
    hashes,
    jobs,
    leftovers,
    nifti_study,
    python,
    record,
    same_map,
    settings_for,
)


def run(settings: RunSettings) -> list[JobRow]:
    """A whole batch as the command line does it."""
    session = open_session(settings)
    with pipeline.studies(session) as discovery:
        rows = [pipeline.reject(session, rejected) for rejected in discovery.rejected]
        return rows + [pipeline.run_study(session, source) for source in discovery.sources]


def only(settings: RunSettings) -> JobRow:
    """A batch of one study."""
    (row,) = run(settings)
    return row


@dataclass(frozen=True)
class First:
    """A finished run on one DICOM study."""

    inputs: Path
    output: Path
    row: JobRow

    @property
    def folder(self) -> Path:
        """Outputs of the study."""
        return self.output / self.row.study_key


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    """Read by several tests; those that change anything make their own."""
    root = tmp_path_factory.mktemp("first")
    inputs = dicom_study(root / "in")
    return First(inputs, root / "out", only(settings_for(inputs, root / "out")))


def test_a_study_goes_all_the_way(first: First) -> None:
    """Done, each role present, each hash right, the case decided as drawn, nothing left between."""
    assert (first.row.state, first.row.attempts, first.row.analyses) == ("done", 1, 1)
    manifest = pipeline.read_manifest(first.folder)
    assert manifest is not None
    assert manifest.key == first.row.study_key
    assert {output.role for output in manifest.outputs} == {
        "parametric_map", "segmentation", "secondary_capture", "structured_report", "nifti", "picture", "page",
    }  # fmt: skip
    assert {output.path for output in manifest.outputs} | {"manifest.json"} == set(hashes(first.folder))
    assert manifest.decided == max(manifest.prediction, key=lambda name: manifest.prediction[name])
    assert manifest.explanations[0]["maximum"] > 0
    assert leftovers(first.output) == []
    assert not list((first.output / ".medxai" / "work").iterdir())
    assert not (first.output / "quarantine").exists()


def test_results_refer_to_the_patient_and_the_source(first: First) -> None:
    """DICOM results return to the PACS under the study and identity they came from."""
    source = dcmread(next(first.inputs.iterdir()))
    for path in first.folder.glob("*.dcm"):
        result = dcmread(path)
        assert result.StudyInstanceUID == source.StudyInstanceUID
        assert result.PatientName == source.PatientName
        assert result.SeriesInstanceUID != source.SeriesInstanceUID


def test_dicom_and_nifti_give_the_same_map(first: First, tmp_path: Path) -> None:
    """Two formats of one phantom: same decision, same probabilities, same map at the same place."""
    row = only(settings_for(nifti_study(tmp_path / "same.nii.gz"), tmp_path / "out"))
    folder = tmp_path / "out" / row.study_key
    assert row.state == "done"
    dicom, nifti = pipeline.read_manifest(first.folder), pipeline.read_manifest(folder)
    assert dicom is not None
    assert nifti is not None
    assert dicom.decided == nifti.decided
    assert nifti.prediction == pytest.approx(dicom.prediction, abs=1e-4)
    assert same_map(first.folder, folder)
    assert not list(folder.glob("*.dcm"))


def test_a_second_run_does_nothing(tmp_path: Path) -> None:
    """No analysis, no attempt, no byte and no time of modification changes."""
    settings = settings_for(dicom_study(tmp_path / "in"), tmp_path / "out")
    row = only(settings)
    folder = settings.output / row.study_key
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}
    assert only(settings) == row
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()} == before


@pytest.mark.parametrize("harm", ["deleted", "changed", "no manifest"])
def test_harmed_outputs_are_made_again(tmp_path: Path, harm: str) -> None:
    """A missing or altered file is not a result; the new ones are the old ones byte for byte."""
    settings = settings_for(dicom_study(tmp_path / "in"), tmp_path / "out")
    folder = settings.output / only(settings).study_key
    before = hashes(folder)
    victim = folder / ("manifest.json" if harm == "no manifest" else "case.html")
    if harm == "changed":
        victim.write_bytes(victim.read_bytes() + b" ")
    else:
        victim.unlink()
    row = only(settings)
    assert (row.state, row.attempts, row.analyses) == ("done", 2, 2)
    assert hashes(folder) == before
    assert len(jobs(settings.output)) == 1


def test_two_sessions_give_the_same_bytes(first: First, tmp_path: Path) -> None:
    """Maps, objects, pictures, page and manifest depend on input, model, settings and code alone."""
    row = only(settings_for(first.inputs, tmp_path / "elsewhere"))
    assert row.study_key == first.row.study_key
    assert hashes(tmp_path / "elsewhere" / row.study_key) == hashes(first.folder)


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(first: First, tmp_path: Path) -> None:
    """The same through ``python -m medxai``."""
    given = ["-b", "phantom_ct", "-o", tmp_path / "out", "--modality", "CT", "--send-withheld"]
    done = python("-m", "medxai", "run", first.inputs, *given)
    assert done.code == 0, done.err
    assert hashes(tmp_path / "out" / first.row.study_key) == hashes(first.folder)


def test_file_names_and_order_do_not_matter(first: First, tmp_path: Path) -> None:
    """The same files under other names in other folders are the same study with the same results."""
    for number, path in enumerate(sorted(first.inputs.iterdir(), reverse=True)):
        target = tmp_path / "in" / f"part{number % 3}" / f"{number}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    row = only(settings_for(tmp_path / "in", tmp_path / "out"))
    assert hashes(tmp_path / "out" / row.study_key) == hashes(first.folder)


def test_overlapping_inputs_count_once(first: First, tmp_path: Path) -> None:
    """A folder given together with the folder above it, and twice."""
    row = only(settings_for([first.inputs, first.inputs.parent / "in", first.inputs], tmp_path / "out"))
    assert row.state == "done"


def test_other_settings_are_another_job(tmp_path: Path) -> None:
    """A changed method gives a new row and new outputs; going back does not take the wrong ones for done."""
    inputs = dicom_study(tmp_path / "in")
    plain = settings_for(inputs, tmp_path / "out")
    one = only(plain)
    folder = plain.output / one.study_key
    before = hashes(folder)
    two = only(settings_for(inputs, tmp_path / "out", methods=["hirescam"]))
    assert two.id != one.id
    assert two.state == "done"
    assert list(folder.glob("*hirescam*"))
    assert not list(folder.glob("*gradcam*"))
    uids = {dcmread(p).SOPInstanceUID for p in folder.glob("*.dcm")}
    again = only(plain)
    assert (again.id, again.state, again.analyses) == (one.id, "done", 2)
    assert hashes(folder) == before
    assert uids.isdisjoint({dcmread(p).SOPInstanceUID for p in folder.glob("*.dcm")})


def test_settings_of_place_and_speed_are_no_other_job(tmp_path: Path) -> None:
    """Workers, batch size, destinations and retries do not enter the hash; what changes outputs does."""
    plain = config_hash(settings_for(tmp_path, tmp_path / "out"))
    neutral = {"workers": 7, "batch_size": 1, "fail_above": 0.1, "delivery_retries": 0, "delivery_retry_seconds": 1.0}
    where = {"name": "pacs", "kind": "dicomweb", "url": "http://127.0.0.1:1/dicom-web"}
    assert config_hash(settings_for(tmp_path / "b", tmp_path / "c", **neutral, destinations=[where])) == plain
    for change in ({"explain_class": "clean"}, {"export": {"labelmap": True}}, {"stability": False}, {"force": True}):
        assert config_hash(settings_for(tmp_path, tmp_path / "out", **change)) != plain


def test_changed_pixels_are_another_job(tmp_path: Path) -> None:
    """The same UIDs with other bytes are analysed again."""
    settings = settings_for(dicom_study(tmp_path / "in"), tmp_path / "out")
    one = only(settings)

    def brighten(dataset: Dataset) -> None:
        dataset.PixelData = (dataset.pixel_array + 5).astype("<i2").tobytes()

    edit(tmp_path / "in", brighten)
    two = only(settings)
    assert two.study_key == one.study_key
    assert (two.state, two.analyses) == ("done", 1)
    assert two.id != one.id


def test_the_network_comes_back_as_it_was(tmp_path: Path) -> None:
    """Weights, modes, gradients and hooks of the network, and global switches of torch, are untouched."""
    session = open_session(settings_for(dicom_study(tmp_path / "in"), tmp_path / "out"))
    network = session.network

    def state() -> dict[str, Any]:
        return {
            "weights": {name: value.clone() for name, value in network.state_dict().items()},
            "grads": [(p.requires_grad, p.grad) for p in network.parameters()],
            "modes": [module.training for module in network.modules()],
            "hooks": [
                [len(getattr(module, name)) for name in vars(module) if name.endswith("_hooks")]
                for module in network.modules()
            ],
            "torch": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        }

    before = state()
    with pipeline.studies(session) as discovery:
        assert pipeline.run_study(session, discovery.sources[0]).state == "done"
    after = state()
    weights, same = before.pop("weights"), after.pop("weights")
    assert before == after
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert session.decoded == {}


def test_progress_is_told(tmp_path: Path) -> None:
    """Windows done, by pseudonym, up to the last one."""
    session = open_session(settings_for(dicom_study(tmp_path / "in"), tmp_path / "out"))
    told: list[tuple[str, int, int]] = []
    with pipeline.studies(session) as discovery:
        pipeline.run_study(session, discovery.sources[0], lambda *step: told.append(step))
    assert told
    assert told[-1] == (discovery.sources[0].key, told[-1][2], told[-1][2])


def _mark(**values: Any) -> Any:
    def change(dataset: Dataset) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    return change


def test_another_modality_is_refused_even_by_force(tmp_path: Path) -> None:
    """The reason says what the study is and what the model reads."""
    inputs = dicom_study(tmp_path / "in")
    edit(inputs, _mark(Modality="MR"))
    for force in (False, True):
        row = only(settings_for(inputs, tmp_path / "out", force=force))
        assert (row.state, row.reason_code) == ("quarantined", "mismatch")
        assert "reads CT, the study is MR" in row.reason
        assert not (tmp_path / "out" / row.study_key).exists()


def test_another_body_part_needs_force(tmp_path: Path) -> None:
    """Refused without, analysed with; the record of the refusal goes once the study is done."""
    inputs = dicom_study(tmp_path / "in")
    edit(inputs, _mark(BodyPartExamined="KNEE"))
    row = only(settings_for(inputs, tmp_path / "out"))
    assert (row.state, row.reason_code) == ("quarantined", "mismatch")
    assert "KNEE" in row.reason
    assert record(tmp_path / "out", row.study_key)["stage"] == "ingest"
    forced = only(settings_for(inputs, tmp_path / "out", force=True))
    assert forced.state == "done"
    assert not (tmp_path / "out" / "quarantine" / f"{row.study_key}.json").exists()


def test_a_study_in_quarantine_is_tried_again(tmp_path: Path) -> None:
    """A series that was incomplete when the first run saw it is analysed when the slice has come."""
    inputs = dicom_study(tmp_path / "in")
    late = sorted(inputs.iterdir())[4]
    slice_bytes = late.read_bytes()
    late.unlink()
    settings = settings_for(inputs, tmp_path / "out")
    row = only(settings)
    assert (row.state, row.reason_code, row.attempts) == ("quarantined", "geometry", 1)
    assert only(settings).attempts == 2
    late.write_bytes(slice_bytes)
    whole = only(settings)
    assert (whole.study_key, whole.state) == (row.study_key, "done")
    assert not list((settings.output / "quarantine").iterdir())


def test_an_unknown_failure_names_kind_and_place_only(first: First, tmp_path: Path) -> None:
    """A folder where a file must go: one line, quarantined, and the next study goes on."""
    settings = settings_for([first.inputs, dicom_study(tmp_path / "other", 8)], tmp_path / "out")
    session = open_session(settings)
    with pipeline.studies(session) as discovery:
        (source,) = (source for source in discovery.sources if source.key == first.row.study_key)
        in_the_way = session.work_path(source.key, pipeline.register(session, source)[0])
        in_the_way.mkdir(parents=True)
        rows = {source.key: pipeline.run_study(session, source) for source in discovery.sources}
    bad = rows.pop(source.key)
    assert (bad.state, bad.reason_code) == ("quarantined", "error")
    assert bad.reason.startswith("unexpected IsADirectoryError in ")
    assert bad.reason.endswith("during analyse")
    assert [row.state for row in rows.values()] == ["done"]
    assert not (settings.output / source.key).exists()
    assert leftovers(settings.output) == []


def test_what_a_killed_run_left_is_swept_away(first: First, tmp_path: Path) -> None:
    """Half-made folders and files of the same study, and unpacked archives of dead processes."""
    settings = settings_for(first.inputs, tmp_path / "out")
    key = first.row.study_key
    for path in (
        settings.output / f".{key}.0123456789ab.new" / "half.dcm",
        settings.output / ".medxai" / "unpacked" / "999999999" / "zip-x" / "Name.dcm",
    ):
        path.parent.mkdir(parents=True)
        path.write_text("half")
    assert only(settings).state == "done"
    assert leftovers(settings.output) == []


def test_a_stored_analysis_is_used_and_a_harmed_one_is_not(tmp_path: Path) -> None:
    """After a failure of export the model does not run again, unless the stored file was changed."""
    settings = settings_for(dicom_study(tmp_path / "in"), tmp_path / "out")
    session = open_session(settings)
    with pipeline.studies(session) as discovery:
        (source,) = discovery.sources
        identity, job = pipeline.register(session, source)
        path = analysis.analyse(session, source, identity)
        stored = path.stat().st_mtime_ns
        assert analysis.analysis_valid(path)
        time.sleep(0.01)
        assert analysis.analyse(session, source, identity).stat().st_mtime_ns == stored
        assert pipeline.run_study(session, source).analyses == 0
        assert not path.exists()
        session.worklist.reopen(job.id)
        analysis.analyse(session, source, identity)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        assert not analysis.analysis_valid(path)
        (session.folder(source.key) / "case.html").unlink()
        assert pipeline.run_study(session, source).analyses == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"ContentDate": "20240305", "ContentTime": "101112.5"}, "2024-03-05T10:11:12"),
        ({"ContentDate": "20240305"}, "2024-03-05T00:00:00"),
        ({"ContentDate": "2024", "StudyDate": "20230102", "StudyTime": "0304"}, "2023-01-02T03:04:00"),
        ({"SeriesDate": "20240305", "SeriesTime": "noon"}, "2024-03-05T00:00:00"),
        ({}, "1970-01-01T00:00:00"),
    ],
)
def test_created_is_the_time_of_the_source(values: dict[str, str], expected: str) -> None:
    """The first date that is one, never the clock of this machine."""
    header = Dataset()
    for name, value in values.items():
        header.add_new(name, "LO", value)
    volume = Volume(np.zeros((1, 2, 2), np.float32), "HW", np.eye(4), "CT", source=(header,))
    assert pipeline.created(Study("k", "dicom", "0" * 64, volume)) == expected
    without = Volume(volume.pixels, "HW", np.eye(4), "CT")
    assert pipeline.created(Study("k", "nifti", "0" * 64, without)) == "1970-01-01T00:00:00"


def test_manifest_is_plain_json_without_absolute_paths(first: First) -> None:
    """What lies beside the outputs can be moved with them."""
    text = (first.folder / "manifest.json").read_text()
    assert str(first.output) not in text
    assert json.loads(text)["key"] == first.row.study_key


@pytest.fixture(autouse=True)
def _no_warnings_to_stderr(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The library prints nothing by itself."""
    capfd.readouterr()
    yield
    assert capfd.readouterr().err.replace("error: ", "", 1).count("Traceback") == 0


@pytest.mark.parametrize("wrong", [{"methods": ["cam9"]}, {"explain_class": "purple"}])
def test_a_setting_that_the_model_cannot_serve_fails_before_any_study(tmp_path: Path, wrong: dict[str, object]) -> None:
    """One error for the batch, not one quarantine entry per study."""
    values = {"inputs": [tmp_path], "output": tmp_path / "out", "bundle": "phantom_ct", **wrong}
    with pytest.raises(MedxaiError, match=r"unknown explanation method 'cam9'|no class 'purple'; it has clean, lesion"):
        open_session(make_settings(values))
    assert not (tmp_path / "out").exists()


def test_a_job_is_not_done_while_another_process_sends_its_objects(tmp_path: Path) -> None:
    """A listener on the same output folder was faster than the batch; only what it settles counts."""
    where = {"name": "sink", "kind": "dimse", "host": "127.0.0.1", "port": 1, "aet": "SINK"}
    session = open_session(settings_for(dicom_study(tmp_path / "in", 41), tmp_path / "out", destinations=[where]))
    with pipeline.studies(session) as discovery:
        (source,) = discovery.sources
        assert pipeline.run_study(session, source, deliver_now=False).state == "exported"
        listener = Outbox(session.outbox.engine, owner="elsewhere:1:1")
        rows = listener.take("sink")
        assert rows
        assert pipeline.run_study(session, source).state == "exported"
    for row in rows:
        listener.sent(row)
    pipeline.complete(session, rows[0].job_id)
    assert session.worklist.get(rows[0].job_id).state == "done"
