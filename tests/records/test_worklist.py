"""The worklist: identity, claims, dead owners."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from medxai.errors import GeometryError, WorklistError
from medxai.records.database import open_database, sqlite_url
from medxai.records.outbox import Outbox
from medxai.records.tables import Base
from medxai.records.worklist import JobIdentity, Worklist

ONE = JobIdentity("k1", "i" * 64, "m" * 64, "c" * 64)


def test_schema_is_what_the_tables_say(url: str) -> None:
    """Migrations and models agree, in both databases; SQLite runs in WAL mode."""
    engine = open_database(url)
    found = inspect(engine)
    for table in Base.metadata.sorted_tables:
        assert {c["name"] for c in found.get_columns(table.name)} == set(table.columns.keys())
        assert {tuple(u["column_names"]) for u in found.get_unique_constraints(table.name)}
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    open_database(url)


def test_same_job_is_one_row(url: str) -> None:
    """Registering twice gives the same job; another input, model or configuration another one."""
    worklist = Worklist(open_database(url))
    first = worklist.register(ONE)
    assert worklist.register(ONE).id == first.id
    assert worklist.register(JobIdentity("k1", "x" * 64, "m" * 64, "c" * 64)).id != first.id
    assert len(worklist.jobs()) == 2


def test_only_one_thread_claims(url: str) -> None:
    """Two worklists of living processes: one gets the job."""
    engine = open_database(url)
    worklist = Worklist(engine)
    job = worklist.register(ONE)
    won: list[bool] = []
    others = [Worklist(engine) for _ in range(8)]
    for number, other in enumerate(others):
        other.owner = f"elsewhere-{number}:1:1"
    threads = [threading.Thread(target=lambda o=o: won.append(o.claim(job.id))) for o in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won.count(True) == 1


def test_dead_owner_is_taken_over(url: str) -> None:
    """A job held by a killed process is free again; one held by a living process is not."""
    worklist = Worklist(open_database(url))
    job = worklist.register(ONE)
    code = (
        "import sys; from medxai.records.database import open_database; from medxai.records.worklist import Worklist\n"
        f"w = Worklist(open_database({url!r})); assert w.claim({job.id}); print('claimed', flush=True)\n"
        "sys.stdin.readline()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"claimed\n"
        assert not worklist.claim(job.id)
        process.kill()
        process.wait()
    assert worklist.claim(job.id)
    assert worklist.get(job.id).attempts == 2


def test_life_of_a_job(url: str) -> None:
    """Stages, quarantine with its reason, another try, done."""
    worklist = Worklist(open_database(url))
    job = worklist.register(ONE)
    assert worklist.claim(job.id)
    worklist.stage(job.id, "analyse", analysed=True)
    worklist.quarantine(job.id, GeometryError("1 missing slice", study="k1"))
    row = worklist.get(job.id)
    assert (row.state, row.reason_code, row.reason, row.analyses) == ("quarantined", "geometry", "1 missing slice", 1)
    assert worklist.claim(job.id)
    assert worklist.get(job.id).reason == ""
    Outbox(worklist.engine).exported(job.id, "/out/k1", [])
    assert (worklist.get(job.id).state, worklist.get(job.id).folder) == ("exported", "/out/k1")
    assert worklist.identity(job.id) == ONE
    assert worklist.finish(job.id)
    assert not worklist.finish(job.id)
    assert not worklist.claim(job.id)
    assert [row.state for row in worklist.jobs(("done",))] == ["done"]
    worklist.reopen(job.id)
    assert worklist.claim(job.id)
    other = Worklist(worklist.engine)
    other.owner = "elsewhere:1:1"
    assert not other.finish(job.id)  # taken up again: whoever runs it will finish it
    assert worklist.get(job.id).state == "running"
    assert worklist.finish(job.id)  # nothing had to be exported again
    with pytest.raises(WorklistError, match="no job 99"):
        worklist.get(99)


def test_unusable_database(tmp_path: Path) -> None:
    """One line, no traceback text."""
    (tmp_path / "w.sqlite").write_text("this is no database, only text that is long enough to have a header")
    with pytest.raises(WorklistError, match="cannot be opened"):
        open_database(sqlite_url(tmp_path / "w.sqlite"))
