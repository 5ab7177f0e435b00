from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medxai.explain.connectivity_map import block_means, course, node_strength, order_dependence, symmetric, top_edges
from medxai.explain.group_map import GroupMean
from medxai.explain.shapley import coalitions, pair_synergy, shapley_values

RANDOM = np.random.default_rng(0)


def test_edges_are_the_largest_of_the_symmetric_map() -> None:
    matrix, connectivity = np.zeros((5, 5)), np.zeros((5, 5))
    matrix[3, 1], matrix[0, 4], matrix[2, 2] = 1.0, 0.6, 9.0
    connectivity[1, 3] = connectivity[3, 1] = -0.4
    found = top_edges(matrix, 20, connectivity)
    assert [(edge.a, edge.b, edge.evidence, edge.sign) for edge in found] == [(1, 3, 0.5, -1), (0, 4, 0.3, 0)]
    assert len(top_edges(matrix, 100)) == 2  # what has no evidence is no edge
    assert np.array_equal(symmetric(matrix), symmetric(matrix).T)
    with pytest.raises(ValueError, match="percent"):
        top_edges(matrix, 0)


def test_blocks_and_strength_by_hand() -> None:
    matrix = RANDOM.random((7, 7))
    networks = ["b", "a", "", "b", "a", "a", "c"]
    found = block_means(matrix, networks)
    even = symmetric(matrix)
    assert found.networks == ("a", "b", "c")
    for i, j in itertools.product(range(3), repeat=2):
        pairs = {
            (min(r, s), max(r, s))
            for r in range(7)
            for s in range(7)
            if r != s and (networks[r], networks[s]) == (found.networks[i], found.networks[j])
        }
        assert found.edges[i, j] == len(pairs)
        if pairs:
            assert found.means[i, j] == pytest.approx(np.mean([even[pair] for pair in pairs]))
        else:
            assert np.isnan(found.means[i, j])
    assert node_strength(matrix)[2] == pytest.approx(sum(even[2, j] for j in range(7) if j != 2))
    with pytest.raises(ValueError, match="2 networks for 7 nodes"):
        block_means(matrix, ["a", "b"])


def test_the_course_peaks_where_the_evidence_is() -> None:
    volume = np.zeros((6, 6, 10))
    volume[1, 4, 3:5] = 1
    assert np.flatnonzero(course(volume)).tolist() == [3, 4]
    assert course(volume)[3] == pytest.approx(0.5 / 15)


def test_order_dependence() -> None:
    matrix = symmetric(RANDOM.random((12, 12, 3)))
    assert order_dependence(lambda x: x**2, matrix, 0) == pytest.approx(1)

    def neighbours(x: np.ndarray) -> np.ndarray:
        return (np.roll(x, 1, 0) + np.roll(x, -1, 0) + np.roll(x, 1, 1)) / 3

    assert abs(order_dependence(neighbours, matrix, 0)) < 0.5
    assert math.isnan(order_dependence(np.zeros_like, matrix, 0))


@given(st.permutations(range(6)))
def test_a_group_has_no_order(order: list[int]) -> None:
    maps = np.random.default_rng(1).random((6, 3, 4)) ** 9
    group, sorted_group = GroupMean(), GroupMean()
    for i in order:
        group.add(maps[i])
    for values in maps:
        sorted_group.add(values)
    assert np.array_equal(group.mean, sorted_group.mean)
    assert np.allclose(group.mean, maps.mean(0), atol=1e-12)


def test_a_group_refuses_what_is_no_map() -> None:
    group = GroupMean()
    with pytest.raises(ValueError, match="no mean"):
        _ = group.mean
    group.add([0, 1])
    for wrong in ([0, 1.5], [0, np.nan], [0, 1, 1]):
        with pytest.raises(ValueError, match="map"):
            group.add(wrong)


@given(st.integers(1, 6), st.integers(0, 99))
def test_shapley_values_are_means_over_orders(players: int, seed: int) -> None:
    worth = np.random.default_rng(seed).normal(size=2**players)
    found = shapley_values(worth)
    assert found.sum() == pytest.approx(worth[-1] - worth[0], abs=1e-9)
    gains = np.zeros(players)
    orders = list(itertools.permutations(range(players)))
    for order in orders:
        joined = 0
        for player in order:
            gains[player] += worth[joined | 1 << player] - worth[joined]
            joined |= 1 << player
    assert np.allclose(found, gains / len(orders))


def test_synergy_of_a_product() -> None:
    who = coalitions(3)
    worth = who @ np.array([1.0, 2.0, 4.0]) + 8 * (who[:, 0] & who[:, 2])
    assert pair_synergy(worth).tolist() == [[0, 0, 8], [0, 0, 0], [8, 0, 0]]
    assert np.allclose(shapley_values(worth), [5, 2, 8])
    with pytest.raises(ValueError, match=r"2\^n"):
        shapley_values([1, 2, 3])
