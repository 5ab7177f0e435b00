"""Networks and cases for the leaderboard: ``python -m medxai.learn.cohorts NAME --data DIR --work DIR``.

Prints the command that validates them. Nothing of it is shipped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from medxai.files import write_text
from medxai.predict.bundle import bundle_sha256

NAMES = {
    "breast_us": "breast_us_folds",
    "lung_us": "lung_us.leaderboard",
    "histology": "histology",
    "brain_tumour": "brain_tumour",
    "ms_lesions": "ms_lesions",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the folds of a cohort, allow them in ``WORK/NAME/allow.json`` and print how to validate them."""
    parser = argparse.ArgumentParser(prog="python -m medxai.learn.cohorts", description=__doc__)
    parser.add_argument("name", choices=tuple(NAMES))
    parser.add_argument("--data", type=Path, required=True, help="folder of the open data sets")
    parser.add_argument("--work", type=Path, default=Path(".training/cohorts"), help="networks and cases")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {line}", flush=True)

    folders = import_module(f"medxai.learn.{NAMES[options.name]}").train(options.data, options.work, say)
    bundles = [next(path for path in folder.iterdir() if (path / "configs").is_dir()) for folder in folders]
    allow = options.work / options.name / "allow.json"
    write_text(allow, json.dumps({path.name: [bundle_sha256(path)] for path in bundles}, indent=2) + "\n")
    words = ["medxai trust validate", f"--allow {allow}"]
    for folder, bundle in zip(folders, bundles, strict=True):
        cases = folder / "cases"
        data = cases if cases.is_dir() else options.data / "us_breast_busi"
        words += [f"--bundle {bundle}", f"--labels {folder / 'labels.csv'}", f"--data {data}"]
    print(" ".join(words))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
