"""Clustering of histology tiles as a Prefect flow: a task for every piece, done once, resumed when killed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from flows.environment import configure
from medxai.errors import MedxaiError
from medxai.learn.clustering.comparison import pieces, run
from medxai.learn.clustering.data import read_tiles
from medxai.learn.clustering.settings import Arm, DceacSettings, load_dceac


def cluster_flow(settings: DceacSettings) -> int:
    """Do all pieces of a comparison, one after the other; `medxai train dceac --report` writes the page.

    Args:
        settings: of the comparison; its output folder also holds Prefect's database unless the site has another.

    Returns:
        Number of the pieces.

    Raises:
        MedxaiError: no tiles, or the folder holds results of other settings.
    """
    configure(settings.output / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    tiles = read_tiles(settings.data)

    # What is done is known from the result files, so that the command line and the flow resume each other.
    @task(name="cluster-piece", task_run_name="seed {seed} {arm}", persist_result=False, cache_policy=NO_CACHE)
    def one(arm: Arm, seed: int) -> float:
        """Do one piece; returns its CPU seconds."""
        while (found := run(settings, arm, seed, tiles, _say)) is None:
            time.sleep(2)  # another process has it
        return float(found["cpu_seconds"])

    @flow(name="cluster-tiles", log_prints=False)
    def whole() -> list[float]:
        """All pieces in order."""
        return [one(arm, seed) for arm, seed in pieces(settings, tiles)]

    return len(whole())


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.cluster CONFIG``."""
    parser = argparse.ArgumentParser(prog="python -m flows.cluster", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like configs/dceac.yaml")
    parser.add_argument("--data", type=Path, action="append", help="folder of tiles; repeatable")
    parser.add_argument("--output", type=Path, help="override the output folder")
    options = parser.parse_args(arguments)
    try:
        settings = load_dceac(options.config, {"output": options.output} if options.output else None)
        print(f"{cluster_flow(settings.of_folders(options.data) if options.data else settings)} pieces")
    except MedxaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
