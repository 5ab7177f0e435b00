"""Exact Shapley values and interactions of a few players, from the values of all their coalitions."""

from __future__ import annotations

from math import factorial

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def coalitions(players: int) -> npt.NDArray[np.bool_]:
    """``[2^n, n]``: row ``i`` holds player ``j`` where bit ``j`` of ``i`` is set."""
    return (np.arange(2**players)[:, None] >> np.arange(players) & 1).astype(bool)


def shapley_values(values: npt.ArrayLike) -> Array:
    """Mean gain ``[n]`` of each player over all orders of joining (Shapley 1953); their sum is the whole less nothing.

    Args:
        values: ``[2^n]`` in the order of `coalitions`.

    Raises:
        ValueError: their number is no power of two.
    """
    worth = np.asarray(values, dtype=float)
    players = _players(worth)
    size = coalitions(players).sum(1)
    share = np.array([factorial(s) * factorial(players - s - 1) / factorial(players) for s in range(players)])
    found = np.zeros(players)
    for player in range(players):
        without = np.flatnonzero(~(np.arange(len(worth)) >> player & 1).astype(bool))
        found[player] = (share[size[without]] * (worth[without | 1 << player] - worth[without])).sum()
    return found


def pair_synergy(values: npt.ArrayLike) -> Array:
    """``[n, n]`` gain of two players together less that of each, with nobody else; zero diagonal.

    Args:
        values: as of `shapley_values`.
    """
    worth = np.asarray(values, dtype=float)
    players = _players(worth)
    single = worth[1 << np.arange(players)] - worth[0]
    found = np.zeros((players, players))
    for a in range(players):
        for b in range(players):
            if a != b:
                found[a, b] = worth[1 << a | 1 << b] - worth[0] - single[a] - single[b]
    return found


def _players(worth: Array) -> int:
    players = len(worth).bit_length() - 1
    if worth.ndim != 1 or len(worth) != 2**players:
        message = f"there are {worth.shape} values; coalitions of n players have 2^n"
        raise ValueError(message)
    return players
