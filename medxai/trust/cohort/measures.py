"""What is measured of every map of a cohort, and under which names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["localisation", "faithfulness", "other"]

#: Tolerance of the second pointing game.
TOLERANCE_MM = 10.0


@dataclass(frozen=True)
class Measure:
    """A column of the tables.

    Attributes:
        name: in files.
        title: for people.
        kind: what it is about.
    """

    name: str
    title: str
    kind: Kind


LOCALISATION = (
    Measure("mass_lift", "mass lift", "localisation"),
    Measure("rank_accuracy", "rank accuracy", "localisation"),
    Measure("auprc", "AUPRC", "localisation"),
    Measure("pointing_game", "pointing game", "localisation"),
    Measure("pointing_game_10mm", "pointing game, 10 mm", "localisation"),
)
OTHER = (
    Measure("specificity", "specificity", "other"),
    Measure("stability", "stability", "other"),
)
#: What places are ranked by, and what decisions are ranked by.
PLACE, FAITH = "auprc", "faithfulness"


def faithfulness_of(masking: Sequence[str]) -> tuple[Measure, ...]:
    """Area of insertion less area of deletion, mean over the operators and for each of them."""
    mean = Measure(FAITH, "insertion - deletion", "faithfulness")
    return (mean, *(Measure(f"{FAITH}_{name}", f"by {name}", "faithfulness") for name in masking))


def measures_of(masking: Sequence[str]) -> tuple[Measure, ...]:
    """All columns in the order of the tables."""
    return (*faithfulness_of(masking), *LOCALISATION, *OTHER)
