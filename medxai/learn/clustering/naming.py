"""Clusters named by a few labelled tiles, and the scores of other tiles under those names.

The tiles that name clusters are never scored: matching on the scored tiles themselves would let their labels in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.trust.ranks import area_under_roc

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.floating[Any]]


def name_clusters(clusters: Ints, labels: Ints, k: int, classes: int) -> Ints:
    """Class ``[k]`` of every cluster: the matching that agrees most (Kuhn 1955), left-over clusters by majority.

    A class that no cluster is left for has none; a left-over cluster without tiles gets the most frequent class.

    Args:
        clusters: ``[N]`` of the tiles with labels.
        labels: ``[N]`` class index.
        k: number of clusters.
        classes: number of classes.
    """
    from scipy.optimize import linear_sum_assignment

    counts = np.zeros((k, classes), np.int64)
    np.add.at(counts, (clusters, labels), 1)
    usual = int(np.bincount(labels, minlength=classes).argmax())
    names = np.where(counts.any(1), counts.argmax(1), usual)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    names[rows] = columns
    return names.astype(np.int64)


def class_shares(q: Floats, names: Ints, classes: int) -> Floats:
    """``[N, classes]``: q ``[N, K]`` summed over the clusters of each class."""
    shares = np.zeros((len(q), classes))
    for cluster, label in enumerate(names.tolist()):
        shares[:, label] += q[:, cluster]
    return shares


def scores(labels: Ints, decided: Ints, shares: Floats, clusters: Ints, classes: tuple[str, ...]) -> dict[str, Any]:
    """ACC, the mean sensitivity, NMI, ARI, and by class sensitivity, specificity, PPV, NPV, F1, AUC; None if undefined.

    Args:
        labels: ``[N]`` true class.
        decided: ``[N]`` class of the cluster.
        shares: ``[N, C]``, see `class_shares`; for the AUC, one against the rest.
        clusters: ``[N]`` before naming.
        classes: names.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    by = {name: _of_class(labels == i, decided == i, shares[:, i]) for i, name in enumerate(classes)}
    sensitivities = [row["sensitivity"] for row in by.values() if row["sensitivity"] is not None]
    return {
        "n": len(labels),
        "accuracy": float((labels == decided).mean()),
        "balanced_accuracy": float(np.mean(sensitivities)),
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "classes": by,
    }


def chance(
    naming: tuple[Ints, Ints], test: tuple[Ints, Ints], k: int, classes: int, permutations: int, seed: int
) -> dict[str, float]:
    """Accuracy when clusters have nothing to do with labels: both parts permuted, named and scored anew.

    Args:
        naming: clusters and labels of the tiles that name.
        test: of those that are scored.
        k: number of clusters.
        classes: number of classes.
        permutations: how often.
        seed: of them.

    Returns:
        ``mean`` and ``p95``, the 95th percentile.
    """
    random = np.random.default_rng([seed, 91])
    values = []
    for _ in range(permutations):
        names = name_clusters(random.permutation(naming[0]), naming[1], k, classes)
        values.append(float((names[random.permutation(test[0])] == test[1]).mean()))
    return {"mean": float(np.mean(values)), "p95": float(np.percentile(values, 95))}


def _of_class(truth: npt.NDArray[np.bool_], said: npt.NDArray[np.bool_], share: Floats) -> dict[str, float | None]:
    hit, false = int((truth & said).sum()), int((~truth & said).sum())
    missed, right = int((truth & ~said).sum()), int((~truth & ~said).sum())
    auc = area_under_roc(truth, share)
    return {
        "sensitivity": _ratio(hit, hit + missed),
        "specificity": _ratio(right, right + false),
        "ppv": _ratio(hit, hit + false),
        "npv": _ratio(right, right + missed),
        "f1": _ratio(2 * hit, 2 * hit + false + missed),
        "auc": float(auc) if np.isfinite(auc) else None,
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
