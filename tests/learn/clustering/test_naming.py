"""Naming by matching, scores by hand, and what chance reaches."""

from __future__ import annotations

import numpy as np
import pytest

from medxai.learn.clustering.naming import chance, class_shares, name_clusters, scores


def test_the_matching_that_agrees_most() -> None:
    # Cluster 0 is mostly class 1, but cluster 1 is nothing else: cluster 0 has to take class 0.
    clusters = np.array([0] * 9 + [1] * 6)
    labels = np.array([1] * 5 + [0] * 4 + [1] * 6)
    assert name_clusters(clusters, labels, 2, 2).tolist() == [0, 1]


def test_more_clusters_than_classes_and_fewer() -> None:
    clusters, labels = np.array([0, 0, 1, 1, 2, 2, 2]), np.array([0, 0, 1, 1, 1, 1, 0])
    assert name_clusters(clusters, labels, 4, 2).tolist() == [0, 1, 1, 1]  # the fourth has no tile
    assert sorted(name_clusters(np.array([0, 1, 1]), np.array([2, 0, 0]), 2, 3).tolist()) == [0, 2]


def test_names_are_those_of_the_naming_tiles_alone() -> None:
    """Labels of scored tiles that contradict the names cost accuracy; a matching on them would hide it."""
    names = name_clusters(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 2, 2)
    clusters = np.array([0, 0, 1, 1])
    labels = 1 - clusters
    found = scores(labels, names[clusters], np.eye(2)[names[clusters]], clusters, ("a", "b"))
    assert found["accuracy"] == 0
    assert found["ari"] == pytest.approx(1)


def test_scores_by_hand() -> None:
    labels = np.array([0, 0, 0, 1, 1, 2])
    decided = np.array([0, 0, 1, 1, 1, 1])
    shares = np.array(
        [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0, 0.5, 0.5]]
    )
    found = scores(labels, decided, shares, decided, ("a", "b", "c"))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    a, b, c = found["classes"].values()
    assert a == {
        "sensitivity": pytest.approx(2 / 3),
        "specificity": 1.0,
        "ppv": 1.0,
        "npv": pytest.approx(3 / 4),
        "f1": pytest.approx(0.8),
        "auc": pytest.approx(1.0),
    }
    assert b["ppv"] == pytest.approx(0.5)
    assert b["auc"] == pytest.approx(1.0)
    assert c["ppv"] is None
    assert c["f1"] == 0
    assert c["auc"] == pytest.approx(1.0)
    alone = scores(labels[:3], decided[:3], shares[:3], decided[:3], ("a", "b", "c"))
    assert alone["classes"]["b"]["sensitivity"] is None
    assert alone["classes"]["b"]["auc"] is None


def test_shares_of_a_class_are_those_of_its_clusters() -> None:
    q = np.array([[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(class_shares(q, np.array([1, 0, 1]), 3), [[0.3, 0.7, 0.0]])


def test_chance_of_three_even_clusters_is_above_a_third_where_few_are_named() -> None:
    random = np.random.default_rng(0)
    labels, clusters = np.arange(90) % 3, random.permutation(np.arange(90) % 3)
    found = chance((clusters, labels), (clusters, labels), 3, 3, 400, 0)
    assert found["mean"] == pytest.approx(1 / 3, abs=0.02)
    assert found["p95"] > found["mean"] + 0.04
    assert chance((clusters, labels), (clusters, labels), 3, 3, 400, 0) == found
    # Uneven classes: naming by matching cannot do better than the frequencies allow.
    many = np.array([0] * 80 + [1] * 20)
    uneven = chance((many, many), (many, many), 2, 2, 400, 0)
    assert uneven["mean"] == pytest.approx(0.8**2 + 0.2**2, abs=0.03)
