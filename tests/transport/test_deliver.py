"""Emptying the outbox into Orthanc and storescp: once each, whatever breaks in between."""

from __future__ import annotations

import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from medxai.identity import sha256_file
from medxai.records.database import open_database, sqlite_url
from medxai.records.outbox import Item, Outbox, OutboxRow
from medxai.records.worklist import JobIdentity, Worklist
from medxai.settings import Destination
from medxai.transport.deliver import Outcome, Retry, deliver
from medxai.transport.send import send
from tests.pacs import Orthanc, free_port, store_scp
from tests.studies import dicom_study
from tests.transport.web_service import Quiet, web_service

pytestmark = pytest.mark.pacs

QUICK = Retry(0.2, 0.5)


class Desk:
    """An outbox with the objects of one study in an output folder."""

    def __init__(self, root: Path, seed: int, names: tuple[str, ...]) -> None:
        self.root = root / "out"
        self.worklist = Worklist(open_database(sqlite_url(root / "w.sqlite")))
        self.outbox = Outbox(self.worklist.engine)
        self.paths = sorted(dicom_study(self.root / "k1", seed).glob("*.dcm"))[:5]
        self.uids = [str(dcmread(path).SOPInstanceUID) for path in self.paths]
        self.job = self.worklist.register(JobIdentity("k1", f"{seed}", "m", "c")).id
        self.worklist.claim(self.job)
        items = [
            Item(uid, f"k1/{path.name}", sha256_file(path), name)
            for name in names
            for uid, path in zip(self.uids, self.paths, strict=True)
        ]
        self.outbox.exported(self.job, str(self.root / "k1"), items)

    def deliver(self, destination: Destination, **options: Any) -> Outcome:
        """One round."""
        return deliver(self.outbox, destination, self.root, retry=QUICK, **options)

    def states(self) -> list[str]:
        """States in order."""
        return [row.state for row in self.outbox.rows()]


def node(server: Orthanc, kind: str) -> Destination:
    """Orthanc as a destination."""
    if kind == "dimse":
        return Destination(name="orthanc", kind="dimse", host=server.host, port=server.dicom_port, aet=server.aet)
    return Destination(name="orthanc", kind="dicomweb", url=server.web_url)


@pytest.mark.parametrize(("kind", "seed"), [("dimse", 401), ("dicomweb", 402)])
def test_what_may_have_arrived_is_asked_for(kind: str, seed: int, tmp_path: Path, orthanc_server: Orthanc) -> None:
    """Two of five had arrived when the process died: three are sent, two are found, nothing arrives twice."""
    desk = Desk(tmp_path, seed, ("orthanc",))
    where = node(orthanc_server, kind)
    send(desk.paths[:2], where)
    taken = desk.outbox.take("orthanc")
    for number, row in enumerate(taken):
        desk.outbox.postpone(row, "", 0.0, doubtful=number < 3, tried=False)
    outcome = desk.deliver(where)
    assert (outcome.sent, outcome.found, outcome.failures) == (3, 2, [])
    assert desk.states() == ["sent"] * 5
    received = orthanc_server.received()
    assert {uid: received[uid] for uid in desk.uids} == dict.fromkeys(desk.uids, 1)
    again = desk.deliver(where)
    assert (again.sent, again.found) == (0, 0)


def test_down_for_a_while(tmp_path: Path) -> None:
    """Nothing answers: all wait, with growing pauses, none is lost; when the node is up each arrives once."""
    desk = Desk(tmp_path, 403, ("sink",))
    port = free_port()
    where = Destination(name="sink", kind="dimse", host="127.0.0.1", port=port, aet="SINK", connect_seconds=2)
    first = desk.deliver(where)
    assert len(first.failures) == 5
    assert desk.states() == ["waiting"] * 5
    assert desk.deliver(where).failures == []  # not due yet
    limit = time.monotonic() + 30
    while max(row.attempts for row in desk.outbox.rows()) < 4:
        assert time.monotonic() < limit
        desk.deliver(where)
        time.sleep(0.1)
    folder = tmp_path / "sink"
    folder.mkdir()
    with store_scp(folder, port) as server:
        while desk.states() != ["sent"] * 5:
            assert time.monotonic() < limit
            desk.deliver(where)
            time.sleep(0.1)
        arrived = [str(dcmread(path).SOPInstanceUID) for path in server.folder.iterdir()]
    assert sorted(arrived) == sorted(desk.uids)
    assert {row.attempts for row in desk.outbox.rows()} == {5}


def test_one_study_is_enough_to_see_that_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred studies wait: one attempt to connect a round, and each has its own moment for the next."""
    desk = Desk(tmp_path, 411, ("s",))
    for number in range(99):
        job = desk.worklist.register(JobIdentity(f"s{number}", "i", "m", "c")).id
        item = Item(f"1.2.{number}", f"k1/{desk.paths[0].name}", sha256_file(desk.paths[0]), "s")
        desk.outbox.exported(job, "x", [item])
    calls: list[int] = []

    def counted(paths: Any, *rest: Any) -> Any:
        calls.append(len(paths))
        return send(paths, *rest)

    monkeypatch.setattr("medxai.transport.deliver.send", counted)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        where = Destination(
            name="s", kind="dimse", host="127.0.0.1", port=deaf.getsockname()[1], aet="S", connect_seconds=1
        )
        outcome = desk.deliver(where)
    assert len(calls) == 1
    assert len(outcome.failures) == 104
    assert len({round(row.next_try, 3) for row in desk.outbox.rows()}) > 50


@contextmanager
def choosy(answers: dict[str, int]) -> Iterator[tuple[Destination, list[str]]]:
    """A storage node that answers some objects with another status, and what it was sent."""
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    seen: list[str] = []

    def store(event: Any) -> int:
        uid = str(event.request.AffectedSOPInstanceUID)
        seen.append(uid)
        return answers.get(uid, 0)

    entity = AE(ae_title="SINK")
    entity.supported_contexts = AllStoragePresentationContexts
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield Destination(name="s", kind="dimse", host="127.0.0.1", port=server.server_address[1], aet="SINK"), seen
    finally:
        server.shutdown()


def test_a_refused_object_does_not_hold_the_others_up(tmp_path: Path) -> None:
    """The second of five is refused for good: four arrive, one waits for a person, with the reason."""
    desk = Desk(tmp_path, 404, ("s",))
    with choosy({desk.uids[1]: 0xA900}) as (where, seen):
        outcome = desk.deliver(where)
        assert (outcome.sent, len(outcome.failures)) == (4, 1)
        assert desk.states() == ["sent", "refused", "sent", "sent", "sent"]
        assert "status 0xA900" in desk.outbox.rows(("refused",))[0].reason
        assert desk.deliver(where).sent == 0
        assert seen == desk.uids
        assert desk.outbox.retry() == 1
    with choosy({}) as (where, seen):
        assert desk.deliver(where).sent == 1
        assert seen == [desk.uids[1]]
    assert desk.outbox.settled_jobs() == [desk.job]


def test_a_busy_node_is_tried_again(tmp_path: Path) -> None:
    """A700 in the middle: the others go on, and what was accepted is not sent again."""
    desk = Desk(tmp_path, 405, ("s",))
    answers = {desk.uids[2]: 0xA700}
    with choosy(answers) as (where, seen):
        outcome = desk.deliver(where)
        assert (outcome.sent, len(outcome.failures)) == (4, 1)
        assert desk.states() == ["sent", "sent", "waiting", "sent", "sent"]
        answers.clear()
        limit = time.monotonic() + 10
        while desk.states() != ["sent"] * 5:
            assert time.monotonic() < limit
            desk.deliver(where)
            time.sleep(0.05)
        assert seen == [*desk.uids, desk.uids[2]]


def test_an_unknown_caller_is_put_aside_as_a_whole(tmp_path: Path, orthanc_server: Orthanc) -> None:
    """A node that rejects the association rejects every object."""
    desk = Desk(tmp_path, 406, ("n",))
    from pynetdicom import AE

    entity = AE(ae_title="SINK")
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2")
    entity.require_calling_aet = ["SOMEBODY"]
    server = entity.start_server(("127.0.0.1", 0), block=False)
    try:
        where = Destination(name="n", kind="dimse", host="127.0.0.1", port=server.server_address[1], aet="SINK")
        outcome = desk.deliver(where)
    finally:
        server.shutdown()
    assert len(outcome.failures) == 5
    assert desk.states() == ["refused"] * 5
    assert "rejected the association" in desk.outbox.rows()[0].reason


def test_a_file_that_was_changed_is_not_sent(tmp_path: Path) -> None:
    """What leaves is what was announced, or nothing."""
    desk = Desk(tmp_path, 407, ("s",))
    desk.paths[0].write_bytes(desk.paths[0].read_bytes()[:-2] + b"!!")
    desk.paths[1].unlink()
    with choosy({}) as (where, seen):
        first = desk.deliver(where)
        # Its study may just be exported anew: nobody is alarmed before a second look.
        assert (first.failures, desk.states()) == ([], ["waiting", "waiting", "sent", "sent", "sent"])
        time.sleep(QUICK.first)
        outcome = desk.deliver(where)
    assert seen == desk.uids[2:]
    reasons = [error.reason for _, error in outcome.failures]
    assert "was changed after it was exported" in reasons[0]
    assert "cannot be read (FileNotFoundError)" in reasons[1]
    assert desk.states() == ["refused", "refused", "sent", "sent", "sent"]


def test_a_file_that_was_changed_is_said_at_once_to_who_waits_for_it(tmp_path: Path) -> None:
    """A run that delivers its own study has nobody who would replace the file."""
    desk = Desk(tmp_path, 410, ("s",))
    desk.paths[0].unlink()
    with choosy({}) as (where, _):
        outcome = desk.deliver(where, job_id=desk.job)
    assert [error.reason for _, error in outcome.failures] == [
        f"{desk.paths[0].name} cannot be read (FileNotFoundError); run the study again"
    ]


def test_stopping_gives_the_rest_back(tmp_path: Path) -> None:
    """After two objects somebody asks to stop: the other three wait, untouched."""
    desk = Desk(tmp_path, 408, ("s",))
    with choosy({}) as (where, seen):
        desk.deliver(where, stop=lambda: len(seen) >= 2)
        assert desk.states() == ["sent", "sent", "waiting", "waiting", "waiting"]
        desk.deliver(where)
        assert seen == desk.uids


def test_a_line_that_breaks_after_the_object_is_doubtful(tmp_path: Path) -> None:
    """The service takes the body and says nothing: only that object is asked for, the others were never sent."""
    desk = Desk(tmp_path, 409, ("web",))

    class Mute(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.close_connection = True
            self.connection.close()

    with web_service(Mute) as where:
        outcome = desk.deliver(where)
    assert outcome.sent == 0
    assert desk.states() == ["uncertain", "waiting", "waiting", "waiting", "waiting"]


def test_a_dead_web_service_leaves_no_doubt(tmp_path: Path) -> None:
    """The connection was never made: nothing can have arrived."""
    desk = Desk(tmp_path, 410, ("web",))
    where = Destination(name="web", kind="dicomweb", url=f"http://127.0.0.1:{free_port()}/x", connect_seconds=2)
    assert len(desk.deliver(where).failures) == 5
    assert desk.states() == ["waiting"] * 5


def test_a_failure_of_our_own_leaves_nothing_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database fails in the middle: what was not settled comes back as doubtful, in the same process."""
    desk = Desk(tmp_path, 412, ("s",))
    real, calls = desk.outbox.sent, []

    def sent(row: OutboxRow) -> None:
        calls.append(row)
        if len(calls) == 2:
            raise sqlite3.OperationalError("database is locked")
        real(row)

    monkeypatch.setattr(desk.outbox, "sent", sent)
    with choosy({}) as (where, seen):
        with pytest.raises(sqlite3.OperationalError):
            desk.deliver(where)
        assert desk.states() == ["sent", *["uncertain"] * 4]
        time.sleep(0.3)
        desk.deliver(where)
        assert desk.states() == ["sent"] * 5
    assert seen == [*desk.uids[:2], *desk.uids[1:]]  # this node cannot be asked: one comes again under its UID


@pytest.mark.parametrize(("busy", "asked", "sent"), [(1, 5, 4), (5, 3, 0)])
def test_an_object_that_is_put_off_does_not_hold_up_the_others(
    tmp_path: Path, busy: int, asked: int, sent: int
) -> None:
    """A service that always fails on the first object gets the other four; one that is down is not asked five times."""
    desk = Desk(tmp_path, 420 + busy, ("web",))
    wanted = {uid.encode() for uid in desk.uids[:busy]}
    posts: list[bytes] = []

    class Choosy(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.append(body)
            if any(uid in body for uid in wanted):
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    with web_service(Choosy) as where:
        outcome = desk.deliver(where)
    assert len(posts) == asked
    assert outcome.sent == sent
    assert len(outcome.failures) == 5 - sent
    assert sorted(desk.states()) == ["sent"] * sent + ["waiting"] * (5 - sent)
