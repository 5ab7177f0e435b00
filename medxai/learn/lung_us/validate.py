"""Score all stored predictions again, check the shipped bundle, and write tables, pictures and the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medxai.errors import SettingsError
from medxai.files import write_bytes, write_text
from medxai.learn.lung_us.cohort import Recording, read_negatives, read_recordings
from medxai.learn.lung_us.evidence import Evidence, Leak, NetworkEvidence, Repeated
from medxai.learn.lung_us.folds import straddling
from medxai.learn.lung_us.measure_uncertainty import beliefs
from medxai.learn.lung_us.metrics import pooled
from medxai.learn.lung_us.page import page_of, table_lines
from medxai.learn.lung_us.peaks import Peak, compare_depths, read_peaks, write_peaks
from medxai.learn.lung_us.pictures import peaks_picture, reliability_picture, sources_picture
from medxai.learn.lung_us.protocol import certainties, difference, score_network
from medxai.learn.lung_us.runs import LEAKING, PATIENTS, FrameTable, find_runs, read_note, read_run, write_frames
from medxai.learn.lung_us.shipped import check_shipped
from medxai.learn.lung_us.speed import cost_of
from medxai.learn.lung_us.train import NETWORKS, SHIPPED, Step
from medxai.predict.bundle import AllowList

PAGE = "lung_us.md"
JSON, FRAMES, PEAKS = "evidence/lung_us.json", "evidence/lung_us_frames.csv", "evidence/lung_us_peaks.csv"
PICTURES = ("images/lung_us_reliability.png", "images/lung_us_sources.png", "images/lung_us_peaks.png")
#: Columns of `FRAMES` beside the predictions: confidence by changed pictures and by dropout, empty where not asked.
CONFIDENCES = ("aleatoric", "epistemic")
#: Scores of frames that the leak is told by.
LEAK_SCORES = ("accuracy", "balanced_accuracy", "sensitivity_covid", "specificity_covid")


def validate(
    data: Path,
    work: Path,
    out: Path,
    step: Step,
    *,
    bundle: str | None = "lung_us",
    resamples: int = 2000,
    timing: bool = True,
    allow: AllowList | None = None,
) -> tuple[list[Path], list[str]]:
    """Measure what the stored runs allow and write it below `out`.

    Args:
        data: folder of the open data sets.
        work: of the training.
        out: gets the page, ``evidence`` and ``images``.
        step: told how far it is.
        bundle: name or folder of the bundle; None leaves it.
        resamples: of every bootstrap.
        timing: measure CPU time.
        allow: hashes of trusted bundles; None takes the shipped ones.

    Returns:
        What was written, and the table as lines.

    Raises:
        SettingsError: no finished fold, or other tables than in training.
    """
    recordings, negatives = read_recordings(data), read_negatives(data)
    runs = find_runs(work)
    honest = {name: run for (name, split), run in runs.items() if split != LEAKING}
    if not honest:
        msg = f"no finished fold below {work}; begin with `medxai train lung_us`"
        raise SettingsError(msg)
    named = {
        name if split == PATIENTS else f"{name} ({split})": run
        for (name, split), run in runs.items()
        if split != LEAKING
    }
    networks, tables = {}, {}
    for number, (name, run) in enumerate(named.items()):
        step(f"scores of {name}", number, len(named) + 3)
        tables[name] = read_run(run, recordings, negatives)
        cost = cost_of(name.partition(" ")[0], len(tables[name].classes), timing=timing)
        networks[name] = NetworkEvidence(run.name, read_note(run), cost, score_network(tables[name], resamples))
    missing: list[str] = []
    everything = (*recordings, *negatives)
    step("repeated questions and peaks", len(named), len(named) + 3)
    columns: dict[str, Any] = {}
    repeated, peaks = None, []
    if SHIPPED in tables:
        repeated, columns = _repeated(runs[SHIPPED, PATIENTS], tables[SHIPPED], everything, missing, resamples)
        peaks = read_peaks(runs[SHIPPED, PATIENTS], everything)
    if not peaks:
        missing.append("peaks: run python -m medxai.learn.lung_us.peaks")
    step("leak", len(named) + 1, len(named) + 3)
    leak = _leak(runs, tables, recordings, negatives, resamples)
    if leak is None:
        missing.append("leak: run medxai train lung_us --leak")
    step("bundle", len(named) + 2, len(named) + 3)
    shipped = (
        None
        if bundle is None
        else check_shipped(bundle, allow or AllowList.shipped(), data, work, everything, missing, resamples)
    )
    evidence = Evidence(
        networks=networks,
        unfinished=tuple(name for name in NETWORKS if name not in networks),
        repeated=repeated,
        depths=tuple(compare_depths(peaks, recordings, resamples)),
        peaks=len(peaks),
        leak=leak,
        shipped=shipped,
        missing=tuple(missing),
    )
    return _write(evidence, tables, columns, peaks, out), table_lines(evidence)


def _write(
    evidence: Evidence, tables: dict[str, FrameTable], columns: dict[str, Any], peaks: Sequence[Peak], out: Path
) -> list[Path]:
    main = SHIPPED if SHIPPED in tables else next(iter(tables))
    scores = evidence.networks[main].scores
    kinds = evidence.repeated.kinds if evidence.repeated else {}
    written = [
        write_text(out / JSON, evidence.json()),
        write_frames(out / FRAMES, tables[main], columns),
        write_bytes(out / PICTURES[0], reliability_picture(scores.calibration, kinds)),
        write_bytes(out / PICTURES[1], sources_picture(scores.sources)),
    ]
    if peaks:
        written += [write_peaks(out / PEAKS, peaks), write_bytes(out / PICTURES[2], peaks_picture(peaks))]
    return [*written, write_text(out / PAGE, page_of(evidence, main))]


def _repeated(
    run: Path, table: FrameTable, recordings: Sequence[Recording], missing: list[str], resamples: int
) -> tuple[Repeated | None, dict[str, Any]]:
    try:
        rows, changed, dropped = beliefs(run, table, [recording.path for recording in recordings])
    except SettingsError as error:
        missing.append(f"confidence: {error.reason}")
        return None, {}
    kinds = certainties(table, rows, changed, dropped, resamples)
    columns = {name: np.full(len(table), np.nan) for name in CONFIDENCES}
    for name, belief in zip(CONFIDENCES, (changed, dropped), strict=True):
        columns[name][rows] = belief.confidence
    return Repeated(SHIPPED, int(table.lungs[rows].sum()), int(table.lungs.sum()), kinds), columns


def _leak(
    runs: dict[tuple[str, str], Path],
    tables: dict[str, FrameTable],
    recordings: Sequence[Recording],
    negatives: Sequence[Recording],
    resamples: int,
) -> Leak | None:
    run = runs.get((SHIPPED, LEAKING))
    if run is None or SHIPPED not in tables:
        return None
    both = {"patients": tables[SHIPPED], "leaking": read_run(run, recordings, negatives)}
    folds = sorted(set(both["patients"].folds) & set(both["leaking"].folds))
    straddle = {}
    for name, folder in (("patients", runs[SHIPPED, PATIENTS]), ("leaking", run)):
        sides: list[int] = []
        groups: list[str] = []
        for fold in folds:
            learnt = np.unique(np.load(folder / f"fold{fold}" / "training.npy")[:, 0]).tolist()
            stored = np.load(folder / f"fold{fold}" / "predictions.npz")
            asked = np.unique(stored["recording"][stored["labels"] >= 0]).tolist()
            groups += [f"{fold}:{i}" for i in (*learnt, *asked)]
            sides += [0] * len(learnt) + [1] * len(asked)
        straddle[name] = straddling(sides, groups)
    lungs = {name: table.keep(table.lungs & np.isin(table.fold, folds)) for name, table in both.items()}
    scored = {
        name: pooled(t.label, t.decided, t.patient.tolist(), t.classes, resamples=resamples)
        for name, t in lungs.items()
    }
    epochs = json.loads((run / f"fold{folds[0]}" / "epochs.json").read_text())
    return Leak(
        SHIPPED,
        tuple(folds),
        len(epochs),
        straddle,
        {name: scored["patients"][name] for name in LEAK_SCORES},
        {name: scored["leaking"][name] for name in LEAK_SCORES},
        {name: difference(lungs["leaking"], lungs["patients"], name, resamples) for name in LEAK_SCORES},
    )
