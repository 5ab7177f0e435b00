"""Task functional MRI: design of a block experiment, its maps, and a decoder tested on blocks that it did not see."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.prepare.brain.bold import Bold
from medxai.prepare.brain.clean import clean

#: Events of one condition that follow within so many seconds are one block.
_GAP_SECONDS = 4.0
#: The response of the vessels lags behind the stimulus by about so much.
_DELAY_SECONDS = 5.0
#: Blocks of each condition without which no score means anything, and degrees of freedom left for a map.
_LEAST_BLOCKS, _LEAST_FREEDOM = 2, 10
#: A condition's regressor that stays below this was not seen by the scan.
_LEAST_RESPONSE = 1e-3


@dataclass(frozen=True)
class Block:
    """Successive events of one condition, in seconds from the first volume."""

    condition: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class TaskResult:
    """What a block experiment gave; what could not be computed has its reason instead.

    Attributes:
        design: ``[T, columns]``.
        columns: names: conditions, drifts and the constant.
        labels: condition of each volume, "" for rest.
        blocks: number of the block of each volume, -1 for rest.
        accuracy: share of volumes decoded rightly, each block left out once; None where it was refused.
        chance: share of the commonest condition among these volumes.
        maps: z of each condition against the baseline, ``[D, H, W]``; empty where they were refused.
        refused: by ``decoder`` and ``maps``: why.
    """

    design: npt.NDArray[np.float64]
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    blocks: tuple[int, ...]
    accuracy: float | None = None
    chance: float | None = None
    maps: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def read_events(path: Path, study: str | None = None) -> list[Block]:
    """Read a BIDS ``events.tsv`` (``onset``, ``duration`` in s, ``trial_type``) as blocks, in order.

    Raises:
        IngestError: unreadable, columns missing, or words instead of numbers.
    """
    name = study or path.name
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise IngestError("the table of events cannot be read", study=name) from error
    absent = [column for column in ("onset", "duration", "trial_type") if not rows or column not in rows[0]]
    if absent:
        raise IngestError(f"the table of events has no {', '.join(absent)}", study=name)
    try:
        events = sorted((float(row["onset"]), float(row["duration"]), str(row["trial_type"])) for row in rows)
    except (TypeError, ValueError) as error:
        raise IngestError("onset or duration of an event is no number", study=name) from error
    blocks: list[Block] = []
    for onset, duration, condition in events:
        last = blocks[-1] if blocks else None
        if last and last.condition == condition and onset - last.end <= _GAP_SECONDS:
            blocks[-1] = Block(condition, last.start, max(last.end, onset + duration))
        else:
            blocks.append(Block(condition, onset, onset + duration))
    return blocks


def design(
    blocks: Sequence[Block], volumes: int, repetition_seconds: float, dropped: int = 0
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Design matrix of nilearn: blocks through the SPM response, cosine drifts above 128 s, and a constant.

    Args:
        blocks: in seconds from the first volume of the scan.
        volumes: of the series.
        repetition_seconds: between volumes.
        dropped: volumes left out before the first of these.
    """
    import pandas
    from nilearn.glm.first_level import make_first_level_design_matrix

    times = (np.arange(volumes) + dropped) * repetition_seconds
    table = pandas.DataFrame(
        {
            "onset": [block.start for block in blocks],
            "duration": [block.end - block.start for block in blocks],
            "trial_type": [block.condition for block in blocks],
        }
    )
    with warnings.catch_warnings():  # on conditions the scan ends before; they are refused with words below
        warnings.simplefilter("ignore")
        made = make_first_level_design_matrix(times, table, hrf_model="spm", drift_model="cosine", high_pass=1 / 128)
    return made.to_numpy(np.float64), tuple(str(name) for name in made.columns)


def label_volumes(
    blocks: Sequence[Block], volumes: int, repetition_seconds: float, dropped: int = 0
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Condition and block of each volume by its middle, five seconds after the stimulus; "" and -1 for rest."""
    labels, numbers = [], []
    for volume in range(volumes):
        time = (volume + dropped + 0.5) * repetition_seconds - _DELAY_SECONDS
        found = next((n for n, block in enumerate(blocks) if block.start <= time < block.end), -1)
        labels.append(blocks[found].condition if found >= 0 else "")
        numbers.append(found)
    return tuple(labels), tuple(numbers)


def decode_task(bold: Bold, blocks: Sequence[Block], mask: npt.NDArray[np.bool_]) -> TaskResult:
    """Design, z maps by least squares with AR(1) noise, and a decoder with each block left out once.

    The decoder is a linear support vector machine on the voxels of the mask, scaled by the training volumes. Whole
    blocks are left out, since volumes of one block are alike whatever was shown.

    Args:
        bold: the series.
        blocks: of the experiment, in seconds from the first volume of the scan.
        mask: ``[D, H, W]`` brain.

    Returns:
        All of it, or the reason with the numbers instead of a score or of maps.
    """
    tr, volumes = bold.repetition_seconds, bold.volumes
    matrix, columns = design(blocks, volumes, tr, bold.dropped)
    labels, numbers = label_volumes(blocks, volumes, tr, bold.dropped)
    conditions = sorted({block.condition for block in blocks})
    refused: dict[str, str] = {}
    series = bold.data[mask].T.astype(np.float64)
    seen = [c for c in conditions if np.abs(matrix[:, columns.index(c)]).max() > _LEAST_RESPONSE]
    maps: dict[str, npt.NDArray[np.float32]] = {}
    freedom = volumes - int(np.linalg.matrix_rank(matrix))
    if freedom < _LEAST_FREEDOM or not seen:
        words = f"{volumes} volumes ({volumes * tr:.0f} s) leave {freedom} degrees of freedom for a design of"
        words += f" {len(columns)} columns ({_LEAST_FREEDOM} are needed)"
        refused["maps"] = f"{words}, and show {len(seen)} of {len(conditions)} conditions"
    else:
        maps = _maps(series, matrix, columns, seen, mask)
    accuracy = chance = None
    counts = {c: len({n for label, n in zip(labels, numbers, strict=True) if label == c}) for c in conditions}
    usable = [c for c in conditions if counts[c] >= _LEAST_BLOCKS]
    if len(usable) < 2:
        words = f"{volumes} volumes ({volumes * tr:.0f} s) show {sum(counts.values())} blocks of {len(blocks)}"
        refused["decoder"] = f"{words}; two conditions with {_LEAST_BLOCKS} blocks each are needed"
    else:
        accuracy, chance = _leave_blocks_out(series, labels, numbers, usable, tr)
    return TaskResult(matrix, columns, labels, numbers, accuracy, chance, maps, refused)


def _maps(
    series: npt.NDArray[np.float64],
    matrix: npt.NDArray[np.float64],
    columns: tuple[str, ...],
    conditions: Sequence[str],
    mask: npt.NDArray[np.bool_],
) -> dict[str, npt.NDArray[np.float32]]:
    from nilearn.glm.contrasts import compute_contrast
    from nilearn.glm.first_level import run_glm

    labels, results = run_glm(series, matrix, noise_model="ar1", n_jobs=1)
    found = {}
    for condition in conditions:
        contrast = np.array([float(name == condition) for name in columns])
        grid = np.zeros(mask.shape, np.float32)
        grid[mask] = np.nan_to_num(compute_contrast(labels, results, contrast, stat_type="t").z_score())
        found[condition] = grid
    return found


def _leave_blocks_out(
    series: npt.NDArray[np.float64], labels: Sequence[str], numbers: Sequence[int], usable: Sequence[str], tr: float
) -> tuple[float, float]:
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    used = np.array([label in usable for label in labels])
    truth, groups = np.array(labels)[used], np.array(numbers)[used]
    # A linear trend is no label: taking it out of the whole scan tells the decoder nothing of the blocks.
    values = clean(series, {}, tr, 1, None, "series")[used]
    model = make_pipeline(StandardScaler(), LinearSVC(C=0.01, random_state=0))
    guessed = cross_val_predict(model, values, truth, groups=groups, cv=LeaveOneGroupOut(), n_jobs=1)
    counts = np.unique(truth, return_counts=True)[1]
    return float((guessed == truth).mean()), float(counts.max() / counts.sum())
