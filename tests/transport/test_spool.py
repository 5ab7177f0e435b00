"""The spool: whole files only, quiet times, what is found after a stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from medxai.records.received import ReceivedStudies
from medxai.transport.spool import Spool, SpoolFullError, object_name, study_key

ONE = study_key("1.2.1")


@pytest.fixture
def spool(tmp_path: Path, records: ReceivedStudies) -> Spool:
    """An empty spool."""
    return Spool(tmp_path / "spool", records, note_seconds=0.05)


def again(spool: Spool) -> Spool:
    """The spool as another process finds it."""
    return Spool(spool.root, spool.records, note_seconds=0.05)


def test_quiet_time(spool: Spool) -> None:
    """Complete once nothing came for so long; every arrival and every part on its way starts it anew."""
    spool.store("1.2.1", "1.2.1.1", (b"one",))
    assert spool.complete_quiet(0.4) == []
    time.sleep(0.25)
    spool.store("1.2.1", "1.2.1.2", (b"two",))
    time.sleep(0.25)
    assert spool.complete_quiet(0.4) == []
    spool.touch(ONE)
    time.sleep(0.25)
    assert spool.complete_quiet(0.4) == []
    time.sleep(0.2)
    assert spool.complete_quiet(0.4) == [ONE]
    (row,) = spool.records.rows()
    assert (row.state, row.objects, row.bytes) == ("queued", 2, 6)
    assert spool.complete_quiet(0.4) == []


def test_an_object_that_comes_late_makes_it_gather_again(spool: Spool) -> None:
    """While queued, while analysed and after: the generation rises, and the end of the old one does not count."""
    spool.store("1.2.1", "1.2.1.1", (b"one",))
    assert spool.complete_quiet(0.0) == [ONE]
    spool.store("1.2.1", "1.2.1.2", (b"two",))
    assert spool.records.rows()[0].state == "gathering"
    assert spool.records.begin() is None
    assert spool.complete_quiet(0.0) == [ONE]
    row = spool.records.begin()
    assert row is not None
    assert row.generation == 2
    spool.store("1.2.1", "1.2.1.3", (b"three",))
    assert not spool.records.end(ONE, row.generation, [7])
    assert spool.complete_quiet(0.0) == [ONE]
    row = spool.records.begin()
    assert row is not None
    assert spool.records.end(ONE, row.generation, [7, 8])
    assert (spool.records.rows()[0].state, spool.records.rows()[0].jobs) == ("done", (7, 8))
    spool.store("1.2.1", "1.2.1.4", (b"four",))
    assert not spool.remove(ONE, row.generation)
    assert spool.records.rows()[0].state == "gathering"
    assert len(list(spool.folder(ONE).iterdir())) == 4


def test_nothing_is_removed_while_something_is_written(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object arrives at the moment at which its study is to be removed: it stays, since it is acknowledged."""
    spool.store("1.2.1", "1.2.1.1", (b"one",))
    spool.complete_quiet(0.0)
    row = spool.records.begin()
    assert row is not None
    assert spool.records.end(ONE, row.generation, [])
    real, removed = spool._write, []

    def write(*arguments: Any) -> None:
        real(*arguments)
        removed.append(spool.remove(ONE, row.generation))

    monkeypatch.setattr(spool, "_write", write)
    spool.store("1.2.1", "1.2.1.2", (b"two",))
    assert removed == [False]
    assert len(list(spool.folder(ONE).iterdir())) == 2
    assert spool.records.rows()[0].state == "gathering"
    spool.complete_quiet(0.0)
    row = spool.records.begin()
    assert row is not None
    assert spool.records.end(ONE, row.generation, [])
    assert spool.remove(ONE, row.generation)
    assert not spool.folder(ONE).exists()
    assert spool.records.rows() == []


def test_what_another_process_finds(spool: Spool) -> None:
    """After a kill: half files are removed, whole ones count whether noted or not, the quiet time starts again."""
    spool.store("1.2.1", "1.2.1.1", (b"one",))
    spool.store("1.2.2", "1.2.2.1", (b"uno",))
    assert spool.complete_quiet(0.0) == [ONE, study_key("1.2.2")]
    assert spool.records.begin() is not None
    half = spool.folder(ONE) / ".half"
    half.write_bytes(b"ha")
    unnoted = spool.root / study_key("1.2.3") / object_name("1.2.3.1")
    unnoted.parent.mkdir()
    unnoted.write_bytes(b"new")
    (spool.root / study_key("1.2.4")).mkdir()
    found = again(spool)
    assert found.recover() == 3
    assert not half.exists()
    rows = {row.study_key: row for row in found.records.rows()}
    assert rows[ONE].state == "queued"
    assert (rows[study_key("1.2.3")].state, rows[study_key("1.2.3")].objects) == ("gathering", 1)
    assert study_key("1.2.4") not in rows
    assert found.complete_quiet(0.5) == []
    time.sleep(0.55)
    assert found.complete_quiet(0.5) == [study_key("1.2.3")]


def test_a_noted_study_that_grew_before_the_kill_gathers_again(spool: Spool) -> None:
    """The file was there, its note was not: it must not be left out."""
    spool.store("1.2.1", "1.2.1.1", (b"one",))
    spool.complete_quiet(0.0)
    (spool.folder(ONE) / object_name("1.2.1.2")).write_bytes(b"two")
    found = again(spool)
    found.recover()
    (row,) = found.records.rows()
    assert (row.state, row.objects, row.generation) == ("gathering", 2, 2)


def test_a_study_that_outgrows_its_limit_is_put_aside(tmp_path: Path, records: ReceivedStudies) -> None:
    """The first object fits, the second does not; a replacement of the first may."""
    spool = Spool(tmp_path / "spool", records, study_bytes=5)
    spool.store("1.2.1", "1.2.1.1", (b"one",))
    with pytest.raises(SpoolFullError, match="study_bytes"):
        spool.store("1.2.1", "1.2.1.2", (b"two",))
    spool.store("1.2.1", "1.2.1.1", (b"three",))
    (row,) = records.rows()
    assert row.state == "refused"
    assert records.queue(ONE)
    assert records.rows()[0].state == "queued"


def test_a_limit_that_is_passed_again_puts_the_study_aside_again(tmp_path: Path, records: ReceivedStudies) -> None:
    """A person queues it as it is, the sender sends it once more: the object that is too large is refused anew."""
    spool = Spool(tmp_path / "spool", records, study_bytes=5, note_seconds=0.0)
    spool.store("1.2.1", "1.2.1.1", (b"one",))
    for _ in range(2):
        with pytest.raises(SpoolFullError, match="study_bytes"):
            spool.store("1.2.1", "1.2.1.2", (b"two",))
        assert spool.complete_quiet(0.0) == []
        assert records.rows()[0].state == "refused"
        records.queue(ONE)
        row = records.begin()
        assert row is not None
        records.end(ONE, row.generation, [1])
        spool.store("1.2.1", "1.2.1.1", (b"one",))
        assert records.rows()[0].state == "gathering"


def test_one_process_at_a_time(spool: Spool) -> None:
    """The second is told; when the first is gone it may."""
    with spool.exclusive() as first, again(spool).exclusive() as second:
        assert (first, second) == (True, False)
    with again(spool).exclusive() as third:
        assert third


def test_names_say_nothing() -> None:
    """Neither identifier can be read from a file name, and the same one gives the same name."""
    assert "1.2.840" not in study_key("1.2.840.99") + object_name("1.2.840.99.1")
    assert object_name("1.2.840.99.1") == object_name("1.2.840.99.1") != object_name("1.2.840.99.2")
