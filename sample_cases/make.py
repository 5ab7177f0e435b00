"""Write a set of phantom studies: ``python -m sample_cases.make OUT [--n 3] [--seed 1] [--with-broken]``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medxai.files import write_text
from sample_cases.phantom import Phantom, phantom
from sample_cases.write import SeriesStyle, write_dicom, write_nifti

_NUMBERS = ("ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE", "TEN")


@dataclass(frozen=True)
class _Plan:
    """One kind of study: grid, storage and number of lesions; the kinds repeat for larger sets."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    n_lesions: int
    origin_mm: tuple[float, float, float]
    tilt_degrees: float = 0.0
    unsigned: bool = False
    descending: bool = False


_PLANS = (
    _Plan((48, 112, 132), (3.0, 2.5, 2.5), 1, (4.2, -171.5, 1214.0)),
    _Plan((36, 120, 144), (4.0, 2.2, 2.2), 0, (-6.5, -148.0, -322.5), unsigned=True, descending=True),
    _Plan((58, 104, 124), (2.5, 2.7, 2.6), 2, (11.0, -160.2, -87.3), tilt_degrees=6.0, unsigned=True),
)


def make_set(out: Path, n: int = 3, seed: int = 1, *, with_broken: bool = False) -> dict[str, Any]:
    """Write `n` studies below `out` and return the truth.

    Layout: ``dicom/phantom-001/*.dcm``, ``nifti/phantom-001.nii.gz``, ``truth.json``. The same arguments
    write the same bytes.

    Args:
        out: folder, created when absent.
        n: number of good studies; the first has one lesion, the second is clean, the third has two.
        seed: of the anatomy, lesions and noise.
        with_broken: add ``dicom/phantom-broken``, a series whose middle slice is missing.

    Returns:
        The content of ``truth.json``.
    """
    studies = []
    for number in range(n):
        plan = _PLANS[number % len(_PLANS)]
        name = _NUMBERS[number] if number < len(_NUMBERS) else f"N{number + 1}"
        key = f"phantom-{number + 1:03d}"
        style = SeriesStyle(f"PHANTOM^{name}", f"PHANTOM-{number + 1:03d}", plan.unsigned, plan.descending)
        drawn = _draw(plan, seed * 1000 + number)
        uid = write_dicom(out / "dicom" / key, drawn, style, seed)
        write_nifti(out / "nifti" / f"{key}.nii.gz", drawn)
        studies.append(_truth(key, drawn, plan, style, uid))
    truth: dict[str, Any] = {"seed": seed, "frame": "LPS, mm", "studies": studies}
    if with_broken:
        plan = _PLANS[0]
        middle = plan.shape[0] // 2
        style = SeriesStyle("PHANTOM^BROKEN", "PHANTOM-BROKEN", missing=middle)
        write_dicom(out / "dicom" / "phantom-broken", _draw(plan, seed * 1000 + 999), style, seed)
        what = f"slice {middle + 1} of {plan.shape[0]} is missing on purpose; the series must be refused"
        truth["broken"] = [{"dicom": "dicom/phantom-broken", "defect": what}]
    write_text(out / "truth.json", json.dumps(truth, indent=2) + "\n")
    return truth


def _draw(plan: _Plan, seed: int) -> Phantom:
    return phantom(
        seed, plan.shape, plan.spacing, plan.n_lesions, origin_mm=plan.origin_mm, tilt_degrees=plan.tilt_degrees
    )


def _truth(key: str, drawn: Phantom, plan: _Plan, style: SeriesStyle, uid: str) -> dict[str, Any]:
    notes = ["unsigned with intercept -1024" if style.unsigned else "signed"]
    notes += ["InstanceNumber descends"] if style.descending else []
    notes += [f"tilted by {plan.tilt_degrees:g} degrees"] if plan.tilt_degrees else []
    lesions = [
        {"kind": a.kind, "centre_mm": [round(v, 3) for v in a.centre_mm], "radius_mm": round(a.radius_mm, 3)}
        for a in drawn.lesions
    ]
    return {
        "key": key,
        "dicom": f"dicom/{key}",
        "nifti": f"nifti/{key}.nii.gz",
        "patient_name": style.patient_name,
        "patient_id": style.patient_id,
        "study_instance_uid": uid,
        "label": drawn.label,
        "lesions": lesions,
        "shape": list(plan.shape),
        "spacing_mm": list(plan.spacing),
        "notes": notes,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the set."""
    parser = argparse.ArgumentParser(prog="python -m sample_cases.make", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--n", type=int, default=3, help="number of studies (default 3)")
    parser.add_argument("--seed", type=int, default=1, help="anatomy, lesions and noise (default 1)")
    parser.add_argument("--with-broken", action="store_true", help="add a series with a missing slice")
    options = parser.parse_args(arguments)
    truth = make_set(options.out, options.n, options.seed, with_broken=options.with_broken)
    for study in truth["studies"]:
        print(f"{study['dicom']}: {study['label']}, {len(study['lesions'])} lesion(s); {', '.join(study['notes'])}")
    for broken in truth.get("broken", []):
        print(f"{broken['dicom']}: {broken['defect']}")
    print(f"truth in {options.out / 'truth.json'}")


if __name__ == "__main__":
    main()
