"""What is read from a map over a connectivity matrix: edges, nodes, blocks of networks, the course over time.

A convolution over a matrix sees neighbouring nodes, and which are neighbours depends on the order of the atlas alone:
`order_dependence` says how much of a map does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def symmetric(matrix: npt.ArrayLike) -> Array:
    """Mean of a matrix ``[N, N, ...]`` and its transpose."""
    values = np.asarray(matrix, dtype=float)
    even: Array = (values + np.swapaxes(values, 0, 1)) / 2
    return even


@dataclass(frozen=True)
class Edge:
    """One connection.

    Attributes:
        a: row, smaller than `b`.
        b: column.
        evidence: of the symmetric map.
        sign: of the connectivity itself, -1, 0 or 1; 0 where none was given.
    """

    a: int
    b: int
    evidence: float
    sign: int


def top_edges(matrix: npt.ArrayLike, percent: float, connectivity: npt.ArrayLike | None = None) -> tuple[Edge, ...]:
    """The most important `percent` of the edges that a map ``[N, N]`` has, at least one, the largest first.

    Args:
        matrix: map; its symmetric part above the diagonal counts.
        percent: above 0, to 100.
        connectivity: ``[N, N]`` whose sign is told.

    Raises:
        ValueError: another percentage.
    """
    if not 0 < percent <= 100:
        message = f"percent is above 0 and at most 100, not {percent}"
        raise ValueError(message)
    values = symmetric(matrix)
    rows, columns = np.triu_indices(len(values), 1)
    evidence = values[rows, columns]
    keep = np.argsort(-evidence, kind="stable")[: max(1, round(len(evidence) * percent / 100))]
    signs = np.zeros(values.shape) if connectivity is None else np.sign(symmetric(connectivity))
    return tuple(
        Edge(int(rows[i]), int(columns[i]), float(evidence[i]), int(signs[rows[i], columns[i]]))
        for i in keep
        if evidence[i] > 0
    )


def node_strength(matrix: npt.ArrayLike) -> Array:
    """Sum ``[N]`` of each node's edges in the symmetric map, without the diagonal."""
    values = symmetric(matrix)
    strength: Array = values.sum(1) - np.diagonal(values)
    return strength


@dataclass(frozen=True, eq=False)
class Blocks:
    """Means of a map over the edges between two networks.

    Attributes:
        networks: names, sorted; nodes without one ("") have no part.
        means: ``[n, n]``; NaN where there is no edge.
        edges: ``[n, n]`` how many edges a mean is of.
    """

    networks: tuple[str, ...]
    means: Array
    edges: npt.NDArray[np.int64]


def block_means(matrix: npt.ArrayLike, networks: Sequence[str]) -> Blocks:
    """Mean evidence within and between networks.

    Args:
        matrix: map ``[N, N]``.
        networks: of each node.

    Raises:
        ValueError: not one network a node.
    """
    values = symmetric(matrix)
    if len(networks) != len(values):
        message = f"there are {len(networks)} networks for {len(values)} nodes"
        raise ValueError(message)
    names = tuple(sorted(set(networks) - {""}))
    member = np.array([[network == name for network in networks] for name in names], dtype=float)
    member = member.reshape(len(names), len(values))
    edge = 1 - np.eye(len(values))
    doubled = np.rint(member @ edge @ member.T).astype(np.int64)
    sums = member @ (values * edge) @ member.T
    means = np.divide(sums, doubled, out=np.full(sums.shape, np.nan), where=doubled > 0)
    edges = np.where(np.eye(len(names), dtype=bool), doubled // 2, doubled)  # within, each edge is seen twice
    return Blocks(names, means, edges)


def course(volume: npt.ArrayLike) -> Array:
    """Mean evidence ``[T]`` of the edges of a dynamic map ``[N, N, T]`` in each window."""
    values = symmetric(volume)
    rows, columns = np.triu_indices(len(values), 1)
    means: Array = values[rows, columns].mean(0)
    return means


def order_dependence(explain: Callable[[Array], Array], matrix: npt.ArrayLike, seed: int) -> float:
    """Correlation of a map with that of shuffled nodes, put back in order: 1 where the order does not matter.

    NaN where one of both is the same everywhere.

    Args:
        explain: ``[N, N, ...]`` -> map of that shape.
        matrix: connectivity.
        seed: of the order.
    """
    values = np.asarray(matrix, dtype=float)
    order = np.random.default_rng(seed).permutation(len(values))
    back = np.argsort(order)
    shuffled = np.asarray(explain(values[order][:, order]))[back][:, back]
    return agreement(explain(values), shuffled)


def agreement(one: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """Correlation of two maps of one shape; NaN where one of both is the same everywhere."""
    a, b = np.asarray(one, dtype=float).ravel(), np.asarray(other, dtype=float).ravel()
    return float("nan") if a.std() == 0 or b.std() == 0 else float(np.corrcoef(a, b)[0, 1])
