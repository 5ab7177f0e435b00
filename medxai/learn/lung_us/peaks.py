"""Where the class activation map of a held-out frame is largest, and how deep that is.

The published peak-point analysis (Born et al. 2021): maximum of the map on the input's grid, moved to the largest 3x3
mean within 9x9 pixels. `python -m medxai.learn.lung_us.peaks --data DIR`` measures what is missing.

The map's grid is 7x7: a peak is known to half a cell (16 of 224 pixels), the refinement only removes ties.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import mannwhitneyu

from medxai.explain.cine import refined_peak
from medxai.explain.engine import explain
from medxai.files import write_text
from medxai.learn.lung_us.cohort import CLASSES, UNINFORMATIVE, Recording
from medxai.learn.lung_us.frames import SIZE
from medxai.learn.lung_us.held_out import HeldOut, measure_held_out, measured, recordings_of
from medxai.learn.lung_us.runs import PATIENTS, find_runs
from medxai.learn.metrics import Interval
from medxai.networks.efficientnet_lite import TARGET_LAYER

FloatArray = npt.NDArray[np.float64]

FOLDER = "peaks"
#: Findings whose depth is compared.
COMPARED = ("b_lines", "consolidations", "pleural_irregularities", "effusion")
_COLUMNS = ("file", "patient", "place", "fold", "truth", "predicted", "row", "column", "depth")


@dataclass(frozen=True)
class Peak:
    """The largest place of one frame's map.

    Attributes:
        file: recording, below the data folder.
        patient: who was examined.
        place: index of the frame among those taken.
        fold: whose network was asked.
        truth: class name.
        predicted: class name; the map is for this class.
        row: in pixels of the 224x224 input, from the top.
        column: in pixels of the input, from the left.
        depth: height of the picture as it is stored that lies above, 0 .. 1.
    """

    file: str
    patient: str
    place: int
    fold: int
    truth: str
    predicted: str
    row: int
    column: int
    depth: float


@dataclass(frozen=True)
class DepthComparison:
    """Depths of peaks of patients with a finding and without.

    Attributes:
        finding: name.
        present: median over patients with it, of their frames' median depths; interval over patients.
        absent: the same of patients in whom it was looked for and not seen.
        p_value: Mann and Whitney's test of both groups of patients, two-sided.
    """

    finding: str
    present: Interval
    absent: Interval
    p_value: float


def stored_depth(row: int, size: tuple[int, int]) -> float:
    """Return the share of a stored picture's height that lies above row `row` of its central square at 224 pixels.

    Args:
        row: of the network's input.
        size: ``(rows, columns)`` of the stored picture.
    """
    rows, columns = size
    side = min(rows, columns)
    return ((rows - side) / 2 + (row + 0.5) / SIZE * side) / rows


def find_peaks(item: HeldOut) -> dict[str, npt.NDArray[Any]]:
    """Return ``predicted [T]``, ``row [T]``, ``column [T]`` and ``depth [T]`` of the frames of a recording."""
    found: dict[str, list[Any]] = {"predicted": [], "row": [], "column": [], "depth": []}
    for part in torch.split(item.frames, 10):
        with torch.inference_mode():
            decided = item.cut.network(part).argmax(dim=1)
        maps = explain(item.cut.network, part, methods="cam", classes=decided, layers=TARGET_LAYER)[0].map
        for label, values in zip(decided.tolist(), maps.numpy(), strict=True):
            row, column = refined_peak(values)
            found["predicted"].append(label)
            found["row"].append(row)
            found["column"].append(column)
            found["depth"].append(stored_depth(row, item.pixels))
    return {name: np.array(values) for name, values in found.items()}


def read_peaks(run: Path, recordings: Sequence[Recording]) -> list[Peak]:
    """Return the peaks of all held-out frames that were measured."""
    names = (*CLASSES, UNINFORMATIVE)
    found = []
    for fold, index, arrays in measured(run, FOLDER):
        recording = recordings[index]
        columns = [arrays[name].tolist() for name in ("places", "predicted", "row", "column", "depth")]
        for place, predicted, row, column, depth in zip(*columns, strict=True):
            peak = Peak(
                recording.path, recording.patient, place, fold, recording.label, names[predicted], row, column, depth
            )
            found.append(peak)
    return found


def compare_depths(
    peaks: Sequence[Peak], recordings: Sequence[Recording], resamples: int = 2000, seed: int = 0
) -> list[DepthComparison]:
    """Compare the depths of peaks between patients with a finding and without, for every finding of `COMPARED`.

    Only recordings count for which an expert filled the finding in, and frames that are decided as a lung. A patient
    counts as having a finding if one of the recordings shows it; the depth is the median over the frames of these.

    Args:
        peaks: of held-out frames.
        recordings: with their findings.
        resamples: of the bootstrap.
        seed: of its draws.
    """
    flags = {recording.path: recording.findings for recording in recordings}
    compared = []
    for finding in COMPARED:
        depths: dict[tuple[str, bool], list[float]] = {}
        for peak in peaks:
            known = flags.get(peak.file, {}).get(finding)
            if known is not None and peak.predicted != UNINFORMATIVE:
                depths.setdefault((peak.patient, known), []).append(peak.depth)
        with_it = {patient for patient, present in depths if present}
        present = np.array([np.median(depths[patient, True]) for patient in sorted(with_it)])
        absent = np.array([np.median(v) for (patient, has), v in sorted(depths.items()) if patient not in with_it])
        if len(present) < 2 or len(absent) < 2:
            continue
        random = np.random.default_rng(seed)
        p = float(mannwhitneyu(present, absent).pvalue)
        compared.append(
            DepthComparison(finding, _median(present, random, resamples), _median(absent, random, resamples), p)
        )
    return compared


def write_peaks(path: Path, peaks: Sequence[Peak]) -> Path:
    """Write the peaks as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for peak in peaks:
        row: Mapping[str, Any] = vars(peak)
        writer.writerow([f"{row[name]:.4f}" if name == "depth" else row[name] for name in _COLUMNS])
    return write_text(path, stream.getvalue())


def _median(values: FloatArray, random: np.random.Generator, resamples: int) -> Interval:
    drawn = np.median(values[random.integers(0, len(values), (resamples, len(values)))], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5]).tolist()
    return Interval(float(np.median(values)), low, high, len(values), len(values))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing of the finished folds of EfficientNet-Lite0, whose map is exact at its last layer."""
    parser = argparse.ArgumentParser(prog="python -m medxai.learn.lung_us.peaks", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the open data sets")
    parser.add_argument("--work", type=Path, default=Path(".training/lung_us"), help="as in training")
    parser.add_argument("--every", type=int, default=1, help="step between the frames that are taken")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {line}", flush=True)

    run = find_runs(options.work).get(("efficientnet_lite0", PATIENTS))
    if run is None:
        parser.error(f"efficientnet_lite0 has no finished fold below {options.work}")
    recordings = recordings_of(run, options.data)
    count = measure_held_out(run, options.data, recordings, FOLDER, find_peaks, say, options.every)
    print(f"{count} recordings; {run}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
