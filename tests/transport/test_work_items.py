"""Work items by DIMSE and by UPS-RS: claimed once, fetched, explained, ended, also over a kill."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from medxai.identity import derive_uid
from medxai.listener import Listener, open_spool
from medxai.records.tables import WorkItem
from medxai.records.work_items import WorkItems, _row
from medxai.session import Session, open_session
from medxai.settings import Destination
from medxai.transport.send import send
from medxai.work_items import WorkItemLoop
from tests.pacs import Orthanc, free_port, store_scp
from tests.studies import dicom_study, settings_for
from tests.test_privacy import found_in
from tests.transport.ups_node import Steps, dimse_node, web_node

pytestmark = pytest.mark.pacs

NODES = {"dimse": dimse_node, "web": web_node}
FEW = {"formats": ["parametric_map"], "send_withheld": True}


@pytest.fixture(params=["dimse", "web"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Steps, Destination]]:
    """Steps behind a node."""
    steps = Steps()
    with NODES[request.param](steps) as node:
        yield steps, node


def stored(server: Orthanc, folder: Path, seed: int, missing: int | None = None) -> str:
    """A study at Orthanc; its UID."""
    paths = list(dicom_study(folder, seed, missing=missing).glob("*.dcm"))
    send(paths, Destination(name="o", kind="dicomweb", url=server.web_url))
    return str(dcmread(paths[0]).StudyInstanceUID)


def open_for(tmp_path: Path, ris: Destination, server: Orthanc, sink: int | None = None, **items: Any) -> Session:
    """A session whose source of studies is Orthanc's DICOMweb under the title of the steps.

    Results go there as well, or to the port `sink` only; then received objects are not kept.
    """
    pacs = {"name": "pacs", "kind": "dicomweb", "url": server.web_url, "aet": "ORTHANC"}
    other = {"name": "sink", "kind": "dimse", "host": "127.0.0.1", "port": sink, "aet": "SINK", "connect_seconds": 1}
    listen = {"port": 0, "calling": ["NOBODY"], "quiet_seconds": 0.3, "free_bytes": 0, "keep_hours": 0 if sink else 24}
    work = {"source": "ris", "poll_seconds": 0.2, **items}
    return open_session(
        settings_for(
            (), tmp_path / "out", export=FEW, sources=[ris.model_dump(), pacs],
            destinations=[other if sink else pacs], listen={**listen, "work_items": work}, delivery_retry_seconds=0.2,
        )
    )  # fmt: skip


def run_until(session: Session, condition: Any, seconds: float = 60) -> None:
    """A listener until something holds."""
    spool = open_spool(session)
    listener = Listener(session, spool, receive=False)
    listener.start()
    try:
        until(condition, seconds)
    finally:
        listener.stop()


def until(condition: Any, seconds: float = 60) -> None:
    """Wait until something holds."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_from_scheduled_to_completed(
    site: tuple[Steps, Destination], tmp_path: Path, orthanc_server: Orthanc, caplog: pytest.LogCaptureFixture
) -> None:
    """One step with the label is worked off, its outputs are named and at the archive; the other is left alone."""
    for name in ("pynetdicom", "pydicom", "medxai"):
        caplog.set_level(logging.INFO, logger=name)
    steps, ris = site
    seed = 440 if ris.kind == "dimse" else 450
    uid, other = derive_uid("step", str(seed)), derive_uid("step", str(seed), "other")
    steps.add(uid, stored(orthanc_server, tmp_path / "in", seed), "AI", "ORTHANC")
    steps.add(other, "1.2.3", "NOT FOR US")
    session = open_for(tmp_path, ris, orthanc_server, label="AI")
    run_until(session, lambda: steps.state(uid) == "COMPLETED")
    assert steps.state(other) == "SCHEDULED"
    changes = [what for step, what in steps.history if step == uid]
    assert changes[0] == "IN PROGRESS"
    assert changes[-1] == "COMPLETED"
    assert changes.count("IN PROGRESS") == 1
    (done,) = steps.steps[uid].UnifiedProcedureStepPerformedProcedureSequence
    (output,) = done.OutputInformationSequence
    (place,) = output.WADORSRetrievalSequence
    assert place.RetrieveURL.startswith(f"{orthanc_server.web_url}/studies/")
    assert str(done.PerformedProcedureStepStartDateTime) <= str(done.PerformedProcedureStepEndDateTime)
    named = {str(item.ReferencedSOPInstanceUID) for item in output.ReferencedSOPSequence}
    received = orthanc_server.received()
    assert named
    assert {each: received[each] for each in named} == dict.fromkeys(named, 1)
    (row,) = WorkItems(session.worklist.engine).rows("ris")
    assert row.state == "completed"
    assert found_in(caplog.text.encode()) == []
    database = b"".join(path.read_bytes() for path in (tmp_path / "out" / ".medxai").glob("worklist.sqlite*"))
    assert found_in(database) == []


def test_a_step_outlives_the_received_objects(tmp_path: Path, orthanc_server: Orthanc) -> None:
    """The destination is down for longer than received objects are kept: the step is completed all the same."""
    steps, uid, port = Steps(), derive_uid("step", "long"), free_port()
    steps.add(uid, stored(orthanc_server, tmp_path / "in", 497), aet="ORTHANC")
    with dimse_node(steps) as ris:
        session = open_for(tmp_path, ris, orthanc_server, sink=port)
        listener = Listener(session, open_spool(session), receive=False)
        listener.start()
        try:
            until(lambda: [job.state for job in session.worklist.jobs()] == ["exported"])
            listener._sweep()
            time.sleep(1.0)
            assert steps.state(uid) == "IN PROGRESS"
            folder = tmp_path / "sink"
            folder.mkdir()
            with store_scp(folder, port):
                until(lambda: steps.state(uid) == "COMPLETED")
            until(lambda: not list((tmp_path / "out" / ".medxai" / "spool").rglob("*.dcm")))
        finally:
            listener.stop()


def test_what_cannot_be_done_is_cancelled_with_the_reason(
    site: tuple[Steps, Destination], tmp_path: Path, orthanc_server: Orthanc
) -> None:
    """A study with a missing slice, one that does not exist, a step that refers to nothing."""
    steps, ris = site
    seed = 460 if ris.kind == "dimse" else 470
    gap, absent, empty = (derive_uid("step", str(seed), name) for name in ("gap", "absent", "empty"))
    steps.add(gap, stored(orthanc_server, tmp_path / "in", seed, missing=5), aet="ORTHANC")
    steps.add(absent, "1.2.3.4.5.6789", aet="ORTHANC")
    steps.add(empty, "")
    session = open_for(tmp_path, ris, orthanc_server)
    run_until(session, lambda: {steps.state(uid) for uid in (gap, absent, empty)} == {"CANCELED"})

    def reason(uid: str) -> str:
        return str(steps.steps[uid].ProcedureStepProgressInformationSequence[0].ReasonForCancellation)

    assert "missing slice" in reason(gap)
    assert "1.2.3.4.5.6789" not in reason(absent)
    assert "refers to no study" in reason(empty)


def test_a_step_of_another_performer_is_left_alone(
    site: tuple[Steps, Destination], tmp_path: Path, orthanc_server: Orthanc
) -> None:
    """Somebody else was faster between the look and the claim."""
    steps, ris = site
    uid = derive_uid("step", "taken", ris.kind)
    steps.add(uid, "1.2.3")
    session = open_for(tmp_path, ris, orthanc_server)
    loop = WorkItemLoop(session, open_spool(session), session.settings.listen.work_items, lambda: None)  # type: ignore[union-attr, arg-type]
    loop._intend(uid)
    assert steps.change(uid, "1.2.99", "IN PROGRESS") == 0
    before = list(steps.history)
    loop.turn()
    assert steps.history == before
    assert steps.state(uid) == "IN PROGRESS"
    assert [row.state for row in WorkItems(session.worklist.engine).rows("ris")] == ["lost"]


def test_a_claim_that_was_not_noted_is_taken_up(
    site: tuple[Steps, Destination], tmp_path: Path, orthanc_server: Orthanc
) -> None:
    """Killed between the claim and its note: the transaction that was written down before proves that it is ours."""
    steps, ris = site
    seed = 480 if ris.kind == "dimse" else 490
    uid = derive_uid("step", "crash", ris.kind)
    steps.add(uid, stored(orthanc_server, tmp_path / "in", seed), aet="ORTHANC")
    session = open_for(tmp_path, ris, orthanc_server)
    items = WorkItems(session.worklist.engine)
    assert items.intend(uid, "ris", "2.25.77").transaction_uid == "2.25.77"
    assert steps.change(uid, "2.25.77", "IN PROGRESS") == 0
    run_until(session, lambda: steps.state(uid) == "COMPLETED")
    assert [what for _, what in steps.history].count("IN PROGRESS") == 1


def test_a_node_that_is_down_is_waited_for(tmp_path: Path, orthanc_server: Orthanc) -> None:
    """Nothing answers for a while; when it does, the step is worked off."""
    steps = Steps()
    uid = derive_uid("step", "down")
    steps.add(uid, stored(orthanc_server, tmp_path / "in", 495), aet="ORTHANC")
    with dimse_node(Steps()) as gone:
        pass
    session = open_for(tmp_path, gone.model_copy(update={"connect_seconds": 1.0}), orthanc_server)
    loop = WorkItemLoop(session, open_spool(session), session.settings.listen.work_items, lambda: None)  # type: ignore[union-attr, arg-type]
    loop.turn()
    assert WorkItems(session.worklist.engine).rows("ris") == []
    with dimse_node(steps, port=gone.port):
        loop.turn()
    assert steps.state(uid) == "IN PROGRESS"


def test_times_are_universal_whatever_the_database_says() -> None:
    """PostgreSQL returns times in the zone of its session."""
    when = datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))
    step = WorkItem(sop_instance_uid="1", source="s", transaction_uid="2", state="claimed", study_key="", reason="")
    step.updated_at = when
    assert _row(step).since == "20260228233000+0000"
    step.updated_at = when.replace(tzinfo=None)
    assert _row(step).since == "20260301013000+0000"
