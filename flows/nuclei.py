"""Nuclei from points as a Prefect flow: a task for every network, trained once, resumed when killed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from flows.environment import configure
from medxai.errors import MedxaiError
from medxai.learn.nuclei.comparison import fields_of, pieces, run
from medxai.learn.nuclei.settings import Arm, NucleiSettings, load_nuclei_settings


def nuclei_flow(settings: NucleiSettings) -> int:
    """Do all pieces of a comparison, one after the other; `medxai train nuclei --report` writes the page.

    Args:
        settings: of the comparison; its output folder also holds Prefect's database unless the site has another.

    Returns:
        Number of the pieces.

    Raises:
        MedxaiError: no fields, or the folder holds results of other settings.
    """
    configure(settings.output / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    fields_of(settings)

    # What is done is known from the result files, so that the command line and the flow resume each other.
    @task(name="nuclei-piece", task_run_name="seed {seed} {arm}", persist_result=False, cache_policy=NO_CACHE)
    def one(arm: Arm, seed: int) -> float:
        """Do one piece; returns its CPU seconds."""
        while (found := run(settings, arm, seed, _say)) is None:
            time.sleep(2)  # another process has it
        return float(found["cpu_seconds"])

    @flow(name="nuclei-from-points", log_prints=False)
    def whole() -> list[float]:
        """All pieces in order."""
        return [one(arm, seed) for arm, seed in pieces(settings)]

    return len(whole())


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.nuclei CONFIG``."""
    parser = argparse.ArgumentParser(prog="python -m flows.nuclei", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like configs/nuclei.yaml")
    parser.add_argument("--output", type=Path, help="override the output folder")
    options = parser.parse_args(arguments)
    try:
        settings = load_nuclei_settings(options.config, {"output": options.output} if options.output else None)
        print(f"{nuclei_flow(settings)} pieces")
    except MedxaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
