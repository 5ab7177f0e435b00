"""The leaderboard on the terminal."""

from __future__ import annotations

from medxai.trust.cohort.leaderboard import Leaderboard
from medxai.trust.cohort.measures import FAITH, PLACE
from medxai.trust.cohort.page import about, findings


def print_leaderboard(board: Leaderboard) -> None:
    """Print the methods by falling average precision, and what follows."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for line in about(board):
        console.print(line, markup=False, highlight=False)
    columns = (PLACE, "mass_lift", "pointing_game", FAITH)
    shown = Table("method", "average precision", "mass lift", "pointing game", "insertion - deletion", "cases")
    for item in board.lines:
        values = [str(item.measures[name]) for name in columns]
        name = f"({item.name})" if item.control else item.name
        shown.add_row(name, *values, str(item.measures[PLACE].n), style="dim" if item.control else None)
    console.print(shown)
    for line in findings(board):
        console.print(line.replace("**", ""), markup=False, highlight=False)
