"""Folds of ``lung_us`` as bundles, each with the strongest frame of every recording that it never saw.

Nobody outlined findings in these recordings. In place of a mask stands where the lung begins, found in the frame
itself (`medxai.learn.lung_us.pleura`): evidence in the chest wall or outside the fan is certainly misplaced, evidence
inside need not be right. Recordings without a pleural line that can be found are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from medxai.errors import SettingsError
from medxai.learn.card import Card
from medxai.learn.cohort_table import CohortRow, write_table
from medxai.learn.lung_us.bundle import LABELS, block
from medxai.learn.lung_us.cohort import CLASSES, Recording
from medxai.learn.lung_us.frames import central_square, chosen_frames, read_recording
from medxai.learn.lung_us.heads import LITE_SPEC
from medxai.learn.lung_us.held_out import load_fold, recordings_of
from medxai.learn.lung_us.pleura import find_pleura
from medxai.learn.lung_us.pleura_priors import lung_region
from medxai.learn.lung_us.runs import PATIENTS, find_runs
from medxai.predict.write import write_bundle

#: Folds that are used.
USED = 1


def train(data: Path, work: Path, say: Callable[[str], None]) -> list[Path]:
    """Store bundles and cases of trained folds below ``work / "lung_us"``.

    Args:
        data: folder with ``us_lung``.
        work: of the cohorts; the folds lie in ``lung_us`` beside it.
        say: told how far it is.

    Returns:
        The folders of the folds.

    Raises:
        SettingsError: nothing was trained yet.
    """
    run = find_runs(work.parent / "lung_us").get(("efficientnet_lite0", PATIENTS))
    if run is None:
        msg = "no folds of lung_us; train with `medxai train lung_us` first"
        raise SettingsError(msg)
    recordings = recordings_of(run, data)
    folders = []
    for number in range(USED):
        predicted = np.load(run / f"fold{number}" / "predictions.npz")
        network = load_fold(run / f"fold{number}", "efficientnet_lite0", len(LABELS)).network
        folder = work / "lung_us" / f"fold{number}"
        spec = block(float(predicted["temperature"]))
        card = _card(number)
        write_bundle(
            folder / f"lung_us_fold{number}",
            network_def={
                "_target_": "medxai.networks.efficientnet_lite.EfficientNetLite0",
                "num_classes": len(LABELS),
                "image_size": LITE_SPEC.window[0],
            },
            network=network,
            metadata=card.metadata(spec, task="Lung ultrasound classification"),
            card=card.markdown(spec),
            licence="CC-BY-NC-4.0\n",
        )
        rows, lost = [], 0
        lungs = (predicted["labels"] >= 0) & (predicted["labels"] < len(CLASSES))
        for index in np.unique(predicted["recording"][lungs]).tolist():
            mine = predicted["recording"] == index
            best = int(predicted["logits"][mine][:, recordings[index].label == np.array(LABELS)].argmax())
            row = _case(data, folder, recordings[index], int(predicted["place"][mine][best]))
            if row is None:
                lost += 1
            else:
                rows.append(row)
        write_table(folder / "labels.csv", rows)
        say(f"lung_us: fold {number}, {len(rows)} recordings held out, {lost} more without a pleural line")
        folders.append(folder)
    return folders


def _case(data: Path, folder: Path, recording: Recording, place: int) -> CohortRow | None:
    volume = read_recording(data, recording)
    square = central_square(volume)
    frame = square.pixels[:, chosen_frames(recording, volume)[place]] if volume.axes == "THW" else square.pixels
    line = find_pleura(frame.mean(0))
    if line is None:
        return None
    name = f"{Path(recording.path).stem}_{place}".replace(" ", "_")
    cases = folder / "cases"
    cases.mkdir(parents=True, exist_ok=True)
    picture = np.repeat(frame, 3, axis=0) if len(frame) == 1 else frame
    Image.fromarray(np.rint(picture).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)).save(cases / f"{name}.png")
    region = lung_region(line, frame.shape[1:]) > 0.5
    Image.fromarray(region.astype(np.uint8) * 255).save(cases / f"{name}_lung.png")
    return CohortRow(f"{name}.png", recording.label, f"{name}_lung.png", recording.patient)


def _card(number: int) -> Card:
    return Card(
        name=f"lung_us_fold{number}",
        version="1.0.0",
        summary="Lung ultrasound; a fold, for the validation of explanations.",
        data="Recordings of other patients than those of this fold.",
        split=f"By patient; this is fold {number} of five.",
        training="As the shipped bundle lung_us.",
        results={},
        evaluation="See docs/lung_us.md.",
        limits=("Not shipped.",),
        reproduce="python -m medxai.learn.cohorts lung_us --data $MEDXAI_DATA --work .training/cohorts",
        licence="CC-BY-NC-4.0",
    )
