"""Writing the large objects of 300 slices of 512x512 against the least that any writer has to do.

The floor is what the pixels need: thresholds are given, bits are packed or values rounded to bytes, and the result is
written to a file. Everything that makes it a DICOM object (frames, references, headers) comes on top.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.entry import Entry, of_runs

RUNS = 5
_CHILD = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
import numpy as np
from medxai.export import ExportOptions
from medxai.export.placement import placed_sources
from medxai.study import Prediction, Result, Study, Volume
from tests.export import build

kind, folder = sys.argv[1], Path(sys.argv[2])
shape = (300, 512, 512)

def resident(name):
    for line in open('/proc/self/status'):
        if line.startswith(name):
            return int(line.split()[1]) * 1024

affine = build.affine_of(shape, (1.0, 0.5, 0.5))
sources = build.ct_series(affine, np.zeros((shape[0], 2, 2), np.float32), 'bench')
for header in sources:
    header.Rows, header.Columns = shape[1:]
headers = build.headers(sources)
positions = np.array([[float(v) for v in h.ImagePositionPatient] for h in headers])
pixels = np.broadcast_to(np.float32(0), (1, *shape))
volume = Volume(pixels, 'DHW', affine, 'CT', positions, str(headers[0].FrameOfReferenceUID), 'HEAD', True, headers)
if kind == 'segmentation':
    from medxai.export import segmentation as exporter
elif kind == 'fractional':
    from medxai.export import fractional_segmentation as exporter
elif kind == 'report':
    from medxai.export import structured_report as exporter
else:
    from medxai.export import parametric_map as exporter

def make(result, options):
    if kind == 'report':
        return exporter.build(result, options)
    return exporter.build(result, result.explanations[0], placed_sources(result), options, 1)

# Loading libraries and their tables is no part of writing.
small = build.ct_case().result
make(small, ExportOptions()).save_as(folder / 'small.dcm')
before = resident('VmRSS:')
values = np.zeros(shape, np.float32)
for centre, width in (((120, 230, 205), (40, 60, 50)), ((200, 330, 300), (25, 35, 45))):
    parts = [np.exp(-0.5 * ((np.arange(n) - c) / w) ** 2, dtype=np.float32) for n, c, w in zip(shape, centre, width)]
    plane = parts[1][:, None] * parts[2][None]
    for index, weight in enumerate(parts[0]):
        np.maximum(values[index], weight * plane, out=values[index])
inputs = resident('VmRSS:') - before
probabilities = np.array([0.2, 0.8], np.float32)
explanation = replace(build.explain(volume, np.ones((4, 4, 4), np.float32)), map=values)
prediction = Prediction(('no', 'yes'), probabilities, probabilities, 1, 'bench 1', 'b' * 64)
result = Result(Study('0123456789ab', 'dicom', 'a' * 64, volume), prediction,
                (explanation,), 'c' * 64, '2024-03-05T10:11:12')
options = ExportOptions(omit_empty_frames=True)
open('/proc/self/clear_refs', 'w').write('5')
start = time.process_time()
dataset = make(result, options)
dataset.save_as(folder / 'ours.dcm', enforce_file_format=True)
ours = time.process_time() - start
peak = resident('VmHWM:') - before
frames = int(dataset.get('NumberOfFrames', 0))
del dataset
floor = float('nan')
if kind == 'segmentation':
    masks = [m for low in options.bands for m in values >= np.float32(low) if m.any()]
    masks = np.stack(masks)
    assert len(masks) == frames
    start = time.process_time()
    (folder / 'floor.bin').write_bytes(np.packbits(masks, bitorder='little').tobytes())
    floor = time.process_time() - start
elif kind == 'fractional':
    kept = values[values.reshape(shape[0], -1).max(axis=1) > 0]
    start = time.process_time()
    (folder / 'floor.bin').write_bytes(np.rint(kept * np.float32(255)).astype(np.uint8).tobytes())
    floor = time.process_time() - start
print(json.dumps({'ours': ours, 'floor': floor, 'frames': frames, 'inputs': inputs, 'peak': peak}))
"""


def marks(kind: str, runs: int = RUNS) -> list[dict[str, float]]:
    """Figures of fresh processes that write one object each.

    Args:
        kind: ``segmentation``, ``fractional``, ``report`` or ``parametric_map``.
        runs: processes.
    """
    found = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", _CHILD, kind, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path.cwd())
            found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return found


def segmentations() -> list[Entry]:
    """CPU seconds from the map to the file, over those of the floor in the same process."""
    entries = []
    for name, kind, floor in (
        ("seg_binary_over_floor", "segmentation", "numpy.packbits and writing of the same frames"),
        ("seg_fractional_over_floor", "fractional", "rounding to bytes and writing of the same frames"),
    ):
        runs = marks(kind)
        best = min(runs, key=lambda run: run["ours"])
        against = (
            f"CPU time, map to file, 512x512x300; {floor} ({best['floor']:.2f} s); "
            f"ours {best['ours']:.2f} s for {best['frames']:.0f} frames"
        )
        entries.append(of_runs(name, [run["ours"] / run["floor"] for run in runs], "ratio", None, "lower", against))
        entries.append(_memory(name.replace("over_floor", "peak_memory_over_inputs"), runs))
    return entries


def report() -> list[Entry]:
    """CPU seconds of a structured report of the same map, which has no floor, and its memory."""
    runs = marks("report")
    words = "CPU time, map of 512x512x300 to file: peaks, planes, codes"
    seconds = of_runs("sr_cpu_seconds", [run["ours"] for run in runs], "s", None, "lower", words)
    return [seconds, _memory("sr_peak_memory_over_inputs", runs)]


def map_memory() -> list[Entry]:
    """Peak resident memory while a Parametric Map is made and written, over that of the map it is made from."""
    return [_memory("pm_peak_memory_over_inputs", marks("parametric_map", 3))]


def _memory(name: str, runs: list[dict[str, float]]) -> Entry:
    against = f"map of 512x512x300 float32 ({runs[0]['inputs'] / 2**20:.0f} MiB), itself counted"
    ratios = [run["peak"] / run["inputs"] for run in runs]
    return of_runs(name, ratios, "ratio", None, "lower", against)
