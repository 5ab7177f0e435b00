"""Features of functional and diffusion MRI as a Prefect flow: a task for every subject, done once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flows.environment import configure
from medxai.errors import MedxaiError
from medxai.prepare.brain.bids import Scans
from medxai.prepare.brain.cohort import Outcome, begin, finish, run_subject
from medxai.prepare.brain.settings import FeatureSettings, load_features


def features_flow(settings: FeatureSettings) -> list[Outcome]:
    """Compute all subjects; a subject that fails stops no other.

    Args:
        settings: of the data set; its output folder also holds Prefect's database unless the site has another.

    Raises:
        MedxaiError: the input holds no scans, or an atlas cannot be read.
    """
    configure(settings.output / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    # What is done is known from the files, not from Prefect's cache, so that command line and flow resume each other.
    @task(name="brain-features", task_run_name="{subject}", persist_result=False, cache_policy=NO_CACHE)
    def one(subject: str, scans: Scans | None) -> Outcome:
        """Compute one subject."""
        return run_subject(subject, settings, scans, _say)

    @flow(name="brain-features", log_prints=False)
    def whole() -> list[Outcome]:
        """All subjects in order."""
        outcomes = [one(subject, scans) for subject, scans in begin(settings).items()]
        finish(settings, outcomes)
        return outcomes

    return whole()


def _say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.brain CONFIG``; exit code 2 when a subject failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.brain", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like configs/brain_features.yaml")
    parser.add_argument("--output", type=Path, help="override the output folder")
    options = parser.parse_args(arguments)
    try:
        settings = load_features(options.config, {"output": options.output} if options.output else None)
        outcomes = features_flow(settings)
    except MedxaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(settings.output)
    return 2 if any(outcome.state == "failed" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
