"""Ask every fold's network about each held-out frame again and again: changed, and with dropout.

``python -m medxai.learn.lung_us.measure_uncertainty --data DIR`` is resumable: every recording has a file of its own.
The network behind the frozen trunk is run once for the dropout passes where dropout stands behind the pooling, since
nothing before it changes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.errors import SettingsError
from medxai.identity import sha256_text
from medxai.learn.breast_us import Tail
from medxai.learn.lung_us.held_out import HeldOut, measure_held_out, measured, recordings_of
from medxai.learn.lung_us.runs import PATIENTS, FrameTable, find_runs
from medxai.predict.confidence import Belief, augmented_passes, believe, dropout_passes, prepared_fill

FloatArray = npt.NDArray[np.float64]

#: Folder of the passes beside a fold's predictions.
FOLDER = "uncertainty"
#: Frames at once.
_BATCH = 10


def repeated(item: HeldOut) -> dict[str, npt.NDArray[Any]]:
    """Return probabilities ``changed [passes, T, K]`` and ``dropped [passes, T, K]`` of the frames of a recording."""
    seed = int(sha256_text(item.recording.path)[:8], 16)
    cut = item.cut
    network = cut.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    changed = [
        augmented_passes(network, part, fill=prepared_fill(cut.spec), seed=seed + number)
        for number, part in enumerate(torch.split(item.frames, _BATCH))
    ]
    with torch.inference_mode():
        features = torch.cat([cut.trunk(part) for part in torch.split(item.frames, _BATCH)])
        before, behind = _at_dropout(cut.tail)
        features = before.eval()(features)
    dropped = dropout_passes(behind, features, seed=seed)
    return {"changed": np.concatenate(changed, axis=1), "dropped": dropped}


def beliefs(run: Path, table: FrameTable, paths: Sequence[str]) -> tuple[npt.NDArray[np.int64], Belief, Belief]:
    """Return rows of `table` that were asked again, with what changed pictures and dropout say of them.

    Args:
        run: folder of the run.
        table: its frames.
        paths: path of each recording by its index.

    Raises:
        SettingsError: nothing was measured.
    """
    row_of = {
        (int(f), str(r), int(p)): i
        for i, (f, r, p) in enumerate(zip(table.fold, table.recording, table.place, strict=True))
    }
    rows: list[int] = []
    changed, dropped = [], []
    for fold, index, arrays in measured(run, FOLDER):
        rows += [row_of[fold, paths[index], int(place)] for place in arrays["places"]]
        changed.append(arrays["changed"])
        dropped.append(arrays["dropped"])
    if not rows:
        msg = f"{run.name} was not asked again; run python -m medxai.learn.lung_us.measure_uncertainty"
        raise SettingsError(msg)
    return np.array(rows), believe(np.concatenate(changed, axis=1)), believe(np.concatenate(dropped, axis=1))


def _at_dropout(tail: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Cut a tail before its dropout where that is the only random part of it."""
    if isinstance(tail, Tail):
        return nn.Sequential(tail.stages, tail.head), tail.last
    return nn.Identity(), tail


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing of the finished folds."""
    parser = argparse.ArgumentParser(prog="python -m medxai.learn.lung_us.measure_uncertainty", description=__doc__)
    parser.add_argument("--network", default="efficientnet_lite0", help="a network that reads frames")
    parser.add_argument("--data", type=Path, required=True, help="folder of the open data sets")
    parser.add_argument("--work", type=Path, default=Path(".training/lung_us"), help="as in training")
    parser.add_argument("--every", type=int, default=1, help="step between the frames that are taken")
    options = parser.parse_args(arguments)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {line}", flush=True)

    run = find_runs(options.work).get((options.network, PATIENTS))
    if run is None:
        parser.error(f"{options.network} has no finished fold below {options.work}")
    recordings = recordings_of(run, options.data)
    count = measure_held_out(run, options.data, recordings, FOLDER, repeated, say, options.every)
    print(f"{count} recordings asked again; {run}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
