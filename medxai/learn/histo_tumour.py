"""The shipped bundle of tiles with or without tumour: folds of whole patches for figures, all patches for weights.

Besides the class, the place is measured: Grad-CAM of the fold's network on held-out tiles that are partly tumour
against their masks, beside a random map and a Gaussian about the centre on the same tiles.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import save

from medxai.errors import SettingsError
from medxai.files import write_bytes, write_text
from medxai.ingest.slides.stain import estimate_stains
from medxai.ingest.slides.whitening import estimate_spread
from medxai.learn import histology
from medxai.learn.breast_us import SPEC
from medxai.learn.card import Card
from medxai.learn.licence import creative_commons
from medxai.learn.metrics import Interval, bootstrap
from medxai.learn.splits import grouped_folds
from medxai.learn.tile_bags import BagRecipe, cross_measure, pool_of, train_attention
from medxai.learn.tile_folds import LABELS, Question, block, cross_validate, prepared
from medxai.learn.tiles import Tile
from medxai.learn.transfer import early_features, train_tail
from medxai.networks.efficientnet_lite import TARGET_LAYER
from medxai.predict.build import build_network
from medxai.predict.bundle_spec import MedxaiBlock, SlideColours, SlideSpec
from medxai.predict.slide_pooling import WEIGHTS
from medxai.predict.write import write_bundle
from medxai.study import FloatArray

NAME, VERSION = "histo_tumour", "1.1.0"
#: The patches do not state their resolution; lymphocytes, 7 micrometres wide, have about ten pixels in both sets.
SLIDE = SlideSpec(mpp=0.7, tile=histology.CUT.size)
#: How attention over tiles is trained.
BAGS = BagRecipe()
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
    images = np.stack([prepared(tile, question.modality) for tile in tiles])
    figures = json.loads(found.read_text()) if found.exists() else {}
    if figures.get("folds") != n_folds:
        figures = json.loads(metrics.read_text()) | {"folds": n_folds, "maps": measure(fold_folders, say)}
    if "attention" not in figures:
        figures["attention"] = measure_attention(fold_folders, question, tiles, images, origin, say)
    write_text(found, json.dumps(figures, indent=1) + "\n")
    features = early_features(images, question.how)
    labels = [tile.label for tile in tiles]
    network = train_tail(features, labels, question.how, work / NAME / "final.ckpt", say)
    slide = SLIDE.model_copy(update={"attention": True, "colours": colours_of(tiles)})
    spec: MedxaiBlock = block(question).model_copy(update={"slide": slide, "fusion": "lse"})
    card = _card(figures, tiles, question.how.recipe)
    pool = pool_of(network, images, labels, *_origins(tiles, origin))
    attention = train_attention(pool, np.arange(len(tiles)), BAGS)
    path = write_bundle(
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
    write_bytes(path / WEIGHTS, save({name: tensor.contiguous() for name, tensor in attention.state_dict().items()}))
    return path


def measure_attention(
    folders: Sequence[Path], question: Question, tiles: Sequence[Tile], images: FloatArray, origin: Mapping[str, str],
    say: Say,
) -> dict[str, dict[str, float | int]]:  # fmt: skip
    """Attention over bags of tiles by the fold networks, see `medxai.learn.tile_bags`.

    Args:
        folders: of folds, in order.
        question: that the folds were trained for.
        tiles: all.
        images: of them, as prepared.
        origin: data set of each picture.
        say: told after every fold.
    """
    labels = [tile.label for tile in tiles]
    sets, patches = _origins(tiles, origin)
    fold = grouped_folds(labels, patches, question.folds, question.how.recipe.seed)
    pools = []
    for number, folder in enumerate(folders):
        network = build_network(_bundle_of(folder))
        pool = pool_of(network, images, labels, sets, patches)
        pools.append((pool, np.flatnonzero(fold != number), np.flatnonzero(fold == number)))
    return {name: found.as_dict() for name, found in cross_measure(pools, BAGS, say).items()}


def colours_of(tiles: Sequence[Tile]) -> SlideColours:
    """Stains and spread of colours over all training tiles, to which slides can be brought.

    Args:
        tiles: RGB.
    """
    pixels = np.concatenate([tile.pixels.reshape(-1, 3)[::16] for tile in tiles])
    stains, spread = estimate_stains(pixels), estimate_spread(pixels)
    return SlideColours.model_validate({
        "vectors": np.round(stains.vectors.T, 5).tolist(),
        "strongest": np.round(stains.strongest, 5).tolist(),
        "variances": np.round(spread.variances, 7).tolist(),
        "directions": np.round(spread.directions.T, 7).tolist(),
        "white": stains.white.tolist(),
    })  # fmt: skip


def _origins(tiles: Sequence[Tile], origin: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Data set and patch of every tile."""
    return [origin[tile.picture] for tile in tiles], [tile.picture for tile in tiles]


def _bundle_of(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if (path / "configs").is_dir())


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
    from medxai.prepare.prepare import prepare
    from medxai.trust import controls, localisation

    rows: dict[str, list[list[float]]] = {name: [] for name in MAPS}
    groups: list[str] = []
    for folder in folders:
        network = build_network(_bundle_of(folder))
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
    for name, row in figures["attention"].items():
        about = f"bags of {BAGS.size} tiles of {row['groups']} patches"
        results[f"{name} (bags)"] = f"{row['value']:.2f} ({row['low']:.2f}-{row['high']:.2f}, {about})"
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
            "Attention over tiles (--slide-pooling attention) was trained on bags that stand for slides, from features "
            "of tiles that its network had seen; its decisions are poor, as the balanced accuracy of bags shows.",
            "The trust gate tells little of clean tiles, and lets four of ten broken maps of tumour pass: "
            "docs/evidence/trust_gate.md.",
            "A slide is called after the mean odds of its tiles: a few very sure tiles decide. No slide with a known "
            "diagnosis was tested.",
            "Other stains, scanners and organs were not tested; a tile of fat, pen or glass gets a class all the same.",
        ),
        reproduce=f"medxai train {NAME} --data $MEDXAI_DATA --out bundles",
        licence="CC-BY-4.0",
        references=(SOURCE,),
    )
