"""What guidance by the pleural line did to folds of lung ultrasound: accuracy and where the class maps lie.

Compared are folds of one network, trained with and without guidance on the same frames for as many epochs. The maps
are class activation maps of the decided class; the priors of held-out frames are made here, to measure, and no network
saw them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax

from medxai.learn.agreement import Agreement, agreement
from medxai.learn.lung_us.cohort import CLASSES, Recording, read_negatives, read_recordings
from medxai.learn.lung_us.features import FeaturePlan, Say, feature_folder, recording_features
from medxai.learn.lung_us.guide import RecordingPriors, all_priors, guided_part
from medxai.learn.lung_us.held_out import load_fold
from medxai.learn.lung_us.metrics import decide_recordings
from medxai.learn.metrics import Interval, bootstrap
from medxai.learn.prior_guided import MODES, class_map

FloatArray = npt.NDArray[np.float64]

NETWORK = "efficientnet_lite0"
#: Name of the training without guidance.
PLAIN = "none"
_COPIES = 4


@dataclass(frozen=True, eq=False)
class GuidedFold:
    """Held-out lungs of one fold as one network sees them.

    Attributes:
        fold: number.
        guidance: ``none`` or a mode.
        weight: of the guidance.
        recording: ``[N]`` recording of each frame.
        patient: ``[N]``.
        video: ``[N]`` whether it is a frame of a clip.
        labels: ``[N]`` class index, lungs alone.
        logits: ``[N, K]``.
        inside: ``[N]`` share of the map's evidence at and below the pleural line; NaN without a line.
        area: ``[N]`` the same of a uniform map.
        cosine: ``[N]`` with the prior of the true class; NaN where that says nothing of shape.
        uniform: ``[N]`` the same of a uniform map.
    """

    fold: int
    guidance: str
    weight: float
    recording: npt.NDArray[np.int64]
    patient: Sequence[str]
    video: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    logits: FloatArray
    inside: FloatArray
    area: FloatArray
    cosine: FloatArray
    uniform: FloatArray

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Which frames are decided right."""
        found: npt.NDArray[np.bool_] = self.logits.argmax(1) == self.labels
        return found

    def frame_accuracy(self) -> Interval:
        """Share of the frames decided right, over patients."""
        return _mean(self.correct.astype(float), self.patient)

    def video_accuracy(self) -> Interval:
        """Share of the clips whose mean probabilities decide right, over patients."""
        chosen = np.flatnonzero(self.video)
        clips, decided, _ = decide_recordings(softmax(self.logits[chosen], 1), self.recording[chosen].tolist())
        first = [int(chosen[np.flatnonzero(self.recording[chosen] == clip)[0]]) for clip in clips.tolist()]
        return _mean((decided == self.labels[first]).astype(float), [self.patient[int(i)] for i in first])

    def share(self, name: str) -> Interval:
        """Mean of `inside`, `area`, `cosine` or `uniform` over the frames that have it, over patients."""
        return _mean(getattr(self, name), self.patient)


def lines_found(work: Path) -> dict[str, tuple[int, int, int]]:
    """Count, by class, the frames with a pleural line, all frames and the recordings whose priors are kept."""
    kept = {path.name: path for path in sorted(work.glob("priors/*/*.npz"))}
    found: dict[str, tuple[int, int, int]] = {}
    for label in CLASSES:
        stored = [np.load(path)["values"][0] for name, path in kept.items() if name.endswith(f"-{label}.npz")]
        known = [np.isfinite(values).all((1, 2)) for values in stored]
        if known:
            found[label] = (sum(int(k.sum()) for k in known), sum(len(k) for k in known), len(known))
    return found


def measure_folds(data: Path, work: Path, say: Say) -> list[GuidedFold]:
    """Measure every guided fold below `work` and the fold without guidance that goes with it.

    Args:
        data: data folder.
        work: of the trainings of lung ultrasound.
        say: told of every fold.
    """
    recordings = (*read_recordings(data), *read_negatives(data))
    found: list[GuidedFold] = []
    for mode in MODES:
        for guided in sorted(work.glob(f"{NETWORK}-guided_{mode}-*/fold*/predictions.npz")):
            plain = _without(guided, work)
            if plain is None:
                say(f"{guided.parent.parent.name}/{guided.parent.name} has no fold without guidance beside it")
                continue
            number = int(guided.parent.name.removeprefix("fold"))
            weight = json.loads((guided.parent / "guidance.json").read_text())["weight"]
            if not any(f.fold == number and f.guidance == PLAIN for f in found):
                found.append(_measure(data, work, recordings, plain, number, PLAIN, 0.0, say))
            found.append(_measure(data, work, recordings, guided, number, mode, weight, say))
    return found


def _without(guided: Path, work: Path) -> Path | None:
    """Predictions of the same fold, trained for as many epochs on as many frames without guidance."""
    epochs, frames = _length(guided)
    for plain in sorted(work.glob(f"{NETWORK}-patients-*/{guided.parent.name}/predictions.npz")):
        same = np.array_equal(np.load(plain)["recording"], np.load(guided)["recording"])
        if _length(plain) == (epochs, frames) and same:
            return plain
    return None


def _length(result: Path) -> tuple[int, int]:
    return len(json.loads((result.parent / "epochs.json").read_text())), len(np.load(result.parent / "training.npy"))


def _measure(
    data: Path,
    work: Path,
    recordings: Sequence[Recording],
    result: Path,
    fold: int,
    guidance: str,
    weight: float,
    say: Say,
) -> GuidedFold:
    stored = np.load(result)
    cut = load_fold(result.parent, NETWORK, stored["logits"].shape[1])
    plan = FeaturePlan(cut.spec, copies=_COPIES, unit=cut.unit)
    chosen = np.flatnonzero((stored["labels"] >= 0) & (stored["labels"] < len(CLASSES)))
    wanted = np.unique(stored["recording"][chosen]).tolist()
    lungs = [recordings[i] for i in wanted]
    regions, shapes = (
        dict(zip(wanted, all_priors(data, lungs, plan, mode, work, say), strict=True)) for mode in ("outside", "cam")
    )
    layer, head = guided_part(cut)
    assert head is not None  # noqa: S101
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    folder = feature_folder(work, NETWORK, cut.trunk, plan)
    rows: list[tuple[Agreement | None, Agreement | None]] = []
    try:
        for index in wanted:
            features = recording_features(data, recordings[index], cut.trunk, plan, folder)[0]
            places = stored["place"][chosen][stored["recording"][chosen] == index]
            with torch.inference_mode():
                decided = cut.tail(torch.from_numpy(features[places].astype(np.float32))).argmax(1)
                maps = class_map(kept.pop(), head.weight, decided).numpy()
            for place, values in zip(places.tolist(), maps, strict=True):
                shaped = shapes[index] if not shapes[index].only_where[place] else None
                rows.append((_agree(values, regions[index], place), _agree(values, shaped, place)))
    finally:
        handle.remove()
    say(f"fold {fold}, guidance {guidance}: {len(rows)} frames measured")

    def column(which: int, name: str) -> FloatArray:
        return np.array([np.nan if row[which] is None else getattr(row[which], name) for row in rows])

    # Rows were made recording by recording, which is the order of the predictions.
    recording = stored["recording"][chosen]
    return GuidedFold(
        fold, guidance, weight, recording, [recordings[i].patient for i in recording],
        np.array([recordings[i].kind == "video" for i in recording]), stored["labels"][chosen],
        stored["logits"][chosen].astype(np.float64),
        column(0, "inside"), column(0, "area"), column(1, "cosine"), column(1, "uniform"),
    )  # fmt: skip


def _agree(values: npt.NDArray[np.float32], priors: RecordingPriors | None, place: int) -> Agreement | None:
    prior = priors.of(0, place) if priors is not None else None
    return agreement(values, prior.numpy()) if prior is not None and bool((prior > 0).any()) else None


def _mean(values: FloatArray, patients: Sequence[str]) -> Interval:
    known = np.flatnonzero(np.isfinite(values))
    mean: Callable[..., float] = lambda _labels, v: float(v.astype(float).mean())  # noqa: E731
    return bootstrap(mean, np.zeros(len(known)), np.asarray(values)[known, None], [patients[i] for i in known.tolist()])
