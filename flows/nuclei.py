"""Nuclei from points as a Prefect flow: a task for every network, trained once, resumed when killed."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from flows.console import answered, say
from flows.pieces import do_pieces
from medxai.learn.nuclei.comparison import fields_of, pieces, run
from medxai.learn.nuclei.settings import NucleiSettings, load_nuclei_settings


def nuclei_flow(settings: NucleiSettings) -> int:
    """Do all pieces of a comparison, one after the other; `medxai train nuclei --report` writes the page.

    Args:
        settings: of the comparison; its output folder also holds Prefect's database unless the site has another.

    Returns:
        Number of the pieces.

    Raises:
        MedxaiError: no fields, or the folder holds results of other settings.
    """
    fields_of(settings)
    wanted = pieces(settings)
    do_pieces(
        settings.output,
        "nuclei-from-points",
        [(f"seed {seed} {arm}", partial(run, settings, arm, seed, say)) for arm, seed in wanted],
    )
    return len(wanted)


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.nuclei CONFIG``."""
    parser = argparse.ArgumentParser(prog="python -m flows.nuclei", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like configs/nuclei.yaml")
    parser.add_argument("--output", type=Path, help="override the output folder")
    options = parser.parse_args(arguments)

    def work() -> int:
        changes = {"output": options.output} if options.output else None
        print(f"{nuclei_flow(load_nuclei_settings(options.config, changes))} pieces")
        return 0

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
