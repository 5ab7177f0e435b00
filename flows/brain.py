"""Prefect flows for functional and diffusion MRI: features, explanation, ablation, training of fusion networks."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from flows.console import answered, say
from flows.environment import configure
from flows.pieces import do_pieces
from medxai.brain_settings import AblateSettings, ExplainSettings, load_brain_settings
from medxai.learn.brain.settings import BrainSettings, load_brain
from medxai.prepare.brain.bids import Scans
from medxai.prepare.brain.cohort import begin, finish, run_subject
from medxai.prepare.brain.outcome import Outcome
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
        return run_subject(subject, settings, scans, say)

    @flow(name="brain-features", log_prints=False)
    def whole() -> list[Outcome]:
        """All subjects in order."""
        outcomes = [one(subject, scans) for subject, scans in begin(settings).items()]
        finish(settings, outcomes)
        return outcomes

    return whole()


def explain_flow(settings: ExplainSettings) -> list[Outcome]:
    """Explain all subjects: a task for the evidence of each, then the group, then a task for the files of each.

    Args:
        settings: of the run; its output folder also holds Prefect's database unless the site has another.

    Raises:
        MedxaiError: no features, no such bundle, or an atlas that cannot be read.
    """
    configure(settings.output / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    from medxai import brain_explain

    run = brain_explain.begin(settings)

    @task(name="brain-evidence", task_run_name="{subject}", persist_result=False, cache_policy=NO_CACHE)
    def evidence(subject: str) -> Outcome:
        """What the network says of one subject."""
        return brain_explain.find_evidence(run, subject, say)

    @flow(name="brain-explain", log_prints=False)
    def whole() -> list[Outcome]:
        """All subjects in order."""
        found = {subject: evidence(subject) for subject in run.subjects}
        good = tuple(subject for subject, outcome in found.items() if outcome.state != "failed")
        group = brain_explain.make_group(run, good)

        @task(name="brain-outputs", task_run_name="{subject}", persist_result=False, cache_policy=NO_CACHE)
        def outputs(subject: str) -> Outcome:
            """Files of one subject."""
            return brain_explain.write_outputs(run, subject, group, say)

        outcomes = [outputs(s) if s in good else found[s] for s in run.subjects]
        brain_explain.finish(run, outcomes, group)
        return outcomes

    return whole()


def ablate_flow(settings: AblateSettings) -> Path:
    """Ablate functional networks on a labelled cohort; one task, since all subjects are scored together.

    Raises:
        MedxaiError: no features, no such bundle, or no cohort that can be scored.
    """
    configure(settings.output / ".medxai" / "prefect")
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE

    from medxai.brain_ablate import ablate

    @task(name="brain-ablation", persist_result=False, cache_policy=NO_CACHE)
    def one() -> Path:
        """All networks."""
        return ablate(settings, say)

    @flow(name="brain-ablate", log_prints=False)
    def whole() -> Path:
        """The cohort."""
        return one()

    return whole()


def train_flow(settings: BrainSettings) -> int:
    """Train and measure every network of a comparison, a task each; `medxai brain train --report` writes the page.

    Args:
        settings: of the comparison; its output folder also holds Prefect's database unless the site has another.

    Returns:
        Number of the networks.

    Raises:
        MedxaiError: too few carriers, or the folder holds results of other settings.
    """
    from medxai.learn.brain.comparison import run

    wanted = [(arm, seed) for seed in settings.seeds for arm in settings.arms]
    do_pieces(
        settings.output,
        "brain-train",
        [(f"seed {seed} {arm}", partial(run, settings, arm, seed, say)) for arm, seed in wanted],
    )
    return len(wanted)


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.brain CONFIG [--do explain]``; exit code 2 when a subject failed."""
    parser = argparse.ArgumentParser(prog="python -m flows.brain", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like configs/brain_features.yaml")
    parser.add_argument("--output", type=Path, help="override the output folder")
    parser.add_argument(
        "--do", choices=("features", "explain", "ablate", "train"), default="features", help="[features]"
    )
    options = parser.parse_args(arguments)
    changes = {"output": options.output} if options.output else {}

    def work() -> int:
        if options.do == "train":
            print(f"{train_flow(load_brain(options.config, changes))} networks")
            return 0
        if options.do == "ablate":
            print(ablate_flow(load_brain_settings(AblateSettings, options.config, changes, "brain ablate")))
            return 0
        if options.do == "explain":
            explained = load_brain_settings(ExplainSettings, options.config, changes, "brain explain")
            results = explain_flow(explained)
            print(explained.output)
            return 2 if any(outcome.state == "failed" for outcome in results) else 0
        settings = load_features(options.config, changes or None)
        outcomes = features_flow(settings)
        print(settings.output)
        return 2 if any(outcome.state == "failed" for outcome in outcomes) else 0

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
