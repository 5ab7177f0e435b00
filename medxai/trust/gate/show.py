"""A calibration for people: what is caught at which price."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medxai.trust.gate.verdict import Calibration


def print_calibration(found: Calibration) -> None:
    """Print what is caught at which price, class by class."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for label, gate in found.classes.items():
        table = Table(
            title=f"{found.bundle}, {found.method} for {label}: {gate.cases} cases of {gate.patients} patients; "
            f"allowed false alarms {found.false_alarm:.0%}"
        )
        for column in ("explanation", "withheld (95 % interval)", "limited or withheld", "n"):
            table.add_column(column)
        for kind, row in gate.table.items():
            share = f"{row['withheld']:.3f} ({row['low']:.3f}-{row['high']:.3f})"
            table.add_row(kind, share, f"{row['limited_or_withheld']:.3f}", f"{row['n']:.0f}")
        console.print(table)
        weights = ", ".join(f"{name} {weight.weight:.2f}" for name, weight in gate.weights.items() if weight.weight)
        console.print(f"weights of the figures: {weights}")
