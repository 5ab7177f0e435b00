"""The shipped bundle on patients that it did not learn from, asked as inference asks it."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import MedxaiError
from medxai.learn.lung_us.bundle import LABELS, find_final
from medxai.learn.lung_us.calibration import tempered
from medxai.learn.lung_us.cohort import CLASSES, UNINFORMATIVE, Recording
from medxai.learn.lung_us.evidence import Shipped
from medxai.learn.lung_us.frames import chosen_frames, read_recording
from medxai.learn.metrics import balanced_accuracy, bootstrap
from medxai.predict.bundle import AllowList, load_bundle
from medxai.predict.infer import predict
from medxai.prepare.prepare import prepare

if TYPE_CHECKING:
    from torch import nn

    from medxai.predict.bundle import Bundle

#: Folder of ultrasound that no training reads.
ELSEWHERE = "us_dicom"


def check_shipped(
    name: str,
    allow: AllowList,
    data: Path,
    work: Path,
    recordings: Sequence[Recording],
    missing: list[str],
    resamples: int,
) -> Shipped | None:
    """Ask the bundle about its validation patients as inference does, but only for the frames that the protocol takes.

    Args:
        name: of the bundle, or its folder.
        allow: hashes of trusted bundles.
        data: folder of the open data sets.
        work: of the training, with the network on all patients.
        recordings: lungs and negatives in the order of the training.
        missing: told why there is no result.
        resamples: of the bootstrap.

    Returns:
        None when the bundle or its training is not there.
    """
    final = find_final(work)
    if final is None:
        missing.append("bundle: the network on all patients is not below the work folder (medxai train lung_us --out)")
        return None
    try:
        bundle = load_bundle(name, allow)
    except MedxaiError as error:
        missing.append(f"bundle: {error}")
        return None
    network = bundle.network()
    stored = np.load(final.folder / "validation.npz")
    by_path = {recording.path: i for i, recording in enumerate(recordings)}
    truth, probabilities, patients, apart = [], [], [], 0.0
    for path in final.validation:
        recording = recordings[by_path[path]]
        volume = read_recording(data, recording)
        if volume.axes == "THW":
            taken = list(chosen_frames(recording, volume))
            volume = dataclasses.replace(volume, pixels=volume.pixels[:, taken], frame_numbers=())
        found = predict(bundle, network, prepare(volume, bundle.spec.preparation))
        mine = tempered(stored["logits"][stored["recording"] == by_path[path]], bundle.spec.temperature)
        apart = max(
            apart, float(np.abs(tempered(np.asarray(found.window_logits), bundle.spec.temperature) - mine).max())
        )
        truth.append(LABELS.index(recording.label))
        probabilities.append(np.asarray(found.probabilities))
        patients.append(recording.patient)
    y, p = np.array(truth), np.stack(probabilities)
    lungs = y < len(CLASSES)
    declined = p[~lungs].argmax(axis=1) == LABELS.index(UNINFORMATIVE)
    score = bootstrap(balanced_accuracy, y[lungs], p[lungs], np.array(patients)[lungs].tolist(), n=resamples)
    return Shipped(
        f"{bundle.name} {bundle.version}",
        bundle.sha256,
        len(y),
        score,
        (int(declined.sum()), len(declined)),
        apart,
        _elsewhere(bundle, network, data),
    )


def _elsewhere(bundle: Bundle, network: nn.Module, data: Path) -> dict[str, tuple[str, float]]:
    from medxai.ingest.discover import discover
    from medxai.ingest.read import read_study

    found: dict[str, tuple[str, float]] = {}
    folder = data / ELSEWHERE
    if not folder.is_dir():
        return found
    with tempfile.TemporaryDirectory() as workspace:
        for source in discover([folder], Path(workspace)).sources:
            try:
                volume = read_study(source, "US").volume
                said = predict(bundle, network, prepare(volume, bundle.spec.preparation))
            except MedxaiError:
                continue
            found[f"{ELSEWHERE}/{source.files[0].name}"] = (said.label, float(said.probability))
    return found
