"""Take regions out of brain data: time series of parcels, connectivity matrices and their courses."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Operator = Literal["zero", "mean", "permute", "noise"]
Kind = Literal["series", "connectivity"]


class Removal:
    """Replaces what some regions hold; the same regions are always replaced by the same.

    ``zero`` is no signal only where data are z-scored; ``mean`` is that of the training subjects; ``permute`` takes the
    regions of another subject, which keeps their statistics and their connections among each other; ``noise`` is
    normal with the training subjects' mean and deviation.

    Args:
        operator: which of them.
        kind: ``series`` are ``[S, T, P]``: parcels are the last axis, whose mean and deviation are over subjects and
            time; ``connectivity`` is ``[S, N, N]`` or ``[S, N, N, T]``: rows and columns of a region, in all windows.
        training: data of the training subjects, in the same shape; needed by ``mean`` and ``noise``.
        seed: of partners and noise.

    Raises:
        ValueError: unknown operator or kind, or no training data where they are needed.
    """

    def __init__(self, operator: Operator, kind: Kind, training: npt.ArrayLike | None = None, seed: int = 0) -> None:
        if operator not in ("zero", "mean", "permute", "noise") or kind not in ("series", "connectivity"):
            message = f"operator {operator!r} or kind {kind!r} is none of those there are"
            raise ValueError(message)
        self._operator, self._kind, self._seed = operator, kind, seed
        if operator in ("mean", "noise"):
            if training is None:
                message = f"{operator} needs the data of the training subjects"
                raise ValueError(message)
            known = np.asarray(training, dtype=float)
            over = (0, 1) if kind == "series" else (0,)
            self._mean, self._deviation = known.mean(over), known.std(over)

    def __call__(self, data: npt.ArrayLike, removed: Mask) -> Array:
        """A copy of the data without some regions.

        Args:
            data: subjects first, see the class.
            removed: ``[P]`` or ``[N]``, True where a region is taken out.

        Raises:
            ValueError: as many regions as the data do not have, or ``permute`` with fewer than two subjects.
        """
        values = np.asarray(data, dtype=float)
        regions = values.shape[2]
        if removed.shape != (regions,):
            message = f"the data have {regions} regions, the mask {removed.shape}"
            raise ValueError(message)
        return np.where(self.where(removed, values.ndim), self.instead(values), values)

    def where(self, removed: Mask, axes: int) -> Mask:
        """What is replaced, ``[1, ...]`` with that many axes, to broadcast over the data."""
        if self._kind == "series":
            return removed[None, None, :]
        touched: Mask = removed[:, None] | removed[None, :]
        return touched.reshape(1, *touched.shape, *[1] * (axes - 3))

    def instead(self, values: Array) -> Array:
        """What stands in for the data where every region is removed, in their shape; the same at every call."""
        if self._operator == "zero":
            return np.zeros_like(values)
        if self._operator == "mean":
            return np.broadcast_to(self._mean, values.shape)
        source = np.random.default_rng(self._seed)
        if self._operator == "permute":
            if len(values) < 2:
                raise ValueError("regions can be taken from another subject only where there is one")
            order = source.permutation(len(values))
            partner = np.empty(len(values), dtype=int)
            partner[order] = np.roll(order, 1)  # one round through all: nobody is his own partner
            return values[partner]
        noise = source.normal(size=values.shape)
        if self._kind == "connectivity":
            noise = (noise + np.swapaxes(noise, 1, 2)) / np.sqrt(2)
        instead: Array = self._mean + self._deviation * noise
        return instead
