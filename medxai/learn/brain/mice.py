"""Genotypes of mice from their structural connectomes: the structural branch on real, labelled matrices.

32 mice of four strains, 166 regions a hemisphere, fibre counts (graspologic's Duke mice, MIT). Links within the left
and within the right hemisphere are averaged, for two cores. Each mouse is predicted by a network that never saw it.
Synergistic maps of the mice that were recognised are compared with what a table of edges shows: the F statistic of
every edge between strains. Neighbouring edges are alike in both, so that the p value is of shuffled regions (Mantel
1967), which keeps that.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import MedxaiError
from medxai.files import atomic_path
from medxai.learn.pieces import piece
from medxai.prepare.brain.scaling import Scaling
from medxai.prepare.brain.subject import SubjectFeatures

Say = Callable[[str], None]
#: Shuffles of a permutation test.
SHUFFLES = 2000


@dataclass(frozen=True)
class MouseRecipe:
    """Size and schedule, the same for every mouse; no mouse chooses an epoch."""

    channels: int = 32
    width: int = 32
    depth: int = 1
    epochs: int = 10
    batch_size: int = 4
    rate: float = 1e-3
    decay: float = 1e-3
    noise: float = 0.1


def read_mice(folder: Path) -> tuple[list[SubjectFeatures], list[str]]:
    """Connectomes, logarithms of one plus the counts, and genotypes.

    Raises:
        MedxaiError: the folder holds no ``participants.csv``, or an edge list is malformed.
    """
    table, atlas = folder / "participants.csv", folder / "atlas.csv"
    if not table.exists() or not atlas.exists():
        raise MedxaiError(f"{folder.name} holds no participants.csv and atlas.csv")
    with atlas.open() as stream:
        regions = tuple(f"{row['Structure']}_{row['ROI']}" for row in csv.DictReader(stream))
    subjects, genotypes = [], []
    with table.open() as stream:
        for row in csv.DictReader(stream):
            name = row["participant_id"]
            edges = np.loadtxt(folder / f"{name}_ses-1_dti.edgelist", ndmin=2)
            half = len(regions)
            size = 2 * half  # the atlas names one hemisphere
            if edges.shape[1] != 3 or edges[:, :2].max() >= size:
                raise MedxaiError(f"{name}: edges are lines of two regions below {size} and a weight")
            matrix = np.zeros((size, size))
            matrix[edges[:, 0].astype(int), edges[:, 1].astype(int)] = edges[:, 2]
            both = np.log1p(np.maximum(matrix, matrix.T))
            counts = ((both[:half, :half] + both[half:, half:]) / 2).astype(np.float32)
            np.fill_diagonal(counts, 0)
            subjects.append(SubjectFeatures(name, None, None, None, None, counts, fa_regions=regions))
            genotypes.append(row["genotype"])
    return subjects, genotypes


def mice(folder: Path, work: Path, say: Say, recipe: MouseRecipe | None = None) -> dict[str, Any]:
    """Leave each mouse out, one piece a mouse; resumable.

    Returns:
        Accuracy with its permutation p (genotypes shuffled against the predictions), recall by genotype, and Spearman's
        correlation of maps and F statistics with Mantel's p.
    """
    recipe = recipe or MouseRecipe()
    subjects, genotypes = read_mice(folder)
    names = sorted(set(genotypes))
    labels = np.array([names.index(genotype) for genotype in genotypes])
    said, maps = [], []
    for index in range(len(subjects)):
        target = work / "mice" / subjects[index].subject

        def do(index: int = index, target: Path = target) -> dict[str, Any]:
            return _leave_out(subjects, labels, index, recipe, target)

        found = piece(target, asdict(recipe), do, say)
        if found is None:
            raise MedxaiError(f"another process is at {target.name}; run again when it has ended")
        said.append(int(found["predicted"]))
        maps.append(np.load(target / "map.npy"))
    predicted = np.array(said)
    right = predicted == labels
    statistic = edge_statistics(np.stack([s.fa for s in subjects if s.fa is not None]), labels)
    found = {
        "genotypes": names,
        "n": len(labels),
        "accuracy": float(right.mean()),
        "p": permutation_p(predicted, labels),
        "recall": {name: float(right[labels == number].mean()) for number, name in enumerate(names)},
        "predicted": [names[p] for p in said],
        "linear_accuracy": linear_accuracy(subjects, labels),
    }
    if right.any():
        found["edges"] = mantel(np.mean([m for m, ok in zip(maps, right, strict=True) if ok], axis=0), statistic)
    return found


def _leave_out(
    subjects: list[SubjectFeatures], labels: npt.NDArray[np.int64], index: int, recipe: MouseRecipe, target: Path
) -> dict[str, Any]:
    import torch

    from medxai.explain.connectivity_map import symmetric
    from medxai.explain.synergistic import SynergisticOptions, synergistic_maps
    from medxai.learn.brain.train import Cases, FusionRecipe, fit_fusion
    from medxai.networks.hierarchical_fusion import HierarchicalFusion

    others = [i for i in range(len(subjects)) if i != index]
    scaling = Scaling.fit([subjects[i] for i in others], by="array")  # by element a convolution is lost among edges
    inputs, present = scaling.inputs(subjects)
    cases = Cases(inputs, present, torch.from_numpy(labels))
    torch.manual_seed(index)
    network = HierarchicalFusion(
        int(labels.max()) + 1, ("fa",), recipe.channels, recipe.width, recipe.depth, heads=4, strides=(2, 2, 2)
    )
    schedule = FusionRecipe(
        recipe.epochs, recipe.batch_size, recipe.rate, recipe.decay, missing=0.0, noise=recipe.noise, seed=index
    )
    fit_fusion(network, cases.some(others), None, schedule)
    mine = {"fa": inputs["fa"][index : index + 1]}
    with torch.inference_mode():
        predicted = int(network(mine).argmax())
    found = synergistic_maps(network, mine, predicted, SynergisticOptions())
    with atomic_path(target / "map.npy") as temporary:
        np.save(temporary, symmetric(found.maps["fa"][..., 0].numpy()).astype(np.float32))
    return {"predicted": predicted, "true": int(labels[index])}


def linear_accuracy(subjects: list[SubjectFeatures], labels: npt.NDArray[np.int64]) -> float:
    """Accuracy of a ridge-penalised logistic regression on all edges, each mouse left out: the bar."""
    from sklearn.linear_model import LogisticRegression

    matrices = np.stack([s.fa for s in subjects if s.fa is not None])
    edges = matrices[:, *np.triu_indices(matrices.shape[1], 1)]
    right = 0
    for index in range(len(labels)):
        others = np.arange(len(labels)) != index
        mean, sd = edges[others].mean(0), edges[others].std(0)
        scaled = (edges - mean) / np.maximum(sd, 0.1 * np.median(sd[sd > 0])) / edges.shape[1] ** 0.5
        model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=200).fit(scaled[others], labels[others])
        right += int(model.predict(scaled[index : index + 1])[0] == labels[index])
    return right / len(labels)


def edge_statistics(matrices: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """F statistic ``[M, M]`` of a one-way analysis of variance of every edge; 0 where nothing varies."""
    from sklearn.feature_selection import f_classif

    size = matrices.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Features .* are constant")
        values, _ = f_classif(matrices.reshape(len(matrices), -1), labels)
    statistic: npt.NDArray[np.float64] = np.nan_to_num(values, nan=0.0, posinf=0.0).reshape(size, size)
    return statistic


def permutation_p(predicted: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], seed: int = 0) -> float:
    """Share of shuffled labels that the predictions meet as often, themselves counted."""
    random = np.random.default_rng(seed)
    mine = (predicted == labels).sum()
    as_many = sum((predicted == random.permutation(labels)).sum() >= mine for _ in range(SHUFFLES))
    return float((1 + as_many) / (1 + SHUFFLES))


def mantel(first: npt.NDArray[Any], second: npt.NDArray[Any], shuffles: int = 500, seed: int = 0) -> dict[str, float]:
    """Spearman's correlation of the edges of two symmetric matrices; p, two-sided, from shuffled regions (Mantel 1967).

    Edges that are 0 in the second for every order of regions are edges all the same: absent ones count too.
    """
    from scipy.stats import rankdata

    size = len(first)
    upper = np.triu_indices(size, 1)

    def ranked(matrix: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        ranks = np.zeros((size, size))
        ranks[upper] = rankdata(matrix[upper])
        ranks[upper] -= ranks[upper].mean()
        return ranks + ranks.T

    a, b = ranked(first), ranked(second)
    scale = np.sqrt((a**2).sum() * (b**2).sum())
    rho = float((a * b).sum() / scale) if scale else float("nan")
    random = np.random.default_rng(seed)
    as_large = 0
    for _ in range(shuffles):
        order = random.permutation(size)
        as_large += abs(float((a[order][:, order] * b).sum() / scale)) >= abs(rho)
    return {"spearman": rho, "p": (1 + as_large) / (1 + shuffles), "shuffles": shuffles}
