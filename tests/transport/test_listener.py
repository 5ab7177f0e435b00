"""The whole way: C-STORE in, explained, results in Orthanc; killed, switched off, late and named patients."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import dcmread
from sqlalchemy.exc import OperationalError

from medxai import listener as listener_module
from medxai.listener import Listener, open_spool
from medxai.records.received import ReceivedStudies
from medxai.session import Session, open_session
from medxai.transport.spool import study_key
from tests.pacs import Orthanc, free_port, store_scp
from tests.studies import ROOT, dicom_study, edit, jobs, leftovers, record, settings_for
from tests.test_privacy import found_in, plant
from tests.transport.callers import storescu

pytestmark = pytest.mark.pacs

FEW = {"formats": ["parametric_map", "segmentation"], "send_withheld": True}
MANY = {"formats": ["parametric_map", "segmentation", "secondary_capture"], "send_withheld": True}


def listen(**other: Any) -> dict[str, Any]:
    """The section of the settings."""
    return {"port": 0, "calling": ["STORESCU"], "quiet_seconds": 0.5, "free_bytes": 0, **other}


def web(server: Orthanc) -> dict[str, Any]:
    """Orthanc as a destination."""
    return {"name": "orthanc", "kind": "dicomweb", "url": server.web_url}


@contextmanager
def listening(session: Session) -> Iterator[Listener]:
    """A listener in this process."""
    spool = open_spool(session)
    with spool.exclusive() as alone:
        assert alone
        listener = Listener(session, spool)
        listener.start()
        try:
            yield listener
        finally:
            listener.stop()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Poll."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not come to this"
        time.sleep(0.05)


def results(output: Path) -> list[str]:
    """SOP Instance UIDs of all results."""
    return sorted(str(dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in output.glob("*/*.dcm"))


def uid_of(folder: Path) -> str:
    """StudyInstanceUID of a series."""
    return str(dcmread(next(folder.glob("*.dcm"))).StudyInstanceUID)


def test_from_the_scanner_to_the_archive(tmp_path: Path, orthanc_server: Orthanc) -> None:
    """Two studies at once; all results arrive once, everything is done, nothing is left over."""
    session = open_session(
        settings_for((), tmp_path / "out", export=MANY, destinations=[web(orthanc_server)], listen=listen())
    )
    folders = [dicom_study(tmp_path / name, 500 + number) for number, name in enumerate("ab")]
    with listening(session) as listener:
        assert storescu(listener.port, folders).returncode == 0
        wait_for(lambda: [row.state for row in jobs(tmp_path / "out")] == ["done", "done"])
        received = orthanc_server.received()
        uids = results(tmp_path / "out")
        assert len(uids) == 32
        assert {uid: received[uid] for uid in uids} == dict.fromkeys(uids, 1)
        studies = ReceivedStudies(session.worklist.engine)
        rows = studies.rows()
        assert {row.study_key for row in rows} == {study_key(uid_of(folder)) for folder in folders}
        assert {(row.state, row.objects) for row in rows} == {("done", 14)}
        # Sent again as a whole: nothing is new, nothing is analysed or delivered a second time.
        assert storescu(listener.port, folders).returncode == 0
        wait_for(lambda: all(row.state == "done" and row.generation > 1 for row in studies.rows()))
    assert [(row.attempts, row.analyses) for row in jobs(tmp_path / "out")] == [(1, 1)] * 2
    assert orthanc_server.received() == received
    assert [name for name in leftovers(tmp_path / "out") if not name.endswith(".lock")] == []


def test_a_slice_that_comes_late(tmp_path: Path, orthanc_server: Orthanc) -> None:
    """A series with a gap is put aside; with the late slice it is explained. One at the end: explained anew."""
    session = open_session(
        settings_for((), tmp_path / "out", export=FEW, destinations=[web(orthanc_server)], listen=listen())
    )
    gap, end = dicom_study(tmp_path / "gap", 510), dicom_study(tmp_path / "end", 511)
    late = []
    for folder, place in ((gap, 6), (end, 13)):
        path = sorted(folder.glob("*.dcm"), key=lambda p: float(dcmread(p).ImagePositionPatient[2]))[place]
        late.append(path.rename(tmp_path / f"{place}.dcm"))
    with listening(session) as listener:
        assert storescu(listener.port, [gap, end]).returncode == 0
        wait_for(lambda: sorted(row.state for row in jobs(tmp_path / "out")) == ["done", "quarantined"])
        first = set(results(tmp_path / "out"))
        assert storescu(listener.port, late).returncode == 0
        wait_for(lambda: [row.state for row in jobs(tmp_path / "out")].count("done") == 3)
    rows = jobs(tmp_path / "out")
    assert len(rows) == 4  # each content of each series is a job of its own
    assert sorted(row.state for row in rows) == ["done", "done", "done", "quarantined"]
    received = orthanc_server.received()
    now = set(results(tmp_path / "out"))
    assert not first & now
    assert {received[uid] for uid in first | now} == {1}


def test_the_archive_is_down_for_a_while(tmp_path: Path) -> None:
    """Studies keep coming and are explained while nobody answers; when the archive is up everything arrives once."""
    port = free_port()
    sink = {"name": "sink", "kind": "dimse", "host": "127.0.0.1", "port": port, "aet": "SINK", "connect_seconds": 1}
    session = open_session(
        settings_for(
            (), tmp_path / "out", export=FEW, destinations=[sink], listen=listen(),
            delivery_retry_seconds=0.3, delivery_retry_cap_seconds=1.0,
        )
    )  # fmt: skip
    with listening(session) as listener:
        for number in range(3):
            assert storescu(listener.port, dicom_study(tmp_path / str(number), 520 + number)).returncode == 0
        wait_for(lambda: [row.state for row in jobs(tmp_path / "out")] == ["exported"] * 3)
        wait_for(lambda: all(row.attempts >= 2 for row in session.outbox.rows()))
        assert not (tmp_path / "out" / "quarantine").exists()
        folder = tmp_path / "sink"
        folder.mkdir()
        with store_scp(folder, port) as server:
            wait_for(lambda: [row.state for row in jobs(tmp_path / "out")] == ["done"] * 3)
            arrived = sorted(str(dcmread(path).SOPInstanceUID) for path in server.folder.iterdir())
    assert arrived == results(tmp_path / "out")


def test_what_the_archive_refuses_is_put_aside_with_the_reason(tmp_path: Path, orthanc_server: Orthanc) -> None:
    """The other destination gets everything all the same; after `retry` the first one does as well."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    status = [0xC123]
    entity = AE(ae_title="SINK")
    entity.supported_contexts = AllStoragePresentationContexts
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _event: status[0])]
    )
    sink = {"name": "sink", "kind": "dimse", "host": "127.0.0.1", "port": server.server_address[1], "aet": "SINK"}
    session = open_session(
        settings_for((), tmp_path / "out", export=FEW, destinations=[sink, web(orthanc_server)], listen=listen())
    )
    try:
        with listening(session) as listener:
            assert storescu(listener.port, dicom_study(tmp_path / "a", 530)).returncode == 0
            wait_for(lambda: [row.state for row in jobs(tmp_path / "out")] == ["quarantined"])
            wait_for(lambda: len(session.outbox.rows(("sent",))) == 2)
            (row,) = jobs(tmp_path / "out")
            assert "status 0xC123" in row.reason
            assert record(tmp_path / "out", row.study_key)["stage"] == "send"
            assert {line.destination for line in session.outbox.rows(("refused",))} == {"sink"}
            status[0] = 0
            assert session.outbox.retry("sink") == 2
            wait_for(lambda: [row.state for row in jobs(tmp_path / "out")] == ["done"])
        assert not list((tmp_path / "out" / "quarantine").iterdir())
    finally:
        server.shutdown()


def test_received_objects_go_after_their_time(tmp_path: Path) -> None:
    """With keep_hours 0 the spool is empty once a study was analysed; the results stay."""
    session = open_session(settings_for((), tmp_path / "out", export=FEW, listen=listen(keep_hours=0)))
    with listening(session) as listener:
        assert storescu(listener.port, dicom_study(tmp_path / "a", 540)).returncode == 0
        wait_for(lambda: [row.state for row in jobs(tmp_path / "out")] == ["done"])
        wait_for(lambda: not list((tmp_path / "out" / ".medxai" / "spool").rglob("*.dcm")))
        assert ReceivedStudies(session.worklist.engine).rows() == []
    assert len(results(tmp_path / "out")) == 2


def test_a_database_that_is_locked_is_no_fault_of_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study is queued again and done; it does not end as refused."""
    session = open_session(settings_for((), tmp_path / "out", export=FEW, listen=listen()))
    begin, failures = (
        listener_module.analyse_received,
        [OperationalError("", None, Exception("locked")), OSError(28, "")],
    )

    def analyse(*given: Any, **named: Any) -> Any:
        if failures:
            raise failures.pop()
        return begin(*given, **named)

    monkeypatch.setattr(listener_module, "analyse_received", analyse)
    with listening(session) as listener:
        assert storescu(listener.port, dicom_study(tmp_path / "a", 541)).returncode == 0
        wait_for(lambda: [row.state for row in jobs(tmp_path / "out")] == ["done"])
        assert [row.state for row in ReceivedStudies(session.worklist.engine).rows()] == ["done"]
    assert not failures


class Process:
    """`medxai listen` in a process of its own, which may be killed."""

    def __init__(self, root: Path, values: dict[str, Any]) -> None:
        self.root, self.output, self.config = root, root / "out", root / "listen.yaml"
        self.port = free_port()
        section = listen(port=self.port, **values.pop("listen", {}))
        base = {"output": str(self.output), "bundle": "phantom_ct", "modality": "CT", "export": MANY}
        self.config.write_text(yaml.safe_dump({**base, "listen": section, **values}))
        self.logs: list[Path] = []
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        log = self.root / f"{len(self.logs)}.log"
        self.logs.append(log)
        with log.open("wb") as stream:
            line = [sys.executable, "-m", "medxai", "-v", "listen", str(self.config)]
            self.process = subprocess.Popen(line, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)
        wait_for(lambda: "listening as" in log.read_text() or self._died(log), 120)

    def _died(self, log: Path) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            pytest.fail(log.read_text())
        return False

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def end(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(90)

    def query(self, sql: str) -> list[Any]:
        """Rows of the database."""
        path = self.output / ".medxai" / "worklist.sqlite"
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
                return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []

    def states(self) -> list[str]:
        """States of the jobs."""
        return sorted(state for (state,) in self.query("SELECT state FROM job"))


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Make such processes; none survives the test."""
    made: list[Process] = []

    def make(**values: Any) -> Process:
        made.append(Process(tmp_path, values))
        return made[-1]

    yield make
    for each in made:
        if each.process is not None and each.process.poll() is None:
            each.kill()


@pytest.mark.slow
def test_killed_while_receiving_and_while_delivering(
    process: Callable[..., Process], tmp_path: Path, orthanc_server: Orthanc
) -> None:
    """SIGKILL with half of a study received, then with half of the results sent: nothing lost, nothing twice."""
    there = process(destinations=[web(orthanc_server)], listen={"quiet_seconds": 6})
    folders = [dicom_study(tmp_path / f"in{number}", 550 + number) for number in range(3)]
    for folder in folders:
        edit(folder, plant)
    halves = [sorted(folder.glob("*.dcm")) for folder in folders]
    there.start()
    for half in halves:
        assert storescu(there.port, half[:7]).returncode == 0
    there.kill()
    assert there.states() == []
    spool = there.output / ".medxai" / "spool"
    assert len(list(spool.rglob("*.dcm"))) == 21  # acknowledged is kept
    there.start()
    for half in halves:
        assert storescu(there.port, half[7:]).returncode == 0

    def in_the_middle() -> bool:
        counts = dict(there.query("SELECT state, count(*) FROM delivery GROUP BY state"))
        return counts.get("sent", 0) >= 4 and counts.get("sending", 0) >= 2

    wait_for(in_the_middle, 120)
    there.kill()
    arrived = orthanc_server.received()
    there.start()
    wait_for(lambda: there.states() == ["done"] * 3, 120)
    assert there.end() == 0
    uids = results(there.output)
    received = orthanc_server.received()
    assert set(uids) & set(arrived)
    assert len(uids) == len(set(uids)) == 48
    assert {uid: received[uid] for uid in uids} == dict.fromkeys(uids, 1)
    assert there.query("SELECT DISTINCT state FROM delivery") == [("sent",)]
    # No name anywhere: log of all three processes, file names, database.
    text = b"".join(log.read_bytes() for log in there.logs)
    assert b"objects analysed" in text
    assert b"Traceback" not in text
    assert found_in(text) == []
    assert [name for name in map(str, there.output.rglob("*")) if found_in(name.encode())] == []
    assert found_in(b"".join(path.read_bytes() for path in spool.parent.glob("worklist.sqlite*"))) == []


@pytest.mark.slow
def test_one_listener_for_a_spool_and_an_orderly_end(process: Callable[..., Process], tmp_path: Path) -> None:
    """A second one says so and leaves; SIGTERM ends with 0."""
    there = process()
    there.start()
    line = [sys.executable, "-m", "medxai", "listen", str(there.config)]
    second = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 2
    assert "another listener works on the spool" in second.stderr
    assert storescu(there.port, dicom_study(tmp_path / "a", 560)).returncode == 0
    wait_for(lambda: there.states() == ["done"], 60)
    assert there.end() == 0
    assert study_key(uid_of(tmp_path / "a")) in there.logs[0].read_text()
