"""A batch killed in the middle: what was finished stays finished, and nothing arrives twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydicom import dcmread

from medxai.pipeline import read_manifest
from tests.pacs import Orthanc
from tests.studies import ROOT, dicom_study, jobs, leftovers

pytestmark = [pytest.mark.flow, pytest.mark.pacs, pytest.mark.slow]

STUDIES = 7


class Batch:
    """A configured batch that runs in its own process group."""

    def __init__(self, root: Path, server: Orthanc) -> None:
        self.home, self.output, self.config = root / "prefect", root / "out", root / "batch.yaml"
        for number in range(STUDIES):
            dicom_study(root / "in" / f"{number}", 200 + number)
        values = {
            "inputs": [str(root / "in")],
            "output": str(self.output),
            "bundle": "phantom_ct",
            "destinations": [{"name": "orthanc", "kind": "dicomweb", "url": server.web_url}],
            "export": {"formats": ["parametric_map", "segmentation", "secondary_capture"], "send_withheld": True},
        }
        self.config.write_text(yaml.safe_dump(values))

    def start(self, log: Path) -> subprocess.Popen[bytes]:
        """Start the flow; its ephemeral Prefect server is a child of it."""
        environment = {**os.environ, "PREFECT_HOME": str(self.home)}
        line = [sys.executable, "-m", "flows.explain_batch", str(self.config)]
        with log.open("wb") as stream:
            return subprocess.Popen(
                line, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )

    def query(self, sql: str) -> list[Any]:
        """Rows of the worklist database; none while there is no table."""
        path = self.output / ".medxai" / "worklist.sqlite"
        if not path.exists():
            return []
        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
                return connection.execute(sql).fetchall()
        except sqlite3.OperationalError:
            return []

    def processes(self) -> list[str]:
        """Command lines of living processes that work for this batch, the Prefect server among them."""
        mark = f"PREFECT_HOME={self.home}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, seconds: float = 240) -> None:
    """Poll until `condition` holds; fail when the process ends before."""
    limit = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > limit:
            pytest.fail(f"the batch ended or hung ({process.poll()}): {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.01)


def test_sigkill_in_the_middle_of_a_batch(tmp_path: Path, orthanc_server: Orthanc) -> None:
    """Kill while a study is being delivered; run again; every study once, every object once."""
    batch = Batch(tmp_path, orthanc_server)
    log = tmp_path / "first.log"
    process = batch.start(log)

    def in_the_middle() -> bool:
        counts = dict(batch.query("SELECT state, count(*) FROM job GROUP BY state"))
        moving = batch.query("SELECT job_id, sum(state = 'sent'), sum(state = 'sending') FROM delivery GROUP BY job_id")
        return counts.get("done", 0) >= 2 and any(sent and sending for _, sent, sending in moving)

    try:
        wait_for(in_the_middle, process, log)
        assert any("uvicorn" in line for line in batch.processes())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    limit = time.monotonic() + 20
    while batch.processes() and time.monotonic() < limit:
        time.sleep(0.05)
    assert batch.processes() == []

    killed = {row.study_key: row for row in jobs(batch.output)}
    finished = {key: row for key, row in killed.items() if row.state == "done"}
    cut_off = {uid for (uid,) in batch.query("SELECT sop_instance_uid FROM delivery WHERE state = 'sending'")}
    arrived = orthanc_server.received()
    assert 2 <= len(finished) < STUDIES
    assert cut_off
    written = {p: p.stat().st_mtime_ns for key in finished for p in (batch.output / key).iterdir()}

    again = batch.start(tmp_path / "second.log")
    assert again.wait(400) == 0, (tmp_path / "second.log").read_text(errors="replace")[-2000:]
    assert batch.processes() == []

    rows = {row.study_key: row for row in jobs(batch.output)}
    assert len(rows) == STUDIES
    assert {row.state for row in rows.values()} == {"done"}
    for key, row in finished.items():
        assert rows[key] == row
        assert (row.attempts, row.analyses) == (1, 1)
    assert {p: p.stat().st_mtime_ns for p in written} == written
    # An analysis that was stored before the kill is used, and its study only claimed anew.
    assert all(row.analyses <= 1 and row.attempts <= 2 for row in rows.values())
    assert all(rows[key].analyses == row.analyses for key, row in killed.items() if row.state == "exported")
    uids = []
    for key in rows:
        assert read_manifest(batch.output / key) is not None
        uids += [str(dcmread(p, stop_before_pixels=True).SOPInstanceUID) for p in (batch.output / key).glob("*.dcm")]
    received = orthanc_server.received()
    assert len(uids) == len(set(uids)) == STUDIES * 16
    assert {uid: received[uid] for uid in uids} == dict.fromkeys(uids, 1)
    assert set(arrived) & set(uids)
    (pending,) = batch.query("SELECT count(*) FROM delivery WHERE state != 'sent'")
    assert pending == (0,)
    (total,) = batch.query("SELECT count(*) FROM delivery")
    assert total == (STUDIES * 16,)
    assert leftovers(batch.output) == []
    assert not list((batch.output / ".medxai" / "work").iterdir())
