"""Zero: the mean of the training data where inputs are standardised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.masking.operator import Blend, Fill, OperatorInfo

if TYPE_CHECKING:
    from medxai.explain.run import Run

INFO = OperatorInfo(
    name="zero",
    title="Zero",
    caveat="in CT scaled to -1..1 and in standardised MRI zero is tissue: it inserts some where there was none",
)


def prepare(run: Run) -> Fill:
    """``x m``."""
    return Blend(run.x)
