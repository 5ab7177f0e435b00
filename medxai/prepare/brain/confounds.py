"""What is regressed out of functional MRI: columns of a confounds table, tissue means, trends."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.prepare.brain.bold import Bold
from medxai.prepare.brain.settings import NuisanceOptions

Array = npt.NDArray[np.float64]
_MOTION = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")
#: Endings of fMRIPrep's columns beside the six parameters themselves.
_EXPANSION = {"6": ("",), "12": ("", "_derivative1"), "24": ("", "_derivative1", "_power2", "_derivative1_power2")}


def read_confounds(path: Path, volumes: int, study: str | None = None) -> dict[str, Array]:
    """Read a table as fMRIPrep writes it: tab-separated, one row per volume, ``n/a`` where a value is undefined.

    ``n/a``, which stands in the first rows of derivatives, becomes 0; elsewhere it is refused.

    Args:
        path: ``*_desc-confounds_timeseries.tsv``.
        volumes: of the series, before dummies are dropped.
        study: name for messages.

    Raises:
        IngestError: unreadable, another number of rows, or words instead of numbers.
    """
    name = study or path.name
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise IngestError("the confounds table cannot be read", study=name) from error
    if len(rows) != volumes:
        raise IngestError(f"the confounds table has {len(rows)} rows and the series {volumes} volumes", study=name)
    found: dict[str, Array] = {}
    for column in rows[0]:
        values = np.array([_value(row[column]) for row in rows])
        missing = np.flatnonzero(np.isnan(values))
        if len(missing) and missing[-1] >= 2:
            if len(missing) == len(rows) or _wanted(column):
                raise IngestError(
                    f"column {column} of the confounds has no number in row {missing[-1] + 1}", study=name
                )
            continue
        found[str(column)] = np.nan_to_num(values)
    return found


def choose(table: Mapping[str, Array], options: NuisanceOptions, study: str) -> dict[str, Array]:
    """Columns of a confounds table that the options ask for.

    Raises:
        IngestError: one that is asked for is not there; lists what is.
    """
    names = [f"{base}{end}" for base in _MOTION for end in _EXPANSION.get(options.motion, ())]
    if options.tissues:
        names += ["white_matter", "csf"]
    if options.global_signal:
        names.append("global_signal")
    absent = [name for name in names if name not in table]
    if absent:
        words = f"the confounds table has no {', '.join(absent)} (nuisance.motion: none, 6, 12 or 24)"
        raise IngestError(f"{words}; it has {', '.join(list(table)[:12])}", study=study)
    if options.outliers:
        names += [name for name in table if re.fullmatch(r"(motion_outlier|non_steady_state_outlier)\d+", name)]
    return {name: table[name] for name in names}


def tissue_means(bold: Bold, masks: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, Array]:
    """Mean series of each mask on the grid of the series (``white_matter``, ``csf``, ``global_signal``).

    Raises:
        IngestError: a mask is on another grid or empty.
    """
    found = {}
    for name, mask in masks.items():
        if mask.shape != bold.grid:
            raise IngestError(f"the mask of {name} has shape {mask.shape}, the series {bold.grid}", study=bold.key)
        if not mask.any():
            raise IngestError(f"the mask of {name} is empty", study=bold.key)
        found[name] = bold.data[mask].mean(0, dtype=np.float64)
    return found


def motion_columns(parameters: Array, expansion: str) -> dict[str, Array]:
    """Six parameters ``[T, 6]`` (mm, radians) with their expansion, named as fMRIPrep names them."""
    found: dict[str, Array] = {}
    for index, base in enumerate(_MOTION):
        value = parameters[:, index]
        step = np.diff(value, prepend=value[:1])
        parts = {"": value, "_derivative1": step, "_power2": value**2, "_derivative1_power2": step**2}
        for end in _EXPANSION.get(expansion, ()):
            found[base + end] = parts[end]
    return found


def _value(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def _wanted(column: str | None) -> bool:
    return str(column).startswith(("trans_", "rot_")) or column in {"white_matter", "csf", "global_signal"}
