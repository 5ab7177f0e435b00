"""Clustering of histology tiles as a Prefect flow: a task for every piece, done once, resumed when killed."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from flows.console import answered, say
from flows.pieces import do_pieces
from medxai.learn.clustering.comparison import pieces, run
from medxai.learn.clustering.data import read_tiles
from medxai.learn.clustering.settings import DceacSettings, load_dceac


def cluster_flow(settings: DceacSettings) -> int:
    """Do all pieces of a comparison, one after the other; `medxai train dceac --report` writes the page.

    Args:
        settings: of the comparison; its output folder also holds Prefect's database unless the site has another.

    Returns:
        Number of the pieces.

    Raises:
        MedxaiError: no tiles, or the folder holds results of other settings.
    """
    tiles = read_tiles(settings.data)
    wanted = pieces(settings, tiles)
    do_pieces(
        settings.output,
        "cluster-tiles",
        [(f"seed {seed} {arm}", partial(run, settings, arm, seed, tiles, say)) for arm, seed in wanted],
    )
    return len(wanted)


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``python -m flows.cluster CONFIG``."""
    parser = argparse.ArgumentParser(prog="python -m flows.cluster", description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file, like configs/dceac.yaml")
    parser.add_argument("--data", type=Path, action="append", help="folder of tiles; repeatable")
    parser.add_argument("--output", type=Path, help="override the output folder")
    options = parser.parse_args(arguments)

    def work() -> int:
        settings = load_dceac(options.config, {"output": options.output} if options.output else None)
        print(f"{cluster_flow(settings.of_folders(options.data) if options.data else settings)} pieces")
        return 0

    return answered(work)


if __name__ == "__main__":
    sys.exit(main())
