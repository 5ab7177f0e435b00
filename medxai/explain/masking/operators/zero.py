"""Zero: the mean of the training data where inputs are standardised."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.masking.operator import Fill, OperatorInfo, take

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = OperatorInfo(
    name="zero",
    title="Zero",
    caveat="in CT scaled to -1..1 and in standardised MRI zero is tissue: it inserts some where there was none",
)


def prepare(run: Run) -> Fill:
    """``x m``."""

    def fill(masks: Tensor, rows: Tensor) -> Tensor:
        return take(run.x, rows) * masks[:, None].to(run.x)

    return fill
