"""The table of a validation set: which images, their masks, classes and patients."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from medxai.errors import TrustError

#: Columns that say which cases belong together; the first that is there counts.
GROUPS = ("patient", "group", "duplicate_group")
_NEEDED = ("path", "mask")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        image: path of the image, or of the folder of a series.
        mask: path of its mask; None where the table names none.
        label: class, empty where the table has none.
        patient: patient or other group.
    """

    image: Path
    mask: Path | None
    label: str
    patient: str


def read_rows(table: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by column.

    Raises:
        TrustError: it cannot be read.
    """
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"cannot be read as a table ({type(error).__name__})"
        raise TrustError(msg, study=table.name) from error


def read_table(table: Path, data: Path) -> list[Row]:
    """Rows of a CSV with the columns ``path`` and ``mask``, and where known ``label`` and ``patient``.

    Without a column of patients every image counts as one of its own.

    Args:
        table: the file.
        data: folder that its paths begin in.

    Raises:
        TrustError: it cannot be read, lacks a column or has no rows.
    """
    rows = read_rows(table)
    lacking = [name for name in _NEEDED if not rows or name not in rows[0]]
    if lacking:
        msg = f"needs rows and the columns {', '.join(_NEEDED)}; {', '.join(lacking)} is not there"
        raise TrustError(msg, study=table.name)
    group = next((name for name in GROUPS if name in rows[0]), "path")
    return [
        Row(
            image=data / row["path"],
            mask=data / row["mask"] if row["mask"] else None,
            label=row.get("label") or "",
            patient=row[group] or row["path"],
        )
        for row in rows
    ]
