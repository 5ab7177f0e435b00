"""What networks with and without a shortcut answer, where their maps lie, and what the gate says of them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.explain.engine import load_methods
from medxai.explain.resize import resize
from medxai.explain.run import Run
from medxai.explain.split import INPUT, Forward
from medxai.explain.target import resolve
from medxai.ingest.picture import read_picture
from medxai.learn.breast_us import LABELS, SPEC, Cases, logits_of
from medxai.learn.shortcut import MARKED, MARKERS, PLAIN, held_out, image_of, marker_mask, with_marker
from medxai.networks.efficientnet_lite import TARGET_LAYER
from medxai.prepare.grid import plan_grid
from medxai.prepare.prepare import prepare
from medxai.study import TrustReport, Volume
from medxai.trust.gate.assess import anatomy_of
from medxai.trust.gate.consensus import consensus
from medxai.trust.gate.figures import MASKING, Bench, Candidate
from medxai.trust.gate.look import Look
from medxai.trust.gate.verdict import judge
from medxai.trust.localisation import mass_accuracy, pointing_game

if TYPE_CHECKING:
    from medxai.trust.gate.verdict import Calibration

METHOD = "gradcam"
#: Where the marker is in the images a network is asked about.
NONE, TRAINED, OTHER = "no marker", "as trained", "other classes"


@dataclass(frozen=True)
class Row:
    """One image asked about.

    Attributes:
        network: kind of marker it was trained with, or `PLAIN`.
        seed: of the network.
        marker: kind burnt into the image, empty without one.
        where: which images carry it: `NONE`, `TRAINED` or `OTHER`.
        group: near-duplicates.
        truth: class.
        probabilities: ``[K]``.
        on_marker: share of the map's energy on the marker's place; NaN where no map was made.
        points_at_marker: the map's maximum lies there.
        on_lesion: share of the energy on the lesion.
        share_marker: share of the image that the marker's place takes.
        share_lesion: likewise of the lesion.
        trust: what the gate says; None where no map was made.
    """

    network: str
    seed: int
    marker: str
    where: str
    group: str
    truth: int
    probabilities: tuple[float, ...]
    on_marker: float = float("nan")
    points_at_marker: float = float("nan")
    on_lesion: float = float("nan")
    share_marker: float = float("nan")
    share_lesion: float = float("nan")
    trust: TrustReport | None = None


@dataclass(frozen=True, eq=False)
class MeanMap:
    """Mean of the maps of malignant images over the image's own field, each of sum 1.

    Attributes:
        network: as in `Row`.
        seed: likewise.
        values: ``[48, 48]``.
        count: maps.
    """

    network: str
    seed: int
    values: npt.NDArray[np.float32]
    count: int


def measure(
    network: nn.Module, data: Path, cases: Cases, kind: str, seed: int, most: int, calibration: Calibration | None
) -> tuple[list[Row], list[MeanMap]]:
    """Answers for all held-out images; maps and the gate for those of the marked class, as they were in training.

    Args:
        network: in evaluation mode.
        data: folder of the data sets.
        cases: of the data set.
        kind: marker it was trained with.
        seed: of the network.
        most: maps at most.
        calibration: thresholds of the gate.
    """
    chosen = held_out(cases, seed).tolist()
    asked = [(NONE, "")] + [(TRAINED, m) for m in MARKERS] + [(OTHER, m) for m in MARKERS]
    rows: list[Row] = []
    for where, marker in asked:
        if kind not in (PLAIN, marker) and marker:
            continue  # a network is asked about its own marker; the plain one about every kind
        volumes = [_asked(image_of(data, cases, n), cases.labels[n], where, marker) for n in chosen]
        logits = logits_of(network, np.stack([prepare(volume, SPEC).pixels for volume in volumes]))
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        rows += [
            Row(kind, seed, marker, where, cases.groups[n], cases.labels[n], tuple(map(float, p)))
            for n, p in zip(chosen, probabilities, strict=True)
        ]
    malignant = [n for n in chosen if cases.labels[n] == MARKED]
    malignant = [malignant[i * len(malignant) // most] for i in range(most)] if len(malignant) > most else malignant
    marker = "" if kind == PLAIN else kind
    total, count = np.zeros((48, 48)), 0
    for number in malignant:
        row, values = _explained(network, data, cases, number, kind, seed, marker, calibration)
        rows.append(row)
        if values is not None:
            total, count = total + values, count + 1
    return rows, [MeanMap(kind, seed, (total / max(count, 1)).astype(np.float32), count)]


def _asked(volume: Volume, label: int, where: str, marker: str) -> Volume:
    carries = marker and (label == MARKED) == (where == TRAINED)
    return with_marker(volume, marker) if carries else volume


def _explained(
    network: nn.Module,
    data: Path,
    cases: Cases,
    number: int,
    kind: str,
    seed: int,
    marker: str,
    calibration: Calibration | None,
) -> tuple[Row, npt.NDArray[np.float64] | None]:
    """A malignant image: its map, where that lies, and the verdict, all as in the pipeline."""
    source = image_of(data, cases, number)
    volume = with_marker(source, marker) if marker else source
    x = torch.from_numpy(prepare(volume, SPEC).pixels)[None]
    look = Look(Forward(network), x, TARGET_LAYER, families=True)
    method, options = load_methods([METHOD])[0]
    logits = look.clean.captured.logits.detach()
    probabilities = logits[0].softmax(0)
    index = int(probabilities.argmax())
    own, rival = (look.map(method, options, which) for which in (index, look.rival(index)))
    noisy = look.map(method, options, index, noisy=True)
    grid = plan_grid(volume, SPEC)
    region = anatomy_of(volume, grid)
    bench = Bench(Run(look.clean, resolve(index, logits), INPUT), calibration.masking if calibration else MASKING)
    figures = bench.figures(Candidate(own, rival, noisy), None if region is None else region[0])
    report = judge(
        figures,
        calibration,
        method=METHOD,
        label=LABELS[index],
        flags=frozenset() if bool((own > 0).any()) else frozenset({"empty"}),
        agreement=consensus(own, method.INFO.family, look.family_maps(index), look.grid),
    )
    placed = np.maximum(grid.backward(resize(own.clamp_min(0)[None], x.shape[2:])[0].numpy()), 0)
    spot, lesion = marker_mask(volume.shape), _lesion(data, cases, number)
    answer = Row(
        kind,
        seed,
        marker,
        TRAINED if marker else NONE,
        cases.groups[number],
        cases.labels[number],
        tuple(map(float, probabilities)),
        on_marker=float(mass_accuracy(placed[None], spot[None]).values[0]),
        points_at_marker=float(pointing_game(placed[None], spot[None]).values[0]),
        on_lesion=float(mass_accuracy(placed[None], lesion[None]).values[0]),
        share_marker=float(spot.mean()),
        share_lesion=float(lesion.mean()),
        trust=report,
    )
    if not placed.any():
        return answer, None
    small = resize(torch.from_numpy(placed)[None], (48, 48))[0].double().numpy()
    return answer, small / small.sum()


def _lesion(data: Path, cases: Cases, number: int) -> npt.NDArray[np.bool_]:
    folder = data / "us_breast_busi"
    with (folder / "labels.csv").open(newline="") as stream:
        names = {row["path"]: row["mask"] for row in csv.DictReader(stream)}
    found: npt.NDArray[np.bool_] = read_picture(folder / names[cases.paths[number]]).pixels[0] > 127
    return found
