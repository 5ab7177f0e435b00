"""The outbox: announced with the export, claimed by one, kept over crashes, tried again, withdrawn."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

import medxai.records
from medxai.errors import DeliveryError
from medxai.records.database import open_database, sqlite_url
from medxai.records.outbox import Item, Outbox
from medxai.records.worklist import JobIdentity, Worklist

A, B = Item("1.2.3", "k1/a.dcm", "a" * 64, "pacs"), Item("1.2.4", "k1/b.dcm", "b" * 64, "pacs")
WEB = Item("1.2.3", "k1/a.dcm", "a" * 64, "web")


@pytest.fixture
def worklist(url: str) -> Worklist:
    """An empty worklist."""
    return Worklist(open_database(url))


@pytest.fixture
def outbox(worklist: Worklist) -> Outbox:
    """Its outbox."""
    return Outbox(worklist.engine)


def job(worklist: Worklist, content: str = "i") -> int:
    """A job of the study k1 with other content."""
    made = worklist.register(JobIdentity("k1", content * 64, "m" * 64, "c" * 64))
    assert worklist.claim(made.id)
    return made.id


def states(outbox: Outbox) -> dict[tuple[str, str], str]:
    """``(UID, destination)`` -> state."""
    return {(row.sop_instance_uid, row.destination): row.state for row in outbox.rows()}


def test_export_and_outbox_are_one_transaction(worklist: Worklist, outbox: Outbox) -> None:
    """A failure while the objects are announced leaves the job where it was."""
    number = job(worklist)
    broken = Item("1.2.5", "k1/c.dcm", "c" * 64, None)  # type: ignore[arg-type]
    with pytest.raises(Exception, match=r"(?i)not.null"):
        outbox.exported(number, "/out/k1", [A, broken])
    assert worklist.get(number).state == "running"
    assert outbox.rows() == []
    outbox.exported(number, "/out/k1", [A, B, WEB])
    assert worklist.get(number).state == "exported"
    assert set(states(outbox).values()) == {"waiting"}
    assert len(outbox.rows()) == 3
    assert outbox.is_ours("1.2.4")
    assert not outbox.is_ours("1.2.40")


def test_life_of_an_object(worklist: Worklist, outbox: Outbox) -> None:
    """Taken, sent, and never given out again; the job is settled when nothing is left."""
    number = job(worklist)
    outbox.exported(number, "/out/k1", [A, WEB])
    assert outbox.settled_jobs() == []
    (row,) = outbox.take("pacs")
    assert (row.sop_instance_uid, row.doubtful, row.study_key) == ("1.2.3", False, "k1")
    assert outbox.take("pacs") == []
    outbox.sent(row)
    outbox.exported(number, "/out/k1", [A, WEB])
    assert states(outbox) == {("1.2.3", "pacs"): "sent", ("1.2.3", "web"): "waiting"}
    (other,) = outbox.take("web")
    outbox.sent(other)
    assert outbox.settled_jobs() == [number]


def test_one_thread_gets_an_object(url: str, worklist: Worklist, outbox: Outbox) -> None:
    """Eight that take at the same time: every row once."""
    number = job(worklist)
    items = [Item(f"1.2.{n}", f"k1/{n}.dcm", "a" * 64, "pacs") for n in range(40)]
    outbox.exported(number, "/out/k1", items)
    got: list[str] = []
    lock = threading.Lock()

    def take() -> None:
        rows = Outbox(open_database(url)).take("pacs")
        with lock:
            got.extend(row.sop_instance_uid for row in rows)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(item.sop_instance_uid for item in items)


def test_what_a_killed_process_was_sending_is_doubtful(url: str, worklist: Worklist, outbox: Outbox) -> None:
    """While it lives nobody gets its rows; after SIGKILL they come back as doubtful."""
    outbox.exported(job(worklist), "/out/k1", [A, B])
    code = (
        "import sys; from medxai.records.database import open_database; from medxai.records.outbox import Outbox\n"
        f"rows = Outbox(open_database({url!r})).take('pacs'); print(len(rows), flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"2\n"
        assert outbox.take("pacs") == []
        process.kill()
        process.wait()
    assert [row.doubtful for row in outbox.take("pacs")] == [True, True]


def test_postponed_until_its_time(worklist: Worklist, outbox: Outbox) -> None:
    """Not due before; a destination that answers again makes everything due; doubt is kept."""
    outbox.exported(job(worklist), "/out/k1", [A, B])
    first, second = outbox.take("pacs")
    later = time.time() + 1000
    outbox.postpone(first, "pacs did not answer", later, doubtful=True)
    outbox.postpone(second, "pacs did not answer", later, doubtful=False)
    assert outbox.take("pacs") == []
    assert outbox.next_due() == pytest.approx(later)
    assert [row.attempts for row in outbox.rows()] == [1, 1]
    assert [row.sop_instance_uid for row in outbox.take("pacs", moment=later + 1)] == ["1.2.3", "1.2.4"]
    for row in (first, second):
        outbox.postpone(row, "again", later, doubtful=row is first)
    outbox.hurry("web")
    assert outbox.take("pacs") == []
    outbox.hurry("pacs")
    assert [(row.sop_instance_uid, row.doubtful) for row in outbox.take("pacs")] == [("1.2.3", True), ("1.2.4", False)]


def test_refused_waits_for_a_person(worklist: Worklist, outbox: Outbox) -> None:
    """Not due by itself; `retry` makes it due, doubtful, and the job that was put aside for it is exported again."""
    number = job(worklist)
    outbox.exported(number, "/out/k1", [A, WEB])
    (row,) = outbox.take("pacs")
    outbox.refuse(row, "pacs refused it")
    worklist.quarantine(number, DeliveryError("pacs refused it"))
    outbox.hurry("pacs")
    assert outbox.take("pacs") == []
    assert outbox.settled_jobs() == []
    assert outbox.retry("web") == 1
    assert states(outbox)[("1.2.3", "pacs")] == "refused"
    assert outbox.retry() == 2
    assert worklist.get(number).state == "exported"
    (row,) = outbox.take("pacs")
    assert row.doubtful


def test_a_destination_that_is_gone_is_given_up(worklist: Worklist, outbox: Outbox) -> None:
    """Only what waits for it; a job that waits for nothing else is settled; announced anew it is sent."""
    number = job(worklist)
    outbox.exported(number, "/out/k1", [A, WEB])
    assert outbox.withdraw("pacs") == 1
    assert outbox.withdraw("pacs") == 0
    assert states(outbox) == {("1.2.3", "pacs"): "withdrawn", ("1.2.3", "web"): "waiting"}
    assert outbox.settled_jobs() == []
    assert outbox.retry("pacs") == 0
    outbox.sent(outbox.take("web")[0])
    assert outbox.settled_jobs() == [number]
    outbox.announce(number, [A])
    assert states(outbox)[("1.2.3", "pacs")] == "uncertain"


def test_newer_results_withdraw_what_was_not_sent(worklist: Worklist, outbox: Outbox) -> None:
    """A slice came late: the first result that is at the archive stays, the one that waits is not sent any more."""
    old = job(worklist)
    outbox.exported(old, "/out/k1", [A, B])
    outbox.sent(outbox.take("pacs")[0])
    outbox.release()
    new = job(worklist, "n")
    late = Item("1.9.1", "k1/a.dcm", "d" * 64, "pacs")
    outbox.exported(new, "/out/k1", [late])
    assert states(outbox) == {("1.2.3", "pacs"): "sent", ("1.2.4", "pacs"): "withdrawn", ("1.9.1", "pacs"): "waiting"}
    assert outbox.settled_jobs() == [old]
    outbox.exported(old, "/out/k1", [B])  # the older content again: it is wanted after all
    assert states(outbox)[("1.2.4", "pacs")] == "uncertain"
    assert states(outbox)[("1.9.1", "pacs")] == "withdrawn"


def test_an_older_database_is_migrated(tmp_path: Path) -> None:
    """Deliveries of the first schema: sent stays sent, a transfer under way has an unknown end."""
    url = sqlite_url(tmp_path / "old.sqlite")
    config = Config()
    config.set_main_option("script_location", str(Path(medxai.records.__file__).parent / "migrations"))
    with create_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO job VALUES (1, 'k1', 'i', 'm', 'c', 'exported', 'export', 1, 1, '', '', '/out/k1', '',"
                " '2026-01-01', '2026-01-01')"
            )
        )
        for number, state in enumerate(("sent", "sending"), 1):
            row = {"n": number, "u": f"1.2.{number}", "s": state}
            connection.execute(text("INSERT INTO delivery VALUES (:n, 1, :u, 'pacs', :s, '2026-01-01')"), row)
    outbox = Outbox(open_database(url))
    assert states(outbox) == {("1.2.1", "pacs"): "sent", ("1.2.2", "pacs"): "uncertain"}
    outbox.announce(1, [Item("1.2.2", "k1/b.dcm", "b" * 64, "pacs")])
    (row,) = outbox.take("pacs")
    assert (row.path, row.doubtful) == ("k1/b.dcm", True)
    with create_engine(url).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        found = connection.execute(text("SELECT sop_instance_uid, state FROM delivery ORDER BY id")).all()
    assert [tuple(each) for each in found] == [("1.2.1", "sent"), ("1.2.2", "sending")]


def test_a_job_is_claimed_whole_however_many_objects_it_has(worklist: Worklist, outbox: Outbox) -> None:
    """The batch takes a job without failures for delivered: a capture per slice makes more than a thousand objects."""
    number = job(worklist)
    outbox.exported(number, "k1", [Item(f"1.2.{n}", f"k1/{n}.dcm", "a" * 64, "pacs") for n in range(1200)])
    assert len(outbox.take("pacs", job_id=number)) == 1200


def test_what_a_vanished_machine_had_claimed_can_be_tried_again(worklist: Worklist, outbox: Outbox) -> None:
    """A container that was killed comes back under another host name; a person says that it is gone."""
    number = job(worklist)
    outbox.exported(number, "k1", [A, B])
    gone = Outbox(outbox.engine, owner="vanished:1:77")
    assert len(gone.take("pacs")) == 2
    assert outbox.take("pacs") == []
    assert outbox.retry() == 2
    assert [row.doubtful for row in outbox.take("pacs")] == [True, True]
    assert outbox.retry() == 0  # this process runs
