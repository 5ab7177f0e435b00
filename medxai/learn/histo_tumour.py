"""The shipped bundle of tiles with or without tumour: folds of whole patches for figures, all patches for weights.

Besides the class, the place is measured: Grad-CAM of the fold's network on held-out tiles that are partly tumour
against their masks, beside a random map and a Gaussian about the centre on the same tiles.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import SettingsError
from medxai.files import write_text
from medxai.learn import histology
from medxai.learn.breast_us import SPEC
from medxai.learn.card import Card
from medxai.learn.licence import creative_commons
from medxai.learn.metrics import Interval, bootstrap
from medxai.learn.tile_folds import LABELS, block, cross_validate, prepared
from medxai.learn.tiles import Tile
from medxai.learn.transfer import early_features, train_tail
from medxai.networks.efficientnet_lite import TARGET_LAYER
from medxai.predict.bundle_spec import MedxaiBlock, SlideSpec
from medxai.predict.write import write_bundle

NAME, VERSION = "histo_tumour", "1.0.0"
#: The patches do not state their resolution; lymphocytes, 7 micrometres wide, have about ten pixels in both sets.
SLIDE = SlideSpec(mpp=0.7, tile=histology.CUT.size)
MAPS = ("gradcam", "random", "centred_gaussian")
MEASURES = ("mass_lift", "pointing_game")
SOURCE = (
    "CAMELYON (Litjens et al., GigaScience 7:giy065, 2018; CC0) and the oral cavity data set OCDC (Nascimento et al., "
    "Data in Brief 2023; CC BY 4.0)"
)
Say = Callable[[str], None]


def train(data: Path, work: Path, out: Path, n_folds: int, say: Say) -> Path:
    """Measure on the folds, train on all patches and write the bundle ``out/histo_tumour``.

    Args:
        data: holds ``histo_camelyon`` and ``histo_ocdc``.
        work: folds, checkpoints and ``histo_tumour.json`` with all figures; what is there is not made again.
        out: folder of bundles.
        n_folds: of whole patches.
        say: told how far it is.

    Raises:
        SettingsError: the patches are not there.
    """
    folds, found = work / "cohorts", work / NAME / f"{NAME}.json"
    question = replace(histology.QUESTION, folds=n_folds)
    tiles, origin = histology.all_tiles(data)
    metrics = folds / question.name / "metrics.json"
    fold_folders = [folds / question.name / f"fold{number}" for number in range(n_folds)]
    if not (metrics.exists() and all(path.is_dir() for path in fold_folders)):
        cross_validate(question, tiles, folds, say, origin)
    if not found.exists() or json.loads(found.read_text())["folds"] != n_folds:
        figures = json.loads(metrics.read_text()) | {"folds": n_folds, "maps": measure(fold_folders, say)}
        write_text(found, json.dumps(figures, indent=1) + "\n")
    figures = json.loads(found.read_text())
    images = np.stack([prepared(tile, question.modality) for tile in tiles])
    features = early_features(images, question.how)
    labels = [tile.label for tile in tiles]
    network = train_tail(features, labels, question.how, work / NAME / "final.ckpt", say)
    spec: MedxaiBlock = block(question).model_copy(update={"slide": SLIDE, "fusion": "lse"})
    card = _card(figures, tiles, question.how.recipe)
    return write_bundle(
        out / NAME,
        network_def={
            "_target_": "medxai.networks.efficientnet_lite.EfficientNetLite0",
            "num_classes": len(LABELS),
            "image_size": spec.preparation.window[0],
        },
        network=network,
        metadata=card.metadata(spec, task="Tiles with or without tumour"),
        card=card.markdown(spec),
        licence=creative_commons(
            f"{SOURCE}; EfficientNet-Lite0 ImageNet weights, the TensorFlow authors, Apache License 2.0",
            "weights fine-tuned on the images; no image is included.",
        ),
    )


def write_evidence(work: Path, folder: Path) -> Path:
    """Copy the figures of `train` to ``folder/histo_tumour.json``, from where benchmarks and pages read them.

    Args:
        work: of `train`.
        folder: such as ``docs/evidence``.

    Raises:
        SettingsError: nothing was trained there.
    """
    found = work / NAME / f"{NAME}.json"
    if not found.exists():
        raise SettingsError(f"{found} is missing: run medxai train {NAME}")
    return write_text(folder / found.name, json.dumps(json.loads(found.read_text()), indent=1) + "\n")


def measure(folders: Sequence[Path], say: Say) -> dict[str, dict[str, dict[str, float | int]]]:
    """Place of maps on held-out tiles by kind of map and measure; intervals resample patches.

    Args:
        folders: of folds, each with its bundle, ``labels.csv`` and ``cases``.
        say: told after every fold.
    """
    import torch
    from PIL import Image

    from medxai.explain import explain
    from medxai.ingest.picture import read_picture
    from medxai.predict.build import build_network
    from medxai.prepare.prepare import prepare
    from medxai.trust import controls, localisation

    rows: dict[str, list[list[float]]] = {name: [] for name in MAPS}
    groups: list[str] = []
    for folder in folders:
        bundle = next(path for path in folder.iterdir() if (path / "configs").is_dir())
        network = build_network(bundle)
        with (folder / "labels.csv").open(newline="") as stream:
            cases = list(csv.DictReader(stream))
        for case in cases:
            x = torch.from_numpy(prepare(read_picture(folder / "cases" / case["path"]), SPEC).pixels)
            with Image.open(folder / "cases" / case["mask"]) as image:
                mask = np.asarray(image.resize((x.shape[2], x.shape[1]), Image.Resampling.NEAREST)) > 0
            found = explain(network, x[None], classes=LABELS.index("tumour"), layers=TARGET_LAYER)[0]
            values = {"gradcam": found.map} | controls.all_controls(x[None], found.raw.shape[1:], len(groups))
            for name in MAPS:
                array = values[name].numpy()
                rows[name].append([float(getattr(localisation, key)(array, mask[None]).values[0]) for key in MEASURES])
            groups.append(case["group"])
        say(f"{NAME}: maps of {folder.name}, {len(cases)} tiles")
    return {
        name: {
            key: _mean(np.array([row[column] for row in every]), groups).as_dict()
            for column, key in enumerate(MEASURES)
        }
        for name, every in rows.items()
    }


def _mean(values: npt.NDArray[np.float64], groups: Sequence[str]) -> Interval:
    kept = np.isfinite(values)
    who = [group for group, keep in zip(groups, kept.tolist(), strict=True) if keep]
    return bootstrap(lambda a, _: float(np.asarray(a, float).mean()), values[kept], values[kept], who)


def _card(figures: dict[str, Any], tiles: Sequence[Tile], recipe: object) -> Card:
    def stated(row: dict[str, float]) -> str:
        return f"{row['value']:.2f} ({row['low']:.2f}-{row['high']:.2f}, n = {row['n']} in {row['groups']} patches)"

    results: dict[str, Interval | str] = {
        name: stated(row) for name, row in figures.items() if isinstance(row, dict) and "value" in row
    }
    for kind in MAPS:
        for key in MEASURES:
            results[f"{key} of {kind}"] = stated(figures["maps"][kind][key])
    pictures = {tile.picture for tile in tiles}
    return Card(
        name=NAME,
        version=VERSION,
        summary="Tumour in tiles of haematoxylin and eosin stained tissue (lymph node, oral cavity).",
        data=f"{len(tiles)} tiles of 128 pixels from {len(pictures)} patches: {SOURCE}. A tile with a quarter of "
        "tumour or more is tumour, with at most a hundredth is clean, others are left out.",
        split=f"{figures['folds']} folds of whole patches for the figures; the weights saw all patches.",
        training=f"EfficientNet-Lite0 from ImageNet weights, early stages frozen. {recipe}",
        results=results,
        evaluation="Held-out tiles of all folds; intervals by bootstrap over patches. Maps: Grad-CAM on held-out tiles "
        "with 25 to 75 % tumour, beside a random map on the same grid and a Gaussian about the centre.",
        limits=(
            "Twenty-six patches of two organs; those of OCDC are of one specimen, and whether those of CAMELYON share "
            "slides is not known. Intervals over patches are too narrow by as much.",
            f"Micrometres per pixel are not stated by the data; {SLIDE.mpp} is taken from the size of lymphocytes.",
            "The trust gate has no thresholds for it: no map of it is ever more than limited.",
            "A slide is called after the mean odds of its tiles: a few very sure tiles decide. No slide with a known "
            "diagnosis was tested.",
            "Other stains, scanners and organs were not tested; a tile of fat, pen or glass gets a class all the same.",
        ),
        reproduce=f"medxai train {NAME} --data $MEDXAI_DATA --out bundles",
        licence="CC-BY-4.0",
        references=(SOURCE,),
    )
