"""Architecture search and training as a Prefect flow: a task for every piece, done once, resumed when killed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from flows.environment import configure
from medxai.errors import MedxaiError
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
    configure(settings.output / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    # What is done is known from the result files, not from Prefect's cache, so that the command line and the flow
    # resume each other.
    @task(name="search-job", task_run_name="{name}", persist_result=False, cache_policy=NO_CACHE)
    def one(name: str, kind: str, arm: str, seed: int) -> float:
        """Do one job; returns its CPU seconds."""
        while (found := run(settings, Job(kind, arm, seed), _say)) is None:
            time.sleep(2)  # another process has it
        return float(found["cpu_seconds"])

    @flow(name="search", log_prints=False)
    def whole() -> list[float]:
        """All jobs in order."""
        return [one(job.name, job.kind, job.arm, job.seed) for job in jobs(settings)]

    whole()
    from medxai.learn.search.summary import summarise

    return {"written": [str(path) for path in summarise(settings)]}


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.search CONFIG``."""
    parser = argparse.ArgumentParser(prog="python -m flows.search", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like configs/search_chest_ct.yaml")
    parser.add_argument("--output", type=Path, help="override the output folder")
    options = parser.parse_args(arguments)
    try:
        settings = load_search(options.config, {"output": options.output} if options.output else None)
        for path in search_flow(settings)["written"]:
            print(path)
    except MedxaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
