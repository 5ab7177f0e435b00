"""Lung ultrasound by patient, computed anew from the stored out-of-fold predictions of every frame."""

from __future__ import annotations

from pathlib import Path

from tests.bench.entry import Entry

FRAMES = Path("docs/evidence/lung_us_frames.csv")
SCORES = ("lung_us_video_balanced_accuracy", "lung_us_frame_accuracy", "lung_us_ece")
CORRELATION = ("lung_us_uncertainty_correlation",)


def cross_validation() -> list[Entry]:
    """Balanced accuracy of videos, accuracy of frames and calibration error, with intervals over patients."""
    from medxai.learn.lung_us.protocol import score_network
    from medxai.learn.lung_us.runs import read_frames

    if not FRAMES.exists():
        return []
    table, _ = read_frames(FRAMES)
    found = score_network(table)
    video = found.videos["mean"].pooled["balanced_accuracy"]
    frame, ece = found.frames.pooled["accuracy"], found.calibration.after
    folds = f"{len(found.folds)} folds by patient"
    return [
        Entry(SCORES[0], video.value, "1", None, "higher", video.n, video.low, video.high,
              f"videos of {video.groups} patients by mean probability, {folds}; three classes and one that declines"),
        Entry(SCORES[1], frame.value, "1", None, "higher", frame.n, frame.low, frame.high,
              f"frames of {frame.groups} patients, {folds}"),
        Entry(SCORES[2], ece.value, "1", None, "lower", ece.n, ece.low, ece.high,
              "expected calibration error, 15 bins, at the temperature of inner validation patients"),
    ]  # fmt: skip


def correlation() -> list[Entry]:
    """Pearson's r of the combined confidence with being right, on the lung frames that were asked again."""
    import numpy as np

    from medxai.learn.lung_us.runs import read_frames
    from medxai.learn.lung_us.uncertainty import correctness_correlation

    if not FRAMES.exists():
        return []
    table, confidence = read_frames(FRAMES, ("aleatoric", "epistemic"))
    combined = (confidence["aleatoric"] + confidence["epistemic"]) / 2
    asked = table.lungs & np.isfinite(combined)
    if not asked.any():
        return []
    lungs = table.keep(asked)
    r = correctness_correlation(combined[asked], lungs.decided == lungs.label, lungs.patient.tolist())
    against = (
        f"frames of {r.groups} patients; mean of confidence by changed pictures and by dropout, ten passes each, "
        "against decisions without them"
    )
    return [Entry(CORRELATION[0], r.value, "1", None, "higher", r.n, r.low, r.high, against)]
