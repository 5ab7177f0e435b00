"""The table of jobs that commands print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from medxai.records.worklist import JobRow


def print_rows(rows: list[JobRow], out: Path | None) -> None:
    """Print jobs as a table, with the page of those that are done and the reason of the others.

    Where `out` is known, it is also said where the records of those in quarantine lie.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{sum(row.state == 'done' for row in rows)} of {len(rows)} studies explained")
    for column in ("study", "state", "stage", "attempts", "reason or result"):
        table.add_column(column, overflow="fold")
    for row in rows:
        last = str(Path(row.folder) / "case.html") if row.state == "done" else f"[{row.reason_code}] {row.reason}"
        table.add_row(row.study_key, row.state, row.stage, str(row.attempts), last.replace("[", "\\["))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if out is not None and any(row.state == "quarantined" for row in rows):
        typer.secho(f"reasons and files of the studies put aside: {out / 'quarantine'}", err=True, fg="yellow")
