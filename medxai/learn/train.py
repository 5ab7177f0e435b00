"""Train a shipped bundle, check it and allow it: what ``medxai train`` and ``python -m medxai.learn.train`` do."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from medxai.files import write_text
from medxai.predict.bundle import bundle_sha256, find_bundles
from medxai.predict.check import verify_bundle

#: Module with the recipe of each bundle.
RECIPES = {
    "breast_us": "medxai.learn.breast_us",
    "chest_ct": "medxai.learn.chest_ct.bundle",
    "histo_tumour": "medxai.learn.histo_tumour",
    "phantom_ct": "medxai.learn.phantom_ct",
}
NAMES = tuple(RECIPES)


def train_bundle(
    name: str, data: Path, work: Path, out: Path, folds: int, threads: int, say: Callable[[str], None]
) -> list[str]:
    """Train one bundle, check it and write the hashes of all bundles in the folder to ``allow.json``.

    Args:
        name: one of `NAMES`.
        data: folder of the open data sets.
        work: caches, checkpoints, predictions.
        out: folder that receives the bundle.
        folds: cross-validation folds, where the data allow a choice.
        threads: CPU threads.
        say: told how far it is.

    Returns:
        The problems of the written bundle; none if it can be used.
    """
    import torch

    torch.set_num_threads(threads)
    return check_and_allow(import_module(RECIPES[name]).train(data, work, out, folds, say), out)


def check_and_allow(path: Path, out: Path) -> list[str]:
    """Return the problems of a bundle and write the hashes of all bundles in `out` to its ``allow.json``."""
    allow = {name: [bundle_sha256(folder)] for name, folder in find_bundles([out]).items()}
    write_text(out / "allow.json", json.dumps(allow, indent=2) + "\n")
    return verify_bundle(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the bundle that is named.

    Returns:
        0, or 1 when the written bundle has problems.
    """
    parser = argparse.ArgumentParser(prog="python -m medxai.learn.train", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the open data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the bundle and allow.json")
    parser.add_argument("--work", type=Path, default=Path(".training"), help="caches, checkpoints, predictions")
    parser.add_argument("--folds", type=int, default=5, help="cross-validation folds, where the data allow a choice")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {line}", flush=True)

    problems = train_bundle(options.name, options.data, options.work, options.out, options.folds, options.threads, say)
    for problem in problems:
        say(f"{options.name}: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
