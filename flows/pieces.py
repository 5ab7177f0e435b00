"""Pieces of long work as a Prefect flow: a task each, one after the other, what is done not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.environment import configure


def do_pieces(output: Path, name: str, pieces: Sequence[tuple[str, Callable[[], Any | None]]]) -> None:
    """Do all pieces in order; what is done is known from their files, so that command line and flow resume each other.

    Args:
        output: folder of the results; it also holds Prefect's database unless the site has another.
        name: of the flow, and of its tasks.
        pieces: of each what the task is called, and the work: it returns None while another process is at it.
    """
    configure(output / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    @task(name=name, task_run_name="{label}", persist_result=False, cache_policy=NO_CACHE)
    def one(label: str, number: int) -> None:
        """Do one piece, or wait for who does."""
        while pieces[number][1]() is None:
            time.sleep(2)

    @flow(name=name, log_prints=False)
    def whole() -> None:
        """All pieces in order."""
        for number, (label, _) in enumerate(pieces):
            one(label, number)

    whole()
