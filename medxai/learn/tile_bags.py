"""Attention over bags of tiles: trained on whether a bag holds tumour, measured on bags of patches it never saw.

Patches are too few and too full of tumour to be slides, so a bag stands for one: tiles of one data set, either all
clean or with a few of tumour among clean ones. Training is told of the bag alone, never of its tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp
from torch import nn
from torch.nn import functional

from medxai.explain import explain
from medxai.learn.metrics import Interval
from medxai.networks.efficientnet_lite import TARGET_LAYER
from medxai.networks.gated_attention import GatedAttention
from medxai.predict.slide_pooling import pooled_features
from medxai.study import FloatArray
from medxai.trust.ranks import area_under_roc, rank_correlation

Ints = npt.NDArray[np.int64]
#: Names of what `measure` finds, in order; the first four are of bags, the others of tiles within bags with tumour.
MEASURES = (
    "bag_auroc_attention",
    "bag_auroc_lse",
    "bag_auroc_mean",
    "bag_auroc_max",
    "bag_balanced_accuracy_attention",
    "bag_balanced_accuracy_lse",
    "tile_auroc_attention",
    "tile_auroc_evidence",
    "attention_against_evidence",
)


@dataclass(frozen=True)
class BagRecipe:
    """How attention is trained.

    Attributes:
        size: tiles of a bag.
        most_tumour: in a bag with tumour; at least one.
        hidden: rows of the attention.
        steps: of AdamW.
        bags: of a step.
        rate: peak of the cosine schedule.
        decay: of weights.
        dropout: of features.
        seed: of everything.
    """

    size: int = 12
    most_tumour: int = 4
    hidden: int = 64
    steps: int = 400
    bags: int = 16
    rate: float = 1e-3
    decay: float = 0.05
    dropout: float = 0.5
    seed: int = 51


@dataclass(frozen=True, eq=False)
class Pool:
    """Tiles that bags are drawn from.

    Attributes:
        features: ``[n, f]`` of the tile network.
        logits: ``[n, 2]`` of it.
        evidence: ``[n]`` mean positive evidence for tumour.
        labels: ``[n]`` 1 for tumour; training uses them to draw bags and for nothing else.
        sets: data set of each tile.
        patches: patch of each tile.
    """

    features: FloatArray
    logits: FloatArray
    evidence: FloatArray
    labels: Ints
    sets: Sequence[str]
    patches: Sequence[str]


def pool_of(
    network: nn.Module, images: FloatArray, labels: Sequence[int], sets: Sequence[str], patches: Sequence[str]
) -> Pool:
    """Run tiles through a network of tiles: features before its last layer, logits, Grad-CAM for tumour.

    Args:
        network: in eval mode.
        images: ``[n, 3, h, w]`` as prepared for it.
        labels: 1 for tumour.
        sets: data set of each tile.
        patches: patch of each tile.
    """
    parts: list[tuple[FloatArray, ...]] = []
    for start in range(0, len(images), 32):
        with pooled_features(network) as features:
            found = explain(network, torch.from_numpy(images[start : start + 32]), classes=1, layers=TARGET_LAYER)
        each = found.get("gradcam", 1).raw.clamp_min(0).mean((1, 2))
        parts.append((features[0].numpy(), found.logits.numpy(), each.numpy()))
    pooled, logits, evidence = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Pool(pooled, logits, evidence, np.asarray(labels, np.int64), sets, patches)


def draw_bags(pool: Pool, tiles: Ints, count: int, how: BagRecipe, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Draw bags ``[count, size]`` of positions in the pool, and whether each holds tumour ``[count]``, half and half.

    Tiles of a bag are of one data set and differ, unless the clean ones of the set are too few.

    Args:
        pool: of tiles.
        tiles: positions that may be drawn; some may be named more than once.
        count: bags.
        how: size and share of tumour.
        random: of the draws.

    Raises:
        ValueError: no data set has both clean tiles and tiles with tumour.
    """
    sets, labels = np.asarray(pool.sets)[tiles], pool.labels[tiles]
    usable = [
        (tiles[(sets == name) & (labels == 0)], tiles[(sets == name) & (labels == 1)]) for name in np.unique(sets)
    ]
    usable = [pair for pair in usable if len(pair[0]) and len(pair[1])]
    if not usable:
        msg = "no data set has both clean tiles and tiles with tumour"
        raise ValueError(msg)
    bags = np.empty((count, how.size), np.int64)
    truth = np.arange(count, dtype=np.int64) % 2
    for number in range(count):
        clean, tumour = usable[random.integers(len(usable))]
        some = int(random.integers(1, how.most_tumour + 1)) * int(truth[number])
        rest = how.size - some
        chosen = [random.choice(clean, rest, replace=rest > len(clean)), random.choice(tumour, some)]
        bags[number] = random.permutation(np.concatenate(chosen))
    return bags, truth


def train_attention(pool: Pool, tiles: Ints, how: BagRecipe) -> GatedAttention:
    """Train on bags of these tiles and return the network in eval mode; the same seed gives the same weights.

    Args:
        pool: of tiles.
        tiles: positions that bags are drawn from.
        how: recipe.
    """
    random = np.random.default_rng(how.seed)
    torch.manual_seed(how.seed)
    network = GatedAttention(pool.features.shape[1], how.hidden)
    features = torch.from_numpy(pool.features)
    network.centre.copy_(features[tiles].mean(0))
    network.scale.copy_(1 / features[tiles].std(0).clamp_min(1e-3))
    nn.init.normal_(network.weigh.weight, std=1e-2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=how.rate, weight_decay=how.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)
    network.train()
    for _ in range(how.steps):
        bags, truth = draw_bags(pool, tiles, how.bags, how, random)
        x = features[torch.from_numpy(bags)] - network.centre
        logits, _ = network(functional.dropout(x, how.dropout) + network.centre)
        loss = functional.cross_entropy(logits, torch.from_numpy(truth))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.requires_grad_(False).eval()


def measure(pool: Pool, tiles: Ints, network: GatedAttention, count: int, how: BagRecipe, seed: int) -> FloatArray:
    """Measure attention on bags of these tiles ``[len(MEASURES)]``.

    Args:
        pool: of tiles, none of a patch that the networks saw.
        tiles: positions that bags are drawn from.
        network: trained.
        count: bags.
        how: size of bags.
        seed: of the draws.
    """
    bags, truth = draw_bags(pool, tiles, count, how, np.random.default_rng(seed))
    with torch.inference_mode():
        scores, attention = network(torch.from_numpy(pool.features[bags]))
    weights = attention.numpy()
    margin = (scores[:, 1] - scores[:, 0]).numpy()
    each = pool.logits[bags]
    fused = {
        "lse": np.diff(logsumexp(each, axis=1), axis=1)[:, 0],
        "mean": np.diff(each.mean(1), axis=1)[:, 0],
        "max": np.diff(each, axis=2)[..., 0].max(1),
    }
    has = truth == 1
    tumour, evidence = pool.labels[bags[has]] == 1, pool.evidence[bags[has]]
    found = [area_under_roc(has, margin), *(area_under_roc(has, fused[name]) for name in ("lse", "mean", "max"))]
    found += [
        float(np.mean([((m > 0) == has)[has == k].mean() for k in (False, True)])) for m in (margin, fused["lse"])
    ]
    pairs = list(zip(tumour, weights[has], evidence, strict=True))
    found.append(float(np.mean([area_under_roc(t, a) for t, a, _ in pairs])))
    found.append(float(np.mean([area_under_roc(t, e) for t, _, e in pairs])))
    found.append(float(np.nanmean([rank_correlation(a, e) for _, a, e in pairs])))
    return np.array(found, np.float32)


def cross_measure(
    folds: Sequence[tuple[Pool, Ints, Ints]], how: BagRecipe, say: Callable[[str], None], resamples: int = 200
) -> Mapping[str, Interval]:
    """Train on the seen tiles of every fold, measure on the others; the mean over folds with intervals over patches.

    Args:
        folds: pool by that fold's network, positions it saw, positions it did not.
        how: recipe.
        say: told after every fold.
        resamples: of whole held-out patches, from each of which bags are drawn anew.
    """
    points, spread, patches = [], [], 0
    for number, (pool, seen, held_out) in enumerate(folds):
        network = train_attention(pool, seen, how)
        points.append(measure(pool, held_out, network, 1000, how, number))
        names = np.asarray(pool.patches)[held_out]
        groups = [held_out[names == name] for name in np.unique(names)]
        patches += len(groups)
        random = np.random.default_rng([how.seed, number])
        rows: list[FloatArray] = []
        while len(rows) < resamples:
            chosen = np.concatenate([groups[g] for g in random.integers(0, len(groups), len(groups))])
            try:
                rows.append(measure(pool, chosen, network, 200, how, int(random.integers(2**31))))
            except ValueError:
                continue  # a resample without clean tiles, or without tumour
        spread.append(np.array(rows))
        say(f"attention: fold {number}, {len(groups)} patches held out")
    mean, draws = np.mean(points, axis=0), np.mean(spread, axis=0)
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    return {
        name: Interval(float(mean[n]), float(low[n]), float(high[n]), 1000 * len(folds), patches)
        for n, name in enumerate(MEASURES)
    }
