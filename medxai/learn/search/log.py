"""What a search did, epoch by epoch: a table for people and machines, and the weights behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from medxai.networks.covidnet3d import OPERATIONS


@dataclass(frozen=True)
class Epoch:
    """One row.

    Attributes:
        epoch: from 1.
        temperature: of the Gumbel-softmax.
        train_loss: cross-entropy of the shared weights' half.
        validation_loss: of the architecture weights' half, without the cost term.
        accuracy: on that half, of the paths that were drawn.
        entropy: mean over cells, 1 undecided, 0 decided.
        cost: expected, as a share of the dearest path; nan without a cost table.
        architecture: the likeliest operation of each cell.
    """

    epoch: int
    temperature: float
    train_loss: float
    validation_loss: float
    accuracy: float
    entropy: float
    cost: float
    architecture: str


def as_csv(rows: Sequence[Epoch]) -> str:
    """One line an epoch, the same bytes for the same search."""
    names = [field.name for field in fields(Epoch)]
    lines = [",".join(names)]
    for row in rows:
        values = asdict(row)
        lines.append(",".join(f"{v:.6f}" if isinstance(v, float) else str(v) for v in (values[n] for n in names)))
    return "\n".join(lines) + "\n"


def describe(choice: Sequence[int]) -> str:
    """Operations of a path in one word."""
    return "|".join(OPERATIONS[index] for index in choice)
