"""Concept activation maps and how far concepts are where and what they should be: CGIM, CEM, CLM.

Definitions of Aysel, Cai and Prugel-Bennett 2025 (arXiv:2501.19271). Concept scores are ``u = C f`` with the bank
``C [L, d]`` and pooled features ``f = mean_p E``; class scores ``theta^T u`` with ``theta [L, K]``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medxai.trust.scores import Scores, scored

Matrix = npt.NDArray[np.float64]


def concept_maps(features: Tensor, bank: Tensor) -> Tensor:
    """Maps ``[B, L, *s]``: ``F_j(p) = (1/d) sum_k C_jk E_k(p)``; ``d`` times their mean is the concept's score.

    Args:
        features: ``[B, d, *s]`` before the global average pooling.
        bank: ``[L, d]``.
    """
    flat = features.flatten(2)
    return (bank.to(flat) @ flat / bank.shape[1]).view(len(features), len(bank), *features.shape[2:])


def concept_scores(features: Tensor, bank: Tensor) -> Tensor:
    """``u [B, L]`` of features ``[B, d, *s]``."""
    return features.flatten(2).mean(-1) @ bank.to(features).T


def concept_bank(features: npt.NDArray[np.floating], present: npt.NDArray[np.bool_], seed: int = 0) -> Matrix:
    """Unit normals ``[L, d]`` of linear support-vector machines, one for each concept, on balanced halves.

    Args:
        features: ``[N, d]`` pooled.
        present: ``[N, L]``.
        seed: of the draw that balances.

    Raises:
        ValueError: a concept is everywhere or nowhere.
    """
    from sklearn.svm import LinearSVC

    source = np.random.default_rng(seed)
    rows = []
    for concept in range(present.shape[1]):
        here, absent = np.flatnonzero(present[:, concept]), np.flatnonzero(~present[:, concept])
        size = min(len(here), len(absent))
        if not size:
            msg = f"concept {concept} is in {'no' if not len(here) else 'every'} image: nothing to tell it from"
            raise ValueError(msg)
        chosen = np.concatenate([source.permutation(here)[:size], source.permutation(absent)[:size]])
        fitted = LinearSVC(C=0.01, random_state=seed).fit(features[chosen], present[chosen, concept])
        rows.append(fitted.coef_[0] / np.linalg.norm(fitted.coef_[0]))
    return np.stack(rows)


def cgim(theta: Matrix, mean_scores: Matrix, frequency: Matrix) -> dict[str, Scores]:
    """Concept global importance: cosine over classes of what the model weighs with how often the concept occurs.

    Args:
        theta: ``[L, K]`` weights of the class scores.
        mean_scores: ``[L, K]`` mean concept score over the rightly decided images of each class.
        frequency: ``[L, K]`` share of a class's images that show the concept.

    Returns:
        One value for each concept, for ``weights``, ``scores`` and their ``product``.
    """
    parts = {"weights": theta, "scores": mean_scores, "product": theta * mean_scores}
    return {name: _cosine(f"cgim_{name}", part, frequency) for name, part in parts.items()}


def _cosine(name: str, a: Matrix, b: Matrix) -> Scores:
    norm = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    reasons = tuple("" if n > 0 else "all values are zero" for n in norm)
    return scored(name, (a * b).sum(1) / np.maximum(norm, 1e-300), reasons)


def cem(contributions: Matrix, present: npt.NDArray[np.bool_], top: int) -> tuple[Scores, Matrix]:
    """Concept existence: share of the most important concepts that are in the image.

    Args:
        contributions: ``[B, L]`` of each concept to the decided class, ``theta_jk u_j``.
        present: ``[B, L]`` which concepts the image shows.
        top: how many concepts.

    Returns:
        The measure, and ``[B]`` what chance gives.
    """
    order = np.argsort(-contributions, axis=1, kind="stable")[:, :top]
    hits = np.take_along_axis(present, order, axis=1).mean(1)
    return scored(f"cem_{top}", hits), present.mean(1)


def clm(
    maps: Sequence[npt.NDArray[np.floating]],
    contributions: Matrix,
    structures: Sequence[Sequence[npt.NDArray[np.bool_] | None]],
    top: int,
    *,
    inside: float = 0.5,
) -> tuple[Scores, Matrix]:
    """Concept location: share of the most important present concepts whose strongest voxels lie in the structure.

    As many voxels as the structure has; a hit when at least `inside` of them lie in it.

    Args:
        maps: for each image ``[L, *S]`` concept maps on the grid of the structures.
        contributions: ``[B, L]``.
        structures: for each image and concept its mask ``[*S]``, None where it is not in the image.
        top: how many concepts.
        inside: share of the strongest voxels.

    Returns:
        The measure, and ``[B]`` the mean share of the image that the structures take up, which is what chance gives.

    Raises:
        ValueError: a structure lies on another grid than the maps.
    """
    values, reasons, chance = [], [], []
    for image, (concepts, known) in enumerate(zip(maps, structures, strict=True)):
        order = np.argsort(-contributions[image], kind="stable")[:top]
        hits, sizes = [], []
        for concept in order:
            mask = known[int(concept)]
            if mask is None or not mask.any():
                continue
            if mask.shape != concepts.shape[1:]:
                msg = f"maps {list(concepts.shape[1:])} and structures {list(mask.shape)} lie on different grids"
                raise ValueError(msg)
            count = int(mask.sum())
            strongest = np.argsort(-concepts[int(concept)].ravel(), kind="stable")[:count]
            hits.append(mask.ravel()[strongest].mean() >= inside)
            sizes.append(mask.mean())
        values.append(float(np.mean(hits)) if hits else float("nan"))
        chance.append(float(np.mean(sizes)) if sizes else float("nan"))
        reasons.append("" if hits else "none of the most important concepts is in the image")
    return scored(f"clm_{top}", values, reasons), np.array(chance)


def contributions(scores: Tensor, theta: Tensor, classes: Tensor) -> Matrix:
    """``theta_jk u_j`` ``[B, L]`` of concept scores ``[B, L]`` for classes ``[B]``."""
    weights = theta.to(scores).T[classes.to(scores.device)]
    found: Matrix = torch.as_tensor(scores * weights).detach().double().cpu().numpy()
    return found
