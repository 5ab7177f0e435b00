"""The batch as a Prefect flow: states, artifacts, resumption and delivery, with Prefect's and Orthanc's own servers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import dcmread

from flows.explain_batch import explain_batch, main
from medxai import pipeline
from medxai.errors import IngestError, MedxaiError
from medxai.records.database import open_database, sqlite_url
from medxai.records.outbox import Outbox
from medxai.records.worklist import JobRow
from medxai.session import open_session
from medxai.settings import RunSettings
from tests.pacs import Orthanc, StoreScp, free_port, store_scp
from tests.studies import dicom_study, hashes, jobs, leftovers, nifti_study, record, settings_for

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]

#: Delivery is the subject, not the looks: few and small objects.
FEW = {"formats": ["parametric_map", "segmentation"], "send_withheld": True}


def four_studies(root: Path, first_seed: int) -> Path:
    """Two DICOM series, one NIfTI, one series with a missing slice."""
    dicom_study(root / "a", first_seed)
    dicom_study(root / "b", first_seed + 1)
    nifti_study(root / "c.nii.gz", first_seed + 2)
    dicom_study(root / "d", first_seed + 3, missing=5)
    return root


def states(rows: list[JobRow]) -> list[str]:
    """Sorted states."""
    return sorted(row.state for row in rows)


def objects(output: Path) -> set[str]:
    """SOP Instance UIDs of all DICOM results below an output folder."""
    return {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in output.glob("*/*.dcm")}


def flow_runs() -> list[Any]:
    """All runs of the batch that Prefect knows, newest first."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return sorted(client.read_flow_runs(), key=lambda run: run.expected_start_time, reverse=True)


def artifacts() -> list[Any]:
    """All artifacts, newest first."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        return client.read_artifacts(sort=ArtifactSort.UPDATED_DESC)


def web(server: Orthanc, **other: Any) -> dict[str, Any]:
    """A DICOMweb destination."""
    return {"name": "orthanc-web", "kind": "dicomweb", "url": server.web_url, **other}


@pytest.fixture(scope="module")
def batch(
    prefect_server: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunSettings, list[JobRow], list[Any]]:
    """A finished batch of three good studies and a broken one, with its progress reports."""
    root = tmp_path_factory.mktemp("batch")
    settings = settings_for(four_studies(root / "in", 30), root / "out")
    told: list[Any] = []
    return settings, explain_batch(settings, lambda *step: told.append(step)), told


def test_three_good_and_one_broken(batch: tuple[RunSettings, list[JobRow], list[Any]]) -> None:
    """The broken one is put aside with a record, the others have all outputs; the report counts to the end."""
    settings, rows, told = batch
    assert states(rows) == ["done", "done", "done", "quarantined"]
    assert [(row.attempts, row.analyses) for row in rows if row.state == "done"] == [(1, 1)] * 3
    (bad,) = [row for row in rows if row.state == "quarantined"]
    assert record(settings.output, bad.study_key)["code"] == "geometry"
    assert "1 missing slice" in bad.reason
    assert not (settings.output / bad.study_key).exists()
    for row in rows:
        if row.state == "done":
            assert pipeline.read_manifest(settings.output / row.study_key) is not None
    assert told == [("studies", number, 4) for number in range(1, 5)]
    assert leftovers(settings.output) == []


def test_the_flow_gives_what_the_command_gives(
    batch: tuple[RunSettings, list[JobRow], list[Any]], tmp_path: Path
) -> None:
    """With and without Prefect: the same bytes."""
    settings, _, _ = batch
    plain = settings.model_copy(update={"output": tmp_path / "out"})
    session = open_session(plain)
    with pipeline.studies(session) as discovery:
        row = pipeline.run_study(session, discovery.sources[0])
    assert hashes(plain.output / row.study_key) == hashes(settings.output / row.study_key)


def test_prefect_shows_states_and_artifacts(batch: tuple[RunSettings, list[JobRow], list[Any]]) -> None:
    """The run is Completed although a study failed; its artifacts list pseudonyms and reasons, nothing else."""
    settings, rows, _ = batch
    run = [run for run in flow_runs() if run.name.startswith("explain-phantom_ct-")][-1]
    assert run.state.is_completed()
    assert run.parameters == {}
    shown = {artifact.key: artifact for artifact in artifacts() if artifact.flow_run_id == run.id}
    assert set(shown) == {"medxai-studies", "medxai-batch"}
    table = json.loads(shown["medxai-studies"].data)
    assert {line["study"]: line["state"] for line in table} == {row.study_key: row.state for row in rows}
    (bad,) = [row for row in rows if row.state == "quarantined"]
    text = shown["medxai-batch"].data
    assert "- done: 3" in text
    assert f"`{bad.study_key}`: {bad.reason}" in text
    for artifact in shown.values():
        assert "PHANTOM" not in str(artifact.data)
        assert str(settings.inputs[0]) not in str(artifact.data)


def test_a_second_batch_skips_everything_done(batch: tuple[RunSettings, list[JobRow], list[Any]]) -> None:
    """No analysis and no write for finished studies; the broken one is tried again and stays aside."""
    settings, rows, _ = batch
    before = {p: p.stat().st_mtime_ns for row in rows for p in (settings.output / row.study_key).rglob("*")}
    again = explain_batch(settings)
    assert [row for row in again if row.state == "done"] == [row for row in rows if row.state == "done"]
    (bad,) = [row for row in again if row.state == "quarantined"]
    assert bad.attempts == 2
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_deleted_output_is_made_again(tmp_path: Path) -> None:
    """Prefect's cached result of the export does not stand for files that are gone."""
    settings = settings_for(dicom_study(tmp_path / "in", 40), tmp_path / "out", export=FEW)
    (row,) = explain_batch(settings)
    folder = settings.output / row.study_key
    before = hashes(folder)
    next(folder.glob("segmentation*")).unlink()
    (again,) = explain_batch(settings)
    assert (again.state, again.analyses) == ("done", 2)
    assert hashes(folder) == before


def test_a_failure_is_not_cached(tmp_path: Path) -> None:
    """What stood in the way of a stage is gone: the next batch runs the stage."""
    settings = settings_for(dicom_study(tmp_path / "in", 41), tmp_path / "out", export=FEW)
    session = open_session(settings)
    with pipeline.studies(session) as discovery:
        (source,) = discovery.sources
        in_the_way = session.work_path(source.key, pipeline.register(session, source)[0])
    in_the_way.mkdir(parents=True)
    (row,) = explain_batch(settings.model_copy(update={"fail_above": 1.0}))
    assert (row.state, row.reason_code) == ("quarantined", "error")
    assert "IsADirectoryError" in row.reason
    in_the_way.rmdir()
    (row,) = explain_batch(settings)
    assert (row.state, row.analyses) == ("done", 1)
    assert not list((settings.output / "quarantine").iterdir())


@pytest.mark.pacs
@pytest.mark.parametrize("kind", ["dicomweb", "dimse"])
def test_every_object_arrives_once(kind: str, tmp_path: Path, orthanc_server: Orthanc) -> None:
    """STOW-RS and C-STORE to Orthanc; a second batch sends nothing."""
    seed = 50 if kind == "dicomweb" else 60
    there = {"name": "orthanc", "kind": "dimse", "host": orthanc_server.host, "port": orthanc_server.dicom_port}
    where = web(orthanc_server) if kind == "dicomweb" else {**there, "aet": orthanc_server.aet}
    settings = settings_for(four_studies(tmp_path / "in", seed), tmp_path / "out", destinations=[where], export=FEW)
    rows = explain_batch(settings)
    assert states(rows) == ["done", "done", "done", "quarantined"]
    uids = objects(settings.output)
    assert len(uids) == 4
    received = orthanc_server.received()
    assert {uid: received[uid] for uid in uids} == dict.fromkeys(uids, 1)
    outbox = Outbox(open_database(sqlite_url(settings.output / ".medxai" / "worklist.sqlite")))
    assert {(line.sop_instance_uid, line.state) for line in outbox.rows()} == {(uid, "sent") for uid in uids}
    explain_batch(settings)
    assert orthanc_server.received() == received
    # Outputs that were deleted come back under the same UIDs, which the destination has.
    for path in settings.output.glob("*/segmentation*"):
        path.unlink()
    assert states(explain_batch(settings)) == ["done", "done", "done", "quarantined"]
    assert objects(settings.output) == uids
    assert orthanc_server.received() == received


@pytest.mark.pacs
def test_an_unconfirmed_delivery_is_looked_up(tmp_path: Path, orthanc_server: Orthanc) -> None:
    """The object arrived, its confirmation did not: Orthanc is asked and nothing is sent again."""
    settings = settings_for(
        dicom_study(tmp_path / "in", 70), tmp_path / "out", destinations=[web(orthanc_server)], export=FEW
    )
    (row,) = explain_batch(settings)
    received = orthanc_server.received()
    engine = open_database(sqlite_url(settings.output / ".medxai" / "worklist.sqlite"))
    with engine.begin() as connection:
        dead = f"{socket.gethostname()}:999999999:1"
        connection.exec_driver_sql("UPDATE delivery SET state = 'sending', owner = ?", (dead,))
        connection.exec_driver_sql("UPDATE job SET state = 'exported', owner = ?", (dead,))
    (again,) = explain_batch(settings)
    assert again.state == "done"
    assert {line.state for line in Outbox(engine).rows(job_id=row.id)} == {"sent"}
    assert orthanc_server.received() == received


@pytest.fixture
def sink_port() -> int:
    """A port where nobody listens yet."""
    return free_port()


@pytest.fixture
def down(tmp_path: Path, sink_port: int) -> RunSettings:
    """A batch of two studies whose destination does not answer; two quick retries."""
    dicom_study(tmp_path / "in" / "a", 80)
    dicom_study(tmp_path / "in" / "b", 81)
    sink = {
        "name": "sink",
        "kind": "dimse",
        "host": "127.0.0.1",
        "port": sink_port,
        "aet": "SINK",
        "connect_seconds": 2,
    }
    return settings_for(
        tmp_path / "in", tmp_path / "out", destinations=[sink], export=FEW, fail_above=1.0,
        delivery_retries=2, delivery_retry_seconds=0.2,
    )  # fmt: skip


@pytest.fixture
def sink_up(tmp_path: Path, sink_port: int) -> Iterator[StoreScp]:
    """The destination, started by the test that asks for it."""
    folder = tmp_path / "sink"
    folder.mkdir()
    with store_scp(folder, sink_port) as server:
        yield server


def _tries(names: set[str]) -> list[int]:
    """How often tasks of these names ran; Prefect's rows lag behind the flow."""
    from prefect.client.orchestration import get_client

    limit = time.monotonic() + 60
    counts: list[int] = []
    while time.monotonic() < limit:
        with get_client(sync_client=True) as client:
            runs = [run for run in client.read_task_runs() if run.name in names]
        counts = [run.run_count for run in runs]
        if len(runs) == len(names) and all(run.state.is_final() for run in runs):
            break
        time.sleep(0.5)
    return counts


@pytest.mark.pacs
def test_destination_down_then_up(
    down: RunSettings, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    """Tried three times, then put aside once with code delivery and outputs kept; the next batch only delivers."""
    caplog.set_level("ERROR", logger="medxai")
    rows = explain_batch(down)
    assert [(row.state, row.reason_code, row.analyses) for row in rows] == [("quarantined", "delivery", 1)] * 2
    assert len([r for r in caplog.records if r.name.startswith("medxai")]) == 2
    for row in rows:
        entry = record(down.output, row.study_key)
        assert (entry["stage"], entry["code"]) == ("send", "delivery")
        assert "sink (127.0.0.1:" in entry["reason"]
        assert "did not answer" in entry["reason"]
        assert row.folder == str(down.output / row.study_key)
        assert pipeline.read_manifest(Path(row.folder)) is not None
    assert _tries({f"send-{row.study_key}" for row in rows}) == [3, 3]
    outputs = {row.study_key: hashes(Path(row.folder)) for row in rows}

    sink: StoreScp = request.getfixturevalue("sink_up")
    again = explain_batch(down)
    assert [(row.state, row.attempts, row.analyses) for row in again] == [("done", 2, 1)] * 2
    assert {row.study_key: hashes(Path(row.folder)) for row in again} == outputs
    arrived = [str(dcmread(path).SOPInstanceUID) for path in sink.folder.iterdir()]
    assert sorted(arrived) == sorted(objects(down.output))
    assert not list((down.output / "quarantine").iterdir())


def test_too_many_failures_fail_the_batch(tmp_path: Path) -> None:
    """More than fail_above: the flow run is Failed and the caller gets one line; at the limit it is not."""
    dicom_study(tmp_path / "in" / "a", 90)
    dicom_study(tmp_path / "in" / "b", 91, missing=4)
    settings = settings_for(tmp_path / "in", tmp_path / "out", fail_above=0.5, export=FEW)
    assert states(explain_batch(settings)) == ["done", "quarantined"]
    strict = settings.model_copy(update={"fail_above": 0.49})
    with pytest.raises(MedxaiError, match=r"^1 of 2 studies are not done, more than fail_above=0.49 allows$"):
        explain_batch(strict)
    newest = flow_runs()[0]
    assert newest.state.is_failed()
    assert newest.state.message == "1 of 2 studies are not done, more than fail_above=0.49 allows"
    assert states(jobs(settings.output)) == ["done", "quarantined"]


def test_nothing_found_starts_no_flow(tmp_path: Path) -> None:
    """The path belongs into the error, not onto Prefect's page."""
    (tmp_path / "in").mkdir()
    count = len(flow_runs())
    with pytest.raises(IngestError, match="no DICOM, NIfTI, picture or video found"):
        explain_batch(settings_for(tmp_path / "in", tmp_path / "out"))
    assert len(flow_runs()) == count


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """``python -m flows.explain_batch``: table on stdout, one line a study on stderr, exit codes."""
    good = dicom_study(tmp_path / "in" / "a", 95)
    config = tmp_path / "batch.yaml"
    values = {"inputs": [str(good)], "output": str(tmp_path / "o"), "bundle": "phantom_ct", "export": FEW}
    config.write_text(yaml.safe_dump(values))
    assert main([str(config), "--output", str(tmp_path / "out")]) == 0
    captured = capfd.readouterr()
    assert "1 of 1 studies explained" in captured.out
    assert captured.err == ""
    assert not (tmp_path / "o").exists()
    dicom_study(tmp_path / "in" / "b", 96, missing=4)
    config.write_text(yaml.safe_dump({**values, "inputs": [str(tmp_path / "in")]}))
    assert main([str(config), "--output", str(tmp_path / "out")]) == 2
    captured = capfd.readouterr()
    assert "1 of 2 studies explained" in captured.out
    lines = captured.err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True, False]
    assert "1 missing slice" in lines[0]
    assert lines[1].endswith(f"put aside: {tmp_path / 'out' / 'quarantine'}")
    config.write_text("workers: many")
    assert main([str(config)]) == 2
    assert capfd.readouterr().err.startswith(f"error: {config}: output: Field required")
