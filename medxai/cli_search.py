"""``medxai search``: architectures of the 3D space, compared with random and hand-made ones."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

search_app = typer.Typer(help="Search network architectures; run again to resume.", no_args_is_help=True)

_EXAMPLE = """
\b
configs/search_chest_ct.yaml compares searched, random and hand-made networks.
Writes OUTPUT/results.md, .csv and .json, search.png and a model of every job.
"""


@search_app.command("chest_ct", epilog=_EXAMPLE)
def search_chest_ct(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file.")] = Path("configs/search_chest_ct.yaml"),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of all results [that of the file].")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes; each takes the next piece that nobody does.")] = 1,
    dry_run: Annotated[bool, typer.Option("--list", help="List the pieces and which are done, do nothing.")] = False,
) -> None:
    """Search 3D networks for chest CT and train them and their controls on synthetic cases.

    Every piece is done once. Kill it at any time; the same command goes on from the last epoch.
    """
    from medxai.learn.search.jobs import jobs as pieces
    from medxai.learn.search.jobs import result, work
    from medxai.learn.search.settings import load_search
    from medxai.learn.search.summary import summarise
    from medxai.session import quiet_libraries

    quiet_libraries()
    settings = load_search(config, {"output": out} if out else None)
    if dry_run:
        for job in pieces(settings):
            typer.echo(f"{'done' if result(settings, job) else 'open':5} {job.name}")
        return
    started = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{time.monotonic() - started:7.0f} s] {line}")

    settings.output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "medxai", "search", "chest_ct", "--config", str(config)]
    command += ["--out", str(settings.output)]
    others = [subprocess.Popen(command) for _ in range(jobs - 1)]  # noqa: S603 - our own command
    try:
        if jobs > 1:
            import torch

            torch.set_num_threads(1)
        work(settings, say)
        failed = [process.wait() for process in others]
    finally:
        for process in others:
            process.terminate()
    for path in summarise(settings):
        typer.echo(f"  {path}")
    if any(failed):
        raise typer.Exit(2)
