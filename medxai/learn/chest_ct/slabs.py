"""Infected or clean slabs of real chest CT, on the three open volumes: real, but tiny.

A slab is one window of the network. It counts as infected when at least `SHARE` of the source slices whose
centres lie in it carry the publisher's infection label.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.errors import SettingsError
from medxai.ingest.nifti import read_nifti
from medxai.learn.chest_ct.spec import SPEC
from medxai.prepare.prepare import prepare

#: Least share of infected slices in an infected slab.
SHARE = 0.2
#: Prepared voxels between the first slices of neighbouring slabs; training shifts each at random by up to half.
STEP = 4

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Patient:
    """One prepared volume ``[1, D, H, W]`` and, per prepared slice, whether the nearest source slice is infected."""

    name: str
    pixels: FloatArray
    infected: npt.NDArray[np.bool_]

    def label(self, start: int) -> int:
        """1 when the slab that begins at prepared slice `start` counts as infected."""
        return int(self.infected[start : start + SPEC.window[0]].mean() >= SHARE)


@dataclass(frozen=True)
class Slab:
    """Number of the patient and first prepared slice."""

    patient: int
    start: int


def read_patients(data: Path) -> list[Patient]:
    """Read the volumes and slice labels of ``ct_chest_nifti`` below `data`.

    Raises:
        SettingsError: the folder is absent.
    """
    folder = data / "ct_chest_nifti"
    table = folder / "slice_labels.csv"
    if not table.exists():
        msg = "slice_labels.csv not found; --data must hold ct_chest_nifti/"
        raise SettingsError(msg)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    patients = []
    for name in sorted({row["case"] for row in rows}):
        volume = read_nifti(folder / f"{name}_half.nii.gz", "CT", "CHEST")
        prepared = prepare(volume, SPEC)
        infected = np.array([row["infected"] == "1" for row in rows if row["case"] == name])
        axis = prepared.grid.axes[0]
        nearest = np.rint(axis.offset + axis.step * np.arange(axis.size)).astype(int)
        inside = (nearest >= 0) & (nearest < len(infected))
        flags = np.where(inside, infected[np.clip(nearest, 0, len(infected) - 1)], False)
        patients.append(Patient(name, prepared.pixels, flags))
    return patients


def slabs(patients: Sequence[Patient]) -> list[Slab]:
    """All slabs, `STEP` prepared slices apart."""
    depth = SPEC.window[0]
    return [Slab(p, s) for p, who in enumerate(patients) for s in range(0, who.pixels.shape[1] - depth + 1, STEP)]


def cut(patient: Patient, start: int, shift: int) -> FloatArray:
    """Window ``[1, *window]`` from the middle of the plane; a shift that would change the label is not used."""
    depth, height, width = SPEC.window
    moved = min(max(0, start + shift), patient.pixels.shape[1] - depth)
    if patient.label(moved) != patient.label(start):
        moved = start
    h, w = (patient.pixels.shape[2] - height) // 2, (patient.pixels.shape[3] - width) // 2
    return np.ascontiguousarray(patient.pixels[:, moved : moved + depth, h : h + height, w : w + width])
