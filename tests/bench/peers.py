"""Side by side with the other libraries, in one run of the shared benchmark with its plug-in point."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.entry import Entry, of_runs

FOLDER = Path(".bench")
PEERS = ("grad-cam", "torchcam", "captum", "monai", "medcam")
HERE = Path(__file__).parent
#: Runs of the whole comparison; low and high are their extremes.
RUNS = 3


def side_by_side() -> list[Entry]:
    """Grad-CAM, Score-CAM and occlusion of all libraries; empty without the shared benchmark or `make parity`."""
    found = _script()
    python = Path(".venv-parity/bin/python")
    if found is None or not python.exists():
        return []
    FOLDER.mkdir(exist_ok=True)
    script = FOLDER / found.name
    shutil.copyfile(found, script)  # it keeps weights beside itself
    runs = [_rows(python, script, number) for number in range(RUNS)]
    entries = []
    for peer in PEERS:
        ratios = [
            _seconds(rows, peer, "3d-96", "gradcam") / _seconds(rows, "medxai", "3d-96", "gradcam")
            for rows in runs
            if _seconds(rows, peer, "3d-96", "gradcam") and _seconds(rows, "medxai", "3d-96", "gradcam")
        ]
        if ratios:
            name = f"{peer.replace('-', '_')}_gradcam_3d_over_ours"
            entries.append(of_runs(name, ratios, "ratio", None, "higher", "one call of each; DenseNet121-3D, 96x96x96"))
    entries += _against_fastest(runs, "scorecam", ("score-2d", "score-3d"), ("grad-cam", "torchcam"))
    entries += _against_fastest(runs, "occlusion", ("2d-b1", "3d-96"), ("captum", "monai"))
    return entries


def _script() -> Path | None:
    data = os.environ.get("MEDXAI_DATA")
    path = Path(data).resolve().parent / "bench" / "bench_peers.py" if data else None
    return path if path is not None and path.exists() else None


def _rows(python: Path, script: Path, number: int) -> list[dict[str, Any]]:
    """One comparison, in an environment that has the peers."""
    out = FOLDER / f"run{number}.json"
    engine = HERE / "peer_engine.py"
    command = [str(python), str(script), "--reps", "5", "--timeout", "900", "--out", str(out)]
    for spec in (*PEERS, f"medxai={engine}:explain", f"medxai-prepared={engine}:explain_prepared"):
        command += ["--engine", spec]
    for case in ("3d-96", "2d-b1", "score-2d", "score-3d"):
        command += ["--case", case]
    for method in ("gradcam", "scorecam", "occlusion"):
        command += ["--method", method]
    path = os.pathsep.join([str(HERE / "shim"), str(Path.cwd())])
    with (FOLDER / f"run{number}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path})
    rows: list[dict[str, Any]] = json.loads(out.read_text())
    return rows


def _seconds(rows: list[dict[str, Any]], engine: str, case: str, method: str) -> float:
    """Median seconds, or 0 where the engine cannot do it."""
    for row in rows:
        if (row["engine"], row["case"], row["method"]) == (engine, case, method):
            return float(row.get("s", 0.0))
    return 0.0


def _against_fastest(
    runs: list[list[dict[str, Any]]], method: str, cases: tuple[str, ...], peers: tuple[str, ...]
) -> list[Entry]:
    """The worse of the cases decides; each of them and the eager form are listed beside it."""
    entries, worst = [], None
    for case in cases:
        for engine, suffix in (("medxai-prepared", ""), ("medxai", "_eager")):
            ratios = []
            for rows in runs:
                others = [s for peer in peers if (s := _seconds(rows, peer, case, method))]
                ours = _seconds(rows, engine, case, method)
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
