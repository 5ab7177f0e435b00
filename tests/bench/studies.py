"""End to end: a synthetic chest CT of 28 and of 120 slices of 512x512, split by stage, with peak memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.entry import Entry, of_runs

_CHILD = """
import json, sys, time
from pathlib import Path
from medxai import analysis, pipeline
from medxai.session import open_session
from medxai.settings import make_settings
source_dir, out = Path(sys.argv[1]), Path(sys.argv[2])
settings = make_settings({'inputs': [source_dir], 'output': out, 'bundle': sys.argv[3], 'force': True})
def value(name):
    for line in open('/proc/self/status'):
        if line.startswith(name): return int(line.split()[1]) / 2**20
start = time.perf_counter()
session = open_session(settings)
marks = {'open model': time.perf_counter() - start}
def stage(name, call):
    begin = time.perf_counter(); result = call(); marks[name] = time.perf_counter() - begin; return result
begin = time.perf_counter()
(source,) = stage('discover', lambda: pipeline.find_studies(settings)).sources
identity, job = stage('hash', lambda: pipeline.register(session, source))
stage('ingest', lambda: pipeline.ingest(session, source))
path = stage('analyse', lambda: analysis.analyse(session, source, identity))
stage('export', lambda: pipeline.export(session, source, path))
marks['total'] = time.perf_counter() - begin
marks['peak_gib'] = value('VmHWM:')
print(json.dumps(marks))
"""


def write_series(folder: Path, slices: int, seed: int = 0) -> None:
    """A phantom chest of 512x512 in-plane, as a DICOM series; other seeds give other identifiers."""
    from sample_cases.phantom import phantom
    from tests.export.build import affine_of, ct_series, save_sources

    spacing = (300 / slices, 0.7, 0.7)
    pixels = phantom(7, (slices, 512, 512), spacing, 1).hu
    name = f"bench{slices}" + (f"-{seed}" if seed else "")
    datasets = ct_series(affine_of(pixels.shape, spacing, oblique=False), pixels, name)
    for dataset in datasets:
        dataset.BodyPartExamined = "CHEST"
    save_sources(datasets, folder)


def study_seconds(slices: int, runs: int) -> tuple[list[dict[str, float]], str]:
    """Marks of every run of one study, and the bundle used."""
    from medxai.predict.bundle import find_bundles

    bundle = "chest_ct" if "chest_ct" in find_bundles() else "phantom_ct"
    marks = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_series(root / "in", slices)
        for run in range(runs):
            command = [sys.executable, "-c", _CHILD, str(root / "in"), str(root / f"out{run}"), bundle]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            marks.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return marks, bundle


def _split(marks: list[dict[str, float]]) -> str:
    best = min(marks, key=lambda m: m["total"])
    return ", ".join(f"{k} {v:.2f} s" for k, v in best.items() if k not in ("total", "peak_gib", "open model"))


def small_study() -> list[Entry]:
    """28 slices."""
    marks, bundle = study_seconds(28, 3)
    totals = [m["total"] for m in marks]
    return [of_runs("study_28x512_seconds", totals, "s", None, "lower", f"{bundle}, all formats; {_split(marks)}")]


def large_study() -> list[Entry]:
    """120 slices, with peak memory."""
    marks, bundle = study_seconds(120, 3)
    totals, memory = [m["total"] for m in marks], [m["peak_gib"] for m in marks]
    return [
        of_runs("study_120x512_seconds", totals, "s", None, "lower", f"{bundle}, all formats; {_split(marks)}"),
        of_runs("study_120x512_peak_gib", memory, "GiB", None, "lower", f"{bundle}, whole process, resident"),
    ]
