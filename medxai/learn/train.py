"""Train a shipped bundle: ``python -m medxai.learn.train NAME --data DIR --out DIR``."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from medxai.files import write_text
from medxai.predict.bundle import bundle_sha256, find_bundles
from medxai.predict.check import verify_bundle

NAMES = ("breast_us", "chest_ct", "phantom_ct")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one bundle, check it and write the hashes of all bundles in the folder to ``allow.json``.

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

    import torch

    torch.set_num_threads(options.threads)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {line}", flush=True)

    path = import_module(f"medxai.learn.{options.name}").train(
        options.data, options.work, options.out, options.folds, say
    )
    problems = verify_bundle(path)
    for problem in problems:
        say(f"{options.name}: {problem}")
    allow = {name: [bundle_sha256(folder)] for name, folder in find_bundles([options.out]).items()}
    write_text(options.out / "allow.json", json.dumps(allow, indent=2) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
