"""Random architectures, of any size or of the size of another one."""

from __future__ import annotations

import numpy as np

from medxai.errors import SettingsError
from medxai.networks.covidnet3d import CELLS, OPERATIONS, Architecture, CovidNet3d, parameters


def random_architecture(random: np.random.Generator, frame: Architecture) -> Architecture:
    """Every operation of every cell with the same probability."""
    drawn = random.integers(len(OPERATIONS), size=sum(CELLS))
    return Architecture(frame.size, tuple(OPERATIONS[i] for i in drawn), frame.depth, frame.placement)


def like(other: Architecture, seed: int, tolerance: float = 0.05, num_classes: int = 3) -> Architecture:
    """A random architecture with as many parameters as `other`, up to `tolerance`.

    Raises:
        SettingsError: none was found in 10,000 draws.
    """
    wanted = parameters(CovidNet3d.of(other, num_classes))
    random = np.random.default_rng([seed, 23])
    sizes: dict[tuple[int, str], int] = {}
    base = parameters(
        CovidNet3d.of(Architecture.uniform("skip", other.size, other.depth, other.placement), num_classes)
    )
    for _ in range(10_000):
        drawn = random_architecture(random, other)
        total = base + sum(_size(sizes, drawn, cell) for cell in range(len(drawn.operations)))
        if drawn.operations != other.operations and abs(total / wanted - 1) <= tolerance:
            return drawn
    msg = f"no random architecture of {wanted} parameters, within {tolerance:.0%}, in 10,000 draws"
    raise SettingsError(msg)


def _size(known: dict[tuple[int, str], int], architecture: Architecture, cell: int) -> int:
    from medxai.networks.covidnet3d import operation, plan

    width, name = plan(architecture)[cell][1], architecture.operations[cell]
    if (width, name) not in known:
        known[width, name] = parameters(operation(name, width))
    return known[width, name]
