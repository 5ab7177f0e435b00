"""The table that `medxai trust validate` reads: one case a row, with its mask."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from medxai.files import write_text


@dataclass(frozen=True)
class CohortRow:
    """A case: path of the image, class, path of the mask (both relative to the data), patient or other group."""

    path: str
    label: str
    mask: str
    group: str


def write_table(path: Path, rows: Sequence[CohortRow]) -> Path:
    """Write a table and return its path."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([item.name for item in fields(CohortRow)])
    writer.writerows(astuple(row) for row in rows)
    return write_text(path, lines.getvalue())
