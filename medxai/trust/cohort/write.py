"""Files of a validation: ``leaderboard.json``, ``cases.csv``, ``leaderboard.md`` and two plots."""

from __future__ import annotations

import json
from pathlib import Path

from medxai.files import write_text
from medxai.trust.cohort.leaderboard import Leaderboard
from medxai.trust.cohort.measures import measures_of
from medxai.trust.cohort.page import make_page
from medxai.trust.cohort.plots import plot_leaderboard, plot_relation
from medxai.trust.cohort.result import write_csv


def write_leaderboard(board: Leaderboard, folder: Path, title: str) -> list[Path]:
    """Write everything below a folder and return the paths."""
    names = [measure.name for measure in measures_of(board.plan.masking)]
    write_text(folder / "leaderboard.json", json.dumps(board.as_dict(), indent=1) + "\n")
    write_csv(folder / "cases.csv", board.columns.results, names)
    plots = [
        plot_leaderboard(board, folder / "leaderboard.png", title),
        plot_relation(board, folder / "relation.png", title),
    ]
    pictures = {"Place and faithfulness of every method": plots[0].name, "Faithfulness against place": plots[1].name}
    write_text(folder / "leaderboard.md", make_page(board, title, pictures))
    return [folder / name for name in ("leaderboard.json", "cases.csv", "leaderboard.md")] + plots
