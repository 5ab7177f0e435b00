"""Networks for tiles with or without tumour, one for each fold of whole pictures, with what they were not shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medxai.files import write_text
from medxai.learn.breast_us import SIZE, SPEC
from medxai.learn.card import Card
from medxai.learn.cohort_table import write_table
from medxai.learn.metrics import Interval, auroc, balanced_accuracy, bootstrap
from medxai.learn.splits import grouped_folds
from medxai.learn.tiles import Tile, store_tiles
from medxai.learn.transfer import FloatArray, Transfer, early_features, logits_of, train_tail
from medxai.networks.efficientnet_lite import TARGET_LAYER
from medxai.predict.bundle_spec import MedxaiBlock
from medxai.predict.write import write_bundle
from medxai.prepare.prepare import prepare
from medxai.study import Volume, image_affine

LABELS = ("clean", "tumour")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """What a fold's network is asked.

    Attributes:
        name: of the bundles.
        modality: DICOM modality of the pictures.
        body_part: DICOM body part.
        data: origin and licence of the pictures.
        licence: SPDX name of the weights' licence.
        how: training.
        folds: of whole pictures.
    """

    name: str
    modality: str
    body_part: str
    data: str
    licence: str
    how: Transfer
    folds: int


def cross_validate(
    question: Question, tiles: Sequence[Tile], work: Path, say: Say, sets: Mapping[str, str] | None = None
) -> list[Path]:
    """Train a network per fold and store it as a bundle, with a table of the tiles with tumour it never saw.

    Below ``work / question.name``: ``fold<k>/bundle_fold<k>``, ``fold<k>/cases``, ``fold<k>/labels.csv`` and
    ``metrics.json``. What exists is not made again.

    Args:
        question: what is learnt.
        tiles: of all pictures.
        work: folder for results.
        say: told how far it is.
        sets: picture -> name of its data set, for results set by set.

    Returns:
        The folders of the folds.
    """
    folder = work / question.name
    images = np.stack([prepared(tile, question.modality) for tile in tiles])
    labels = np.array([tile.label for tile in tiles])
    groups = [tile.picture for tile in tiles]
    fold = grouped_folds(labels.tolist(), groups, question.folds, question.how.recipe.seed)
    say(f"{question.name}: {len(tiles)} tiles of {len(set(groups))} pictures, {int(labels.sum())} with tumour")
    logits = np.zeros((len(tiles), 2), dtype=np.float32)
    features = early_features(images, question.how)
    for number in range(question.folds):
        mine = folder / f"fold{number}"
        seen = np.flatnonzero(fold != number)
        checkpoint = mine / f"{question.name}_{number}.ckpt"
        network = train_tail(features[:, seen], labels[seen].tolist(), question.how, checkpoint, say)
        held_out = np.flatnonzero(fold == number)
        logits[held_out] = logits_of(network, images[held_out])
        rows = store_tiles([tiles[i] for i in held_out.tolist()], LABELS, mine / "cases")
        write_table(mine / "labels.csv", rows)
        spec = block(question)
        card = _card(question, number)
        write_bundle(
            mine / f"{question.name}_fold{number}",
            network_def={
                "_target_": "medxai.networks.efficientnet_lite.EfficientNetLite0",
                "num_classes": 2,
                "image_size": SIZE,
            },
            network=network,
            metadata=card.metadata(spec, task="Tiles with or without tumour"),
            card=card.markdown(spec),
            licence=f"{question.licence}\n",
        )
        say(f"{question.name}: fold {number}, {len(held_out)} tiles held out, {len(rows)} cases")
    measured = {name: value.as_dict() for name, value in _results(labels, logits, groups, sets or {}).items()}
    write_text(folder / "metrics.json", json.dumps(measured, indent=2) + "\n")
    say(f"{question.name}: {measured}")
    return [folder / f"fold{number}" for number in range(question.folds)]


def prepared(tile: Tile, modality: str) -> FloatArray:
    """A tile as the network sees it, ``[3, 224, 224]``."""
    return prepare(picture_of(tile, modality), SPEC).pixels


def picture_of(tile: Tile, modality: str) -> Volume:
    """A tile as a picture without a scale."""
    pixels = np.ascontiguousarray(tile.pixels.transpose(2, 0, 1), dtype=np.float32)
    return Volume(pixels, "HW", image_affine(), modality, calibrated=False)


def _results(
    labels: np.ndarray, logits: np.ndarray, groups: Sequence[str], sets: Mapping[str, str]
) -> dict[str, Interval]:
    """Pooled and for each data set; intervals resample whole pictures."""
    names = np.array([sets.get(group, "") for group in groups])
    found = {}
    for name in ["", *sorted(set(sets.values()))]:
        kept = names == name if name else np.ones(len(labels), bool)
        if not kept.any():
            continue
        who = [group for group, keep in zip(groups, kept.tolist(), strict=True) if keep]
        for title, metric in (("auroc", auroc(1)), ("balanced_accuracy", balanced_accuracy)):
            found[f"{title}{f' {name}' if name else ''}"] = bootstrap(metric, labels[kept], logits[kept], who)
    return found


def block(question: Question) -> MedxaiBlock:
    """What bundles of the question say of themselves."""
    return MedxaiBlock(
        labels=LABELS,
        modalities=(question.modality,),
        body_parts=(question.body_part,),
        preparation=SPEC,
        target_layer=TARGET_LAYER,
        activation="softmax",
        positive=("tumour",),
        licence=question.licence,
    )


def _card(question: Question, number: int) -> Card:
    return Card(
        name=f"{question.name}_fold{number}",
        version="0.1.0",
        summary="Tile with or without tumour; a fold, for the validation of explanations.",
        data=question.data,
        split=f"Whole pictures; this is fold {number} of {question.folds}.",
        training=f"EfficientNet-Lite0 from ImageNet weights, early stages frozen. {question.how.recipe}",
        results={},
        evaluation="See metrics.json beside the folds.",
        limits=("Not shipped.",),
        reproduce=f"python -m medxai.learn.cohorts {question.name} --data $MEDXAI_DATA --work .training/cohorts",
        licence=question.licence,
    )
