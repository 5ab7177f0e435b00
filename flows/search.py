"""Architecture search and training as a Prefect flow: a task for every piece, done once, resumed when killed."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from flows.console import answered, say
from flows.pieces import do_pieces
from medxai.learn.search.jobs import Job, jobs, run
from medxai.learn.search.settings import SearchSettings, load_search


def search_flow(settings: SearchSettings) -> dict[str, Any]:
    """Run all jobs of a comparison, one after the other, and write its tables.

    Args:
        settings: of the comparison; its output folder also holds Prefect's database unless the site has another.

    Returns:
        Paths of the tables.

    Raises:
        MedxaiError: a job failed, or the folder holds results of other settings.
    """
    do_pieces(
        settings.output,
        "search",
        [(job.name, partial(run, settings, Job(job.kind, job.arm, job.seed), say)) for job in jobs(settings)],
    )
    from medxai.learn.search.summary import summarise

    return {"written": [str(path) for path in summarise(settings)]}


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.search CONFIG``."""
    parser = argparse.ArgumentParser(prog="python -m flows.search", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like configs/search_chest_ct.yaml")
    parser.add_argument("--output", type=Path, help="override the output folder")
    options = parser.parse_args(arguments)

    def work() -> int:
        settings = load_search(options.config, {"output": options.output} if options.output else None)
        for path in search_flow(settings)["written"]:
            print(path)
        return 0

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
