"""Side by side with the other libraries, in the shared benchmark with its plug-in point, one question at a time.

All libraries answer a question within a minute or two, so that a machine whose speed drifts treats them alike.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.entry import Entry, of_runs

FOLDER = Path(".bench")
PEERS = ("grad-cam", "torchcam", "captum", "monai", "medcam")
#: Method -> the libraries that have it, and the cases.
PERTURBING = {
    "scorecam": (("grad-cam", "torchcam"), ("score-2d", "score-3d")),
    "occlusion": (("captum", "monai"), ("2d-b1", "3d-96")),
}
HERE = Path(__file__).parent
#: Runs of each comparison; low and high are their extremes.
RUNS = 5

Rows = list[dict[str, Any]]


def gradcam() -> list[Entry]:
    """Grad-CAM of all libraries; empty without the shared benchmark or `make parity`.

    Each library's time counts over the floor that was measured between its own calls: the machine's speed drifts by a
    quarter within a run, which is more than what parts the fastest three.
    """
    runs = _runs("3d-96", "gradcam", (*PEERS, "medxai"))
    entries = []
    for peer in PEERS:
        ratios = [
            theirs / ours
            for rows in runs
            if (theirs := _value(rows, peer, "ratio")) and (ours := _value(rows, "medxai", "ratio"))
        ]
        if ratios:
            name = f"{peer.replace('-', '_')}_gradcam_3d_over_ours"
            words = "one call of each over its own floor; DenseNet121-3D, 96x96x96"
            entries.append(of_runs(name, ratios, "ratio", None, "higher", words))
    return entries


def scorecam() -> list[Entry]:
    """Score-CAM over the fastest library; empty as in `gradcam`."""
    return _against_fastest("scorecam")


def occlusion() -> list[Entry]:
    """Occlusion over the fastest library; empty as in `gradcam`."""
    return _against_fastest("occlusion")


def names(method: str) -> tuple[str, ...]:
    """Entries of a perturbing method: the worse of the prepared cases, then each case prepared and eager."""
    cases = PERTURBING[method][1]
    each = (f"{method}_{case.replace('-', '_')}{form}" for case in cases for form in ("", "_eager"))
    return tuple(f"{name}_over_fastest_peer" for name in (method, *each))


def _script() -> Path | None:
    data = os.environ.get("MEDXAI_DATA")
    path = Path(data).resolve().parent / "bench" / "bench_peers.py" if data else None
    return path if path is not None and path.exists() else None


def _runs(case: str, method: str, engines: Sequence[str]) -> list[Rows]:
    """Several comparisons in an environment that has the peers; none without the benchmark or that environment."""
    found, python = _script(), Path(".venv-parity/bin/python")
    if found is None or not python.exists():
        return []
    FOLDER.mkdir(exist_ok=True)
    script = FOLDER / found.name
    if not script.exists() or script.read_bytes() != found.read_bytes():
        script.unlink(missing_ok=True)
        shutil.copyfile(found, script)  # it keeps weights beside itself
    return [_rows(python, script, case, method, engines, number) for number in range(RUNS)]


def _rows(python: Path, script: Path, case: str, method: str, engines: Sequence[str], number: int) -> Rows:
    stem = f"{method}_{case}_{number}"
    own = {"medxai": "explain", "medxai-prepared": "explain_prepared"}
    command = [str(python), str(script), "--reps", "5", "--timeout", "900", "--out", str(FOLDER / f"{stem}.json")]
    command += ["--case", case, "--method", method]
    for name in engines:
        command += ["--engine", f"{name}={HERE / 'peer_engine.py'}:{own[name]}" if name in own else name]
    path = os.pathsep.join([str(HERE / "shim"), str(Path.cwd())])
    with (FOLDER / f"{stem}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path})
    rows: Rows = json.loads((FOLDER / f"{stem}.json").read_text())
    return rows


def _value(rows: Rows, engine: str, key: str = "s") -> float:
    """Median seconds (or another figure) of an engine, or 0 where it cannot do it."""
    return next((float(row.get(key, 0.0)) for row in rows if row["engine"] == engine), 0.0)


def _against_fastest(method: str) -> list[Entry]:
    """The worse of the cases decides; each of them and the eager form are listed beside it."""
    peers, cases = PERTURBING[method]
    entries, worst = [], None
    for case in cases:
        runs = _runs(case, method, (*peers, "medxai-prepared", "medxai"))
        for engine, suffix in (("medxai-prepared", ""), ("medxai", "_eager")):
            ratios = []
            for rows in runs:
                others = [s for peer in peers if (s := _value(rows, peer))]
                ours = _value(rows, engine)
                if others and ours:
                    ratios.append(ours / min(others))
            if not ratios:
                continue
            words = f"fastest of {', '.join(peers)}; {case}, {engine}"
            name = f"{method}_{case.replace('-', '_')}{suffix}_over_fastest_peer"
            entry = of_runs(name, ratios, "ratio", 0.5, "lower", words)
            entries.append(entry)
            if not suffix and (worst is None or entry.value > worst.value):
                worst = entry
    if worst is not None:
        name = f"{method}_over_fastest_peer"
        entries.insert(
            0, Entry(name, worst.value, "ratio", 0.5, "lower", worst.n, worst.low, worst.high, worst.against)
        )
    return entries
