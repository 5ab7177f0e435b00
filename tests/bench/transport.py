"""Studies in and results out: how many arrive in a minute, and how long it takes from the scanner to the archive."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from tests.bench.entry import Entry, of_runs
from tests.bench.studies import write_series

SLICES = 120
#: Seconds of the sustained run; shorter for a look.
DURATION = float(os.environ.get("MEDXAI_BENCH_RECEIVE_SECONDS", "600"))
CALLERS = 2

#: The receiver of the listener with its spool and database. Complete studies are counted and removed, since ten minutes
#: of them would fill the disk.
_CHILD = """
import json, sys, time
from pathlib import Path
from medxai.records.database import open_database, sqlite_url
from medxai.records.received import ReceivedStudies
from medxai.settings_network import Listen
from medxai.transport.receive import Receiver
from medxai.transport.spool import Spool
root = Path(sys.argv[1])
records = ReceivedStudies(open_database(sqlite_url(root / "w.sqlite")))
spool = Spool(root / "spool", records)
receiver = Receiver(Listen(port=0, calling=["STORESCU"], quiet_seconds=3), spool)
receiver.start()
print(receiver.port, flush=True)
studies, objects, peak = [], 0, 0
stop = root / "stop"
while True:
    last = stop.exists()
    if last: time.sleep(3.5)
    spool.complete_quiet(3.0)
    while (row := records.begin()) is not None:
        files = list(spool.folder(row.study_key).iterdir())
        studies.append(len(files)); objects += len(files)
        records.end(row.study_key, row.generation, ())
        spool.remove(row.study_key, row.generation)
    if last and not records.rows(("gathering",)): break
    time.sleep(0.2)
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"): peak = int(line.split()[1]) / 2**20
print(json.dumps({"studies": studies, "objects": objects, "peak_gib": peak}), flush=True)
"""


def receive(seconds: float = DURATION) -> list[Entry]:
    """Studies of 120 x 512 x 512 by two callers at once, every object synchronised to the disk before its answer."""
    from tests.tools import require_tool

    storescu = require_tool("storescu", system=True)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_series(root / "in", SLICES)
        child = subprocess.Popen([sys.executable, "-c", _CHILD, str(root)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        port = child.stdout.readline().strip()
        # Every repetition is a new study with new objects.
        invent = ["+sd", "+II", "+IR", str(SLICES), "+IS", "1", "--repeat", "100000"]
        line = [storescu, "-v", *invent, "-aec", "MEDXAI", "127.0.0.1", port, str(root / "in")]
        begin = time.monotonic()
        with ExitStack() as stack:
            logs = [stack.enter_context((root / f"{n}.log").open("w+")) for n in range(CALLERS)]
            callers = [subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT) for log in logs]
            time.sleep(seconds)
            for caller in callers:
                caller.send_signal(signal.SIGTERM)
                caller.wait(30)
            took = time.monotonic() - begin
            time.sleep(1.0)
            (root / "stop").touch()
            answers, _ = child.communicate(timeout=120)
            acknowledged = 0
            for log in logs:
                log.seek(0)
                acknowledged += log.read().count("(Success)")
        found: dict[str, Any] = json.loads(answers.strip().splitlines()[-1])
    lost = max(0, acknowledged - found["objects"])
    rate = found["objects"] / SLICES / took * 60
    whole = sum(count == SLICES for count in found["studies"])
    what = (
        f"{SLICES} slices of 512x512, {CALLERS} callers on the same machine for {took:.0f} s, {whole} whole studies, "
        f"{acknowledged} objects acknowledged, {lost} lost; peak {found['peak_gib']:.2f} GiB resident"
    )
    return [
        Entry("receive_studies_per_minute", rate, "1/min", None, "higher", 1, rate, rate, what),
        Entry(
            "receive_objects_lost", float(lost), "objects", 0.0, "lower", acknowledged, float(lost), float(lost), what
        ),
    ]


def scan_to_pacs(runs: int = 3, quiet_seconds: float = 2.0) -> list[Entry]:
    """Seconds from the answer to the last C-STORE to the answer to the last STOW, for one study."""
    from medxai.predict.bundle import find_bundles
    from tests.pacs import free_port, orthanc
    from tests.tools import require_tool

    storescu = require_tool("storescu", system=True)
    bundle = "chest_ct" if "chest_ct" in find_bundles() else "phantom_ct"
    taken = []
    objects = 0
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        root = Path(name)
        (root / "orthanc").mkdir()
        server = stack.enter_context(orthanc(root / "orthanc"))
        port = free_port()
        listen = {"port": port, "calling": ["STORESCU"], "quiet_seconds": quiet_seconds, "free_bytes": 0}
        values = {
            "output": str(root / "out"),
            "bundle": bundle,
            "force": True,
            "listen": listen,
            "destinations": [{"name": "pacs", "kind": "dicomweb", "url": server.web_url}],
        }
        (root / "c.yaml").write_text(yaml.safe_dump(values))
        with (root / "log").open("w") as log:
            line = [sys.executable, "-m", "medxai", "listen", str(root / "c.yaml")]
            process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
        try:
            _until(lambda: "listening as" in (root / "log").read_text())
            for run in range(runs):
                write_series(root / f"in{run}", SLICES, seed=run)
                call = [storescu, "+sd", "-aec", "MEDXAI", "127.0.0.1", str(port), str(root / f"in{run}")]
                subprocess.run(call, check=True, timeout=300)
                begin = time.monotonic()
                _until(lambda run=run: _done(root / "out") == run + 1)  # type: ignore[misc]
                taken.append(time.monotonic() - begin)
        finally:
            process.terminate()
            process.wait(60)
        objects = len(server.received()) // runs
    what = (
        f"{SLICES}x512x512, {bundle}, default outputs ({objects} objects by STOW to Orthanc on the same machine); "
        f"includes the quiet time of {quiet_seconds:g} s"
    )
    return [of_runs("scan_to_pacs_seconds", taken, "s", None, "lower", what)]


def _done(output: Path) -> int:
    """Jobs that are done: their last object was accepted."""
    path = output / ".medxai" / "worklist.sqlite"
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
        states = [state for (state,) in connection.execute("SELECT state FROM job")]
    if "quarantined" in states:
        msg = "a study was put aside"
        raise RuntimeError(msg)
    return states.count("done")


def _until(condition: Any, seconds: float = 900) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            msg = "it did not come to this"
            raise RuntimeError(msg)
        time.sleep(0.02)
