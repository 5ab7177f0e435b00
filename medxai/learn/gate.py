"""Thresholds of the shipped bundles' trust gates, from cases their networks never saw.

``python -m medxai.learn.gate breast_us --data $MEDXAI_DATA --work .training`` writes ``configs/trust.json`` of the
bundle, its new hash into ``allow.json``, and the figures of every case into ``docs/evidence``.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import typer

from medxai.errors import SettingsError
from medxai.files import write_text
from medxai.learn.lung_us.cohort import CLASSES
from medxai.predict.bundle import SHIPPED, AllowList, bundle_sha256, load_bundle
from medxai.trust.gate.collect import collect, make_item
from medxai.trust.gate.figures import MASKING, NAMES
from medxai.trust.gate.fit import Case, calibrate
from medxai.trust.gate.verdict import FILE

if TYPE_CHECKING:
    from medxai.trust.gate.verdict import Calibration

Say = Callable[[str], None]
METHOD = "gradcam"
EVIDENCE = Path("docs/evidence")
#: Phantoms with seeds that neither training nor evaluation draws.
_PHANTOM_SEED, _PHANTOMS = 900_000, 120
#: Frames of a clip that are looked at.
_FRAMES = 8


def breast_us_cases(data: Path, work: Path, most: int, say: Say) -> list[Case]:
    """Figures of BUSI images, each by the network of the fold that never saw it or a near-duplicate.

    Args:
        data: folder with ``us_breast_busi``.
        work: folder of the training, with the weights of its folds.
        most: images of each fold.
        say: told how far it is.

    Raises:
        SettingsError: the training left no folds.
    """
    from safetensors.torch import load_file

    from medxai.ingest.picture import read_picture
    from medxai.learn.breast_us import LABELS, SIZE
    from medxai.networks.efficientnet_lite import TARGET_LAYER, EfficientNetLite0

    table = work / "breast_us" / "out_of_fold.csv"
    if not table.exists():
        msg = "no folds of breast_us; train with --folds 5 first"
        raise SettingsError(msg)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    bundle = load_bundle("breast_us", AllowList.of(SHIPPED / "breast_us"))
    cases: list[Case] = []
    for fold in sorted({row["fold"] for row in rows}):
        network = EfficientNetLite0(len(LABELS), image_size=SIZE).eval()
        network.load_state_dict(load_file(work / "breast_us" / f"fold{fold}.safetensors"))
        network.requires_grad_(requires_grad=False)
        mine = [row for row in rows if row["fold"] == fold]
        count = min(most, len(mine))
        items = []
        for number in range(count):
            row = mine[number * len(mine) // count]
            volume = replace(read_picture(data / "us_breast_busi" / row["path"]), modality="US")
            items.append(make_item(bundle, network, volume, row["duplicate_group"]))
        found, _ = collect(network, items, method=METHOD, layer=TARGET_LAYER)
        cases += found
        say(f"breast_us: fold {fold}, {len(items)} images")
    return cases


def lung_us_cases(data: Path, work: Path, most: int, say: Say) -> list[Case]:
    """Figures of lung ultrasound, each recording by the network of the fold that never saw its patient.

    Of a clip `_FRAMES` frames of the protocol are looked at, evenly spaced; the strongest is judged.

    Args:
        data: folder with ``us_lung``.
        work: folder of the training, with the weights of its folds.
        most: recordings of each fold.
        say: told how far it is.

    Raises:
        SettingsError: the training left no folds.
    """
    from medxai.learn.lung_us.frames import chosen_frames, read_recording
    from medxai.learn.lung_us.held_out import load_fold, recordings_of
    from medxai.learn.lung_us.runs import PATIENTS, find_runs
    from medxai.networks.efficientnet_lite import TARGET_LAYER

    name = "efficientnet_lite0"
    run = find_runs(work / "lung_us").get((name, PATIENTS))
    if run is None:
        msg = "no folds of lung_us; train with `medxai train lung_us` first"
        raise SettingsError(msg)
    recordings = recordings_of(run, data)
    bundle = load_bundle("lung_us", AllowList.of(SHIPPED / "lung_us"))
    cases: list[Case] = []
    for folder in sorted(run.glob("fold*")):
        predicted = np.load(folder / "predictions.npz")
        network = load_fold(folder, name, predicted["logits"].shape[1]).network
        network.requires_grad_(requires_grad=False)
        lungs = predicted["recording"][(predicted["labels"] >= 0) & (predicted["labels"] < len(CLASSES))]
        mine = np.unique(lungs)
        mine = mine[np.linspace(0, len(mine) - 1, min(most, len(mine))).round().astype(int)]
        items = []
        for number in mine.tolist():
            volume = read_recording(data, recordings[number])
            frames = chosen_frames(recordings[number], volume)
            if volume.axes == "THW":
                kept = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int))]
                volume = replace(volume, pixels=volume.pixels[:, kept])
            item = make_item(bundle, network, replace(volume, modality="US"), recordings[number].patient)
            if item.label != bundle.spec.reject:
                items.append(item)
        found, _ = collect(network, items, method=METHOD, layer=TARGET_LAYER)
        cases += found
        say(f"lung_us: {folder.name}, {len(items)} recordings")
    return cases


def histo_tumour_cases(data: Path, work: Path, most: int, say: Say) -> list[Case]:
    """Figures of tiles, each by the network of the fold that never saw its patch.

    Args:
        data: folder with the patches.
        work: folder of the training, with the bundles of its folds.
        most: tiles of each fold.
        say: told how far it is.

    Raises:
        SettingsError: the training left no folds, or the patches are not there.
    """
    from medxai.learn.histology import QUESTION, all_tiles
    from medxai.learn.splits import grouped_folds
    from medxai.learn.tile_folds import picture_of
    from medxai.networks.efficientnet_lite import TARGET_LAYER

    folders = [work / "cohorts" / QUESTION.name / f"fold{number}" for number in range(QUESTION.folds)]
    if not all(folder.is_dir() for folder in folders):
        msg = f"no folds of {QUESTION.name}; train histo_tumour with --folds {QUESTION.folds} first"
        raise SettingsError(msg)
    tiles, _ = all_tiles(data)
    labels, patches = [tile.label for tile in tiles], [tile.picture for tile in tiles]
    fold = grouped_folds(labels, patches, QUESTION.folds, QUESTION.how.recipe.seed)
    cases: list[Case] = []
    for number, folder in enumerate(folders):
        path = folder / f"{QUESTION.name}_fold{number}"
        bundle = load_bundle(path, AllowList.of(path))
        network = bundle.network()
        mine = np.flatnonzero(fold == number)
        mine = mine[np.linspace(0, len(mine) - 1, min(most, len(mine))).round().astype(int)]
        items = [make_item(bundle, network, picture_of(tiles[n], QUESTION.modality), patches[n]) for n in mine.tolist()]
        found, _ = collect(network, items, method=METHOD, layer=TARGET_LAYER)
        cases += found
        say(f"histo_tumour: fold {number}, {len(items)} tiles")
    return cases


def phantom_ct_cases(most: int, say: Say) -> list[Case]:
    """Figures of fresh phantoms with up to two lesions.

    Args:
        most: phantoms.
        say: told how far it is.
    """
    from medxai.learn.phantom_ct import as_volume, draw
    from medxai.networks.densenet3d import TARGET_LAYER

    bundle = load_bundle("phantom_ct", AllowList.of(SHIPPED / "phantom_ct"))
    network = bundle.network()
    items = []
    for number in range(min(most, _PHANTOMS)):
        volume = as_volume(draw(_PHANTOM_SEED + number, number % 3))
        items.append(make_item(bundle, network, volume, str(number)))
        if number % 20 == 19:
            say(f"phantom_ct: {number + 1} phantoms")
    found, missing = collect(network, items, method=METHOD, layer=TARGET_LAYER)
    for kind, reason in missing.items():
        say(f"phantom_ct: no {kind}: {reason}")
    return found


def store(name: str, cases: Sequence[Case], data: str) -> Calibration:
    """Fit, and write thresholds, hash and figures."""
    found = calibrate(cases, bundle=name, method=METHOD, masking=(MASKING[0], MASKING[1]), data=data)
    write_text(SHIPPED / name / "configs" / FILE, found.model_dump_json(indent=1) + "\n")
    listed = dict(AllowList.shipped().hashes) | {name: (bundle_sha256(SHIPPED / name),)}
    write_text(SHIPPED / "allow.json", json.dumps(listed, indent=2, sort_keys=True) + "\n")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["class", "kind", "group", *NAMES])
    for case in cases:
        writer.writerow([case.label, case.kind, case.patient, *(f"{case.figures[figure]:.4g}" for figure in NAMES)])
    write_text(EVIDENCE / f"trust_{name}_cases.csv", lines.getvalue())
    return found


def read_cases(path: Path) -> list[Case]:
    """Figures that `store` wrote, to learn from again.

    Raises:
        SettingsError: there are none.
    """
    if not path.exists():
        msg = f"{path.name} is not there; measure first"
        raise SettingsError(msg)
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [Case(row["kind"], row["group"], {name: float(row[name]) for name in NAMES}, row["class"]) for row in rows]


def main(
    name: str, data: Path = Path(), work: Path = Path(".training"), most: int = 120, *, again: bool = False
) -> None:
    """Learn the thresholds of a shipped bundle.

    Args:
        name: ``breast_us``, ``histo_tumour``, ``lung_us`` or ``phantom_ct``.
        data: folder of the real data.
        work: folder of the training.
        most: images or tiles of each fold, or phantoms.
        again: learn from the stored figures.
    """
    from medxai.trust.gate.show import print_calibration

    words = {
        "breast_us": "BUSI, each image by the network of the fold that never saw it",
        "histo_tumour": "CAMELYON and OCDC, each tile by the network of the fold that never saw its patch",
        "lung_us": "lung ultrasound, each recording by the network of the fold that never saw its patient",
        "phantom_ct": f"phantoms of seeds from {_PHANTOM_SEED}, which no training draws",
    }
    if name not in words:
        msg = f"there is no calibration of {name}; there are {', '.join(words)}"
        raise SettingsError(msg)
    if again:
        cases = read_cases(EVIDENCE / f"trust_{name}_cases.csv")
    elif name == "breast_us":
        cases = breast_us_cases(data, work, most, typer.echo)
    elif name == "histo_tumour":
        cases = histo_tumour_cases(data, work, most, typer.echo)
    elif name == "lung_us":
        cases = lung_us_cases(data, work, most, typer.echo)
    else:
        cases = phantom_ct_cases(most, typer.echo)
    print_calibration(store(name, cases, words[name]))


if __name__ == "__main__":
    typer.run(main)
