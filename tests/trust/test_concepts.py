"""Concept measures on features with planted concepts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medxai.trust.concepts import cem, cgim, clm, concept_bank, concept_maps, concept_scores, contributions


@pytest.mark.parametrize("shape", [(7, 9), (4, 5, 6)])
def test_maps_add_up_to_the_score(shape: tuple[int, ...]) -> None:
    features, bank = torch.randn(3, 8, *shape), torch.randn(5, 8)
    maps = concept_maps(features, bank)
    assert maps.shape == (3, 5, *shape)
    total = 8 * maps.flatten(2).mean(-1)
    torch.testing.assert_close(total, concept_scores(features, bank), atol=1e-5, rtol=0)
    flat = concept_maps(features[:, :, None], bank)[:, :, 0]
    torch.testing.assert_close(flat, maps)


def planted(images: int = 40, concepts: int = 4) -> tuple[torch.Tensor, np.ndarray, list[list[np.ndarray | None]]]:
    """Features whose channel j lights up in a square of its own where concept j is present."""
    source = np.random.default_rng(0)
    present = source.random((images, concepts)) < 0.4
    features = torch.from_numpy(0.01 * source.random((images, concepts, 12, 12))).float()
    structures: list[list[np.ndarray | None]] = []
    for image in range(images):
        known: list[np.ndarray | None] = []
        for concept in range(concepts):
            mask = np.zeros((12, 12), bool)
            row, column = source.integers(0, 9, 2)
            mask[row : row + 3, column : column + 3] = True
            if present[image, concept]:
                features[image, concept][torch.from_numpy(mask)] += 1
            known.append(mask if present[image, concept] else None)
        structures.append(known)
    return features, present, structures


def test_planted_concepts_are_found_where_they_are() -> None:
    features, present, structures = planted()
    bank = concept_bank(features.flatten(2).mean(-1).numpy(), present)
    np.testing.assert_allclose(np.linalg.norm(bank, axis=1), 1)
    assert (bank.argmax(1) == np.arange(4)).all()
    axes = torch.eye(4)
    scores = concept_scores(features, axes)
    theta = torch.ones(4, 2)
    weight = contributions(scores, theta, torch.zeros(40, dtype=torch.int64))
    some = present.any(1)
    found, chance = cem(weight, present, 1)
    np.testing.assert_allclose(found.values[some], 1)
    np.testing.assert_allclose(chance, present.mean(1))
    maps = list(concept_maps(features, axes).numpy())
    where, size = clm(maps, weight, structures, 3)
    np.testing.assert_allclose(where.values[some], 1)
    np.testing.assert_allclose(size[some], 9 / 144)
    assert where.undefined == int((~some).sum())
    assert set(where.why) <= {"none of the most important concepts is in the image"}


def test_shuffled_concepts_are_at_chance() -> None:
    features, present, structures = planted(400)
    turned = torch.eye(4)[[1, 2, 3, 0]]
    weight = contributions(concept_scores(features, turned), torch.ones(4, 1), torch.zeros(400, dtype=torch.int64))
    found, chance = cem(np.random.default_rng(1).random(weight.shape), present, 1)
    assert found.mean == pytest.approx(chance.mean(), abs=0.06)
    where, _ = clm(list(concept_maps(features, turned).numpy()), weight, structures, 2)
    assert where.mean < 0.2


def test_global_importance_is_a_cosine() -> None:
    frequency = np.array([[0.9, 0.1], [0.2, 0.8], [0.0, 0.0]])
    found = cgim(frequency * 3, np.ones((3, 2)), frequency)
    np.testing.assert_allclose(found["weights"].values[:2], 1)
    np.testing.assert_allclose(found["product"].values[:2], 1)
    expected = frequency[:2].sum(1) / (np.sqrt(2) * np.linalg.norm(frequency[:2], axis=1))
    np.testing.assert_allclose(found["scores"].values[:2], expected)
    assert all(scores.reasons[2] == "all values are zero" for scores in found.values())


def test_a_concept_that_is_everywhere_cannot_be_learnt() -> None:
    with pytest.raises(ValueError, match="concept 1 is in every image"):
        concept_bank(np.random.default_rng(0).random((6, 3)), np.array([[True, True], [False, True]] * 3))
