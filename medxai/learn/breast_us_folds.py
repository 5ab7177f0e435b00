"""Folds of ``breast_us`` as bundles, each with a table of the lesions it never saw."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medxai.files import write_text
from medxai.learn.breast_us import (
    BLOCK,
    LABELS,
    RECIPE,
    SIZE,
    early_features,
    logits_of,
    prepared_images,
    read_cases,
    train_on,
)
from medxai.learn.card import Card
from medxai.learn.cohort_table import CohortRow, write_table
from medxai.learn.metrics import balanced_accuracy, bootstrap
from medxai.learn.splits import grouped_folds
from medxai.networks.efficientnet_lite import EfficientNetLite0
from medxai.predict.write import write_bundle

NETWORK: Mapping[str, Any] = {
    "_target_": "medxai.networks.efficientnet_lite.EfficientNetLite0",
    "num_classes": len(LABELS),
    "image_size": SIZE,
}
#: Folds of the shipped bundle's cross-validation, and how many of them are used here.
FOLDS, USED = 5, 1


def train(data: Path, work: Path, say: Callable[[str], None]) -> list[Path]:
    """Train what is missing of the folds and store bundles and tables below ``work / "breast_us"``.

    Args:
        data: folder with ``us_breast_busi``.
        work: of the cohorts; features and weights of the shipped bundle's training beside it are shared.
        say: told how far it is.

    Returns:
        The folders of the folds.
    """
    from safetensors.torch import load_file, save_file

    cache, folder = work.parent / "breast_us", work / "breast_us"
    cases = read_cases(data)
    images = prepared_images(data, cases, cache)
    fold = grouped_folds(cases.labels, cases.groups, FOLDS, RECIPE.seed)
    labels = np.asarray(cases.labels)
    with (data / "us_breast_busi" / "labels.csv").open(newline="") as stream:
        masks = {row["path"]: row["mask"] for row in csv.DictReader(stream)}
    logits = np.full((len(fold), len(LABELS)), np.nan, dtype=np.float32)
    for number in range(USED):
        weights = cache / f"fold{number}.safetensors"
        if weights.exists():
            network = EfficientNetLite0(len(LABELS), image_size=SIZE).eval()
            network.load_state_dict(load_file(weights))
        else:
            features = early_features(images, cache, say)
            network = train_on(
                np.flatnonzero(fold != number).tolist(), features, cases.labels, f"fold{number}", cache, say
            )
            save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, weights)
        held_out = np.flatnonzero(fold == number)
        logits[held_out] = logits_of(network, images[held_out])
        card = _card(number)
        write_bundle(
            folder / f"fold{number}" / f"breast_us_fold{number}",
            network_def=NETWORK,
            network=network,
            metadata=card.metadata(BLOCK, task="Breast ultrasound classification"),
            card=card.markdown(BLOCK),
            licence="CC-BY-4.0\n",
        )
        mine = [(cases.paths[i], LABELS[cases.labels[i]], cases.groups[i]) for i in held_out.tolist()]
        rows = [CohortRow(path, label, masks[path], group) for path, label, group in mine if label != "normal"]
        write_table(folder / f"fold{number}" / "labels.csv", rows)
        say(f"breast_us: fold {number}, {len(rows)} lesions held out")
    kept = np.flatnonzero(np.isfinite(logits).all(1))
    groups = [cases.groups[i] for i in kept.tolist()]
    measured = {"balanced_accuracy": bootstrap(balanced_accuracy, labels[kept], logits[kept], groups).as_dict()}
    write_text(folder / "metrics.json", json.dumps(measured, indent=2) + "\n")
    say(f"breast_us: {measured}")
    return [folder / f"fold{number}" for number in range(USED)]


def _card(number: int) -> Card:
    return Card(
        name=f"breast_us_fold{number}",
        version="1.0.0",
        summary="Normal, benign or malignant on a breast ultrasound image; a fold, for the validation of explanations.",
        data="BUSI (CC BY 4.0) without the images of this fold.",
        split=f"Groups of near-duplicates; this is fold {number} of {FOLDS}.",
        training="As the shipped bundle breast_us.",
        results={},
        evaluation="See metrics.json beside the folds.",
        limits=("Not shipped.",),
        reproduce="python -m medxai.learn.cohorts breast_us --data $MEDXAI_DATA --work .training/cohorts",
        licence="CC-BY-4.0",
    )
