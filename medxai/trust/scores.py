"""What every measure returns: one value for each sample, and why some have none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """A measure over a batch.

    Attributes:
        name: of the measure.
        values: ``[B]``, NaN where it is not defined.
        reasons: for each sample why it has no value, empty where it has one.
        better: which direction is good.
    """

    name: str
    values: Values
    reasons: tuple[str, ...] = ()
    better: str = "higher"

    def __post_init__(self) -> None:
        """Fill in reasons: NaN never goes without one."""
        given = self.reasons or ("",) * len(self.values)
        if len(given) != len(self.values):
            msg = f"{self.name}: {len(self.values)} values and {len(given)} reasons"
            raise ValueError(msg)
        filled = tuple(
            reason or ("not a number" if np.isnan(value) else "")
            for value, reason in zip(self.values.tolist(), given, strict=True)
        )
        object.__setattr__(self, "reasons", filled)

    @cached_property
    def undefined(self) -> int:
        """Samples without a value."""
        return int(np.isnan(self.values).sum())

    @cached_property
    def why(self) -> dict[str, int]:
        """How often each reason occurs."""
        return dict(Counter(reason for reason in self.reasons if reason))

    @property
    def mean(self) -> float:
        """Mean over the samples that have a value; NaN when none has."""
        kept = self.values[~np.isnan(self.values)]
        return float(kept.mean()) if kept.size else float("nan")

    def __len__(self) -> int:
        """Samples, with and without a value."""
        return len(self.values)


def scored(name: str, values: npt.ArrayLike, reasons: Sequence[str] = (), better: str = "higher") -> Scores:
    """Scores whose values are NaN wherever there is a reason."""
    found = np.array(values, dtype=np.float64).reshape(-1)
    for i, reason in enumerate(reasons):
        if reason:
            found[i] = np.nan
    return Scores(name, found, tuple(reasons), better)


def joined(parts: Sequence[Scores]) -> Scores:
    """The samples of several batches of one measure, in order."""
    first = parts[0]
    values = np.concatenate([part.values for part in parts])
    return Scores(first.name, values, tuple(r for part in parts for r in part.reasons), first.better)
