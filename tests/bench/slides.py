"""Whole slides: explaining tiles beside deciding them, memory of a large slide, objects, figures of the bundle."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tests.bench.entry import Entry, of_runs

EVIDENCE = Path("docs/evidence/histo_tumour.json")
#: Of the large slide, and of one with a quarter of its area; rows and columns.
LARGE, QUARTER = (30_000, 40_000), (15_000, 20_000)
MEMORY = ("slide_peak_gib", "slide_peak_quarter_over_whole")
SCORES = ("histo_tumour_balanced_accuracy", "histo_tumour_mass_lift")
BATCH, BATCHES, RUNS = 16, 2, 7

_CHILD = """
import sys
from pathlib import Path
from medxai import analysis, pipeline
from medxai.session import open_session
from medxai.settings import make_settings
settings = make_settings({'inputs': [Path(sys.argv[1])], 'output': Path(sys.argv[2]), 'bundle': sys.argv[3],
                          'allow': Path(sys.argv[4]), 'batch_size': 32})
session = open_session(settings)
(source,) = pipeline.find_studies(settings).sources
identity, _ = pipeline.register(session, source)
pipeline.ingest(session, source)
pipeline.export(session, source, analysis.analyse(session, source, identity))
(peak,) = [int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM:')]
print(peak / 2**20)
"""


def explain_over_forward() -> list[Entry]:
    """Classes and maps of all classes over classes alone, the same tiles from memory, one after the other by turns."""
    import torch

    from medxai.explain import explain
    from medxai.predict.bundle import find_bundles, load_bundle

    path = find_bundles().get("histo_tumour")
    if path is None:
        return []
    bundle = load_bundle(path)
    network, layer = bundle.network().eval(), bundle.spec.target_layer
    generator = torch.Generator().manual_seed(0)
    size = bundle.spec.preparation.window
    batches = [torch.rand((BATCH, 3, *size), generator=generator) * 2 - 1 for _ in range(BATCHES)]
    classes = list(range(len(bundle.spec.labels)))

    def forward() -> None:
        with torch.inference_mode():
            for x in batches:
                network(x)

    def explained() -> None:
        for x in batches:
            explain(network, x, methods=("gradcam",), classes=classes, layers=layer or "auto")

    forward()
    explained()
    ratios = []
    for _ in range(RUNS):
        alone = _seconds(forward)
        ratios.append(_seconds(explained) / alone)
    words = f"classification alone of the same {BATCH * BATCHES} tiles of {size[0]} x {size[1]}, maps of all classes"
    return [of_runs("tile_explain_over_forward", ratios, "ratio", 1.15, "lower", words)]


def peak_memory() -> list[Entry]:
    """Resident memory of whole processes that ran a slide from file to outputs."""
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle, allow = _small_bundle(folder)
        for label, size in (("whole", LARGE), ("quarter", QUARTER)):
            slide = _write(folder / label, size)
            command = [sys.executable, "-c", _CHILD, str(slide), str(folder / f"{label}_out"), str(bundle), str(allow)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[label] = float(done.stdout.splitlines()[-1])
            slide.unlink()
    words = f"{LARGE[1]} x {LARGE[0]} pixels of 0.25 um, tiles of 256 x 256 at 0.5 um, small network, whole process"
    ratio = peaks["quarter"] / peaks["whole"]
    return [
        of_runs(MEMORY[0], [peaks["whole"]], "GiB", 2.0, "lower", words),
        of_runs(MEMORY[1], [ratio], "ratio", None, "higher", "a slide with a quarter of the area over the whole one"),
    ]


def objects_seconds() -> list[Entry]:
    """Parametric Map and Segmentation of a DICOM slide, seconds for each 1,000 tiles of its network."""
    from medxai.export import ExportOptions, export_all
    from tests import slides
    from tests.export.build import result_of

    size, tile = (3000, 4000), 64
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = slides.slide_case(folder / "in", size=size, levels=2, tile=(256, 256), syntax="jpeg")
        rng = np.random.default_rng(0)
        # Evidence as tiles leave it: patches everywhere, not one smooth spot.
        cells = np.maximum(rng.normal(0, 1, (size[0] // 40, size[1] // 40)), 0).astype(np.float32)
        values = np.kron(cells, np.ones((40, 40), np.float32))
        result = result_of(case.result.study.volume, values, seed="bench")
        result = replace(result, study=replace(result.study, notes=()))
        options = ExportOptions(formats=("parametric_map", "segmentation"), explanations="primary")
        runs = [_seconds(partial(export_all, result, folder / str(n), options)) for n in range(5)]
    thousands = size[0] * size[1] / tile**2 / 1000
    words = f"1,000 tiles; a level of {size[1]} x {size[0]} with {thousands * 1000:.0f} tiles of {tile} of its pixels"
    return [of_runs("slide_objects_seconds", [r / thousands for r in runs], "s", None, "lower", words)]


def scores() -> list[Entry]:
    """Held-out figures of the bundle: stored results."""
    if not EVIDENCE.exists():
        return []
    stored = json.loads(EVIDENCE.read_text())
    rows = (stored["balanced_accuracy"], stored["maps"]["gradcam"]["mass_lift"])
    other = stored["maps"]["random"]["mass_lift"]["value"]
    words = (
        "held-out tiles, {groups} patches in folds",
        f"tiles partly tumour, {{groups}} patches; random map {other:.2f}",
    )
    return [
        Entry(name, row["value"], "1", None, "higher", row["n"], row["low"], row["high"], text.format(**row))
        for name, row, text in zip(SCORES, rows, words, strict=True)
    ]


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _small_bundle(folder: Path) -> tuple[Path, Path]:
    from medxai.predict.bundle_spec import SlideSpec
    from tests.test_slide_run import dark_bundle, tile_block

    return dark_bundle(folder, tile_block(SlideSpec(mpp=0.5, tile=256)))


def _write(folder: Path, size: tuple[int, int]) -> Path:
    """A slide of stained texture that repeats itself."""
    from tests import stained, tiffs

    folder.mkdir()
    texture = stained.colours(stained.amounts((1024, 1024), glass=0.0))
    return tiffs.write_pyramid(folder / "slide.tif", size, tiffs.tissue_painter(size, texture))
