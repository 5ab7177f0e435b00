"""Results of a case as they lie on disk: one JSON file each, so that a run that was stopped goes on."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medxai.files import write_text


@dataclass(frozen=True)
class MethodRow:
    """Measures of one map: values by name, NaN where there is none, and why.

    Attributes:
        values: by name.
        reasons: of what is NaN.
        basis: what the row depends on besides the case, see `medxai.trust.cohort.plan.Plan.basis`.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    basis: str = ""


@dataclass(frozen=True)
class CaseResult:
    """All that was measured of one case.

    Attributes:
        key: pseudonym of the image.
        patient: pseudonym of the patient or other group.
        bundle: name of the model.
        label: class of the table.
        explained: class that was explained.
        decided: class the model decided for.
        probability: of the explained class.
        lesion_share: of the window.
        fingerprint: of everything that all rows depend on.
        rows: by method or control.
    """

    key: str
    patient: str
    bundle: str
    label: str
    explained: str
    decided: str
    probability: float
    lesion_share: float
    fingerprint: str
    rows: dict[str, MethodRow]

    @property
    def correct(self) -> bool | None:
        """Whether the decision is the table's class; None where the table names none."""
        return self.decided == self.label if self.label else None


def write_result(path: Path, result: CaseResult) -> None:
    """Write atomically; NaN becomes null."""
    write_text(path, json.dumps(_plain(asdict(result)), indent=1) + "\n")


def read_result(path: Path, fingerprint: str) -> CaseResult | None:
    """A result of earlier; None when there is none, it is damaged or was measured otherwise."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["fingerprint"] != fingerprint:
            return None
        rows = {
            name: MethodRow(
                {k: math.nan if v is None else float(v) for k, v in row["values"].items()}, row["reasons"], row["basis"]
            )
            for name, row in content["rows"].items()
        }
        return CaseResult(**{**content, "rows": rows})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_csv(path: Path, results: Sequence[CaseResult], measures: Sequence[str]) -> None:
    """One line for each case and method; empty where there is no value, with the reasons in the last column."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    head = ("case", "patient", "bundle", "label", "explained", "decided", "probability", "lesion_share", "method")
    writer.writerow([*head, *measures, "reasons"])
    for case in results:
        about = [case.key, case.patient, case.bundle, case.label, case.explained, case.decided]
        about += [f"{case.probability:.4g}", f"{case.lesion_share:.4g}"]
        for name, row in case.rows.items():
            numbers = [row.values.get(key, math.nan) for key in measures]
            why = "; ".join(dict.fromkeys(row.reasons[key] for key in measures if key in row.reasons))
            writer.writerow([*about, name, *("" if math.isnan(v) else f"{v:.4g}" for v in numbers), why])
    write_text(path, lines.getvalue())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
