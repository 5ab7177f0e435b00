"""Small phantom studies for tests of the whole chain, and what such tests ask of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from medxai.cli import main
from medxai.identity import sha256_file
from medxai.ingest.discover import discover
from medxai.records.database import open_database, sqlite_url
from medxai.records.worklist import JobRow, Worklist
from medxai.settings import RunSettings, make_settings
from sample_cases.phantom import Phantom, phantom
from sample_cases.write import SeriesStyle, write_dicom, write_nifti

#: One window of phantom_ct: the whole chain takes a fraction of a second.
SHAPE = (14, 32, 34)
SPACING = (6.5, 6.0, 5.5)
ROOT = Path(__file__).parents[1]


def small_phantom(seed: int = 3, lesions: int = 1) -> Phantom:
    """A chest phantom of few voxels."""
    return phantom(seed, SHAPE, SPACING, lesions, origin_mm=(4.0, -170.0, 1210.0))


def dicom_study(
    folder: Path, seed: int = 3, *, name: str = "PHANTOM^TEST", number: str = "", missing: int | None = None
) -> Path:
    """Write one series of a small phantom and return its folder; other seeds give other UIDs and pixels."""
    style = SeriesStyle(name, number or f"PHANTOM-{seed}", missing=missing)
    write_dicom(folder, small_phantom(seed), style, seed)
    return folder


def nifti_study(path: Path, seed: int = 3) -> Path:
    """Write the same phantom as NIfTI."""
    return write_nifti(path, small_phantom(seed))


def edit(folder: Path, change: Callable[[Dataset], None], which: Sequence[int] | None = None) -> list[Path]:
    """Change the headers of a series in place; returns all its files in order of position."""
    files = sorted(folder.glob("*.dcm"), key=lambda p: float(dcmread(p).ImagePositionPatient[2]))
    for number in range(len(files)) if which is None else which:
        dataset = dcmread(files[number])
        change(dataset)
        dataset.save_as(files[number])
    return files


def settings_for(inputs: Sequence[Path] | Path, output: Path, **other: Any) -> RunSettings:
    """Settings of a run with phantom_ct; NIfTI counts as CT.

    These phantoms are smaller than any the network knows, and the gate withholds most of their maps: they are written
    all the same.
    """
    other["export"] = {"send_withheld": True, **other.get("export", {})}
    paths = [inputs] if isinstance(inputs, Path) else list(inputs)
    return make_settings({"inputs": paths, "output": output, "bundle": "phantom_ct", "modality": "CT", **other})


def key_of(path: Path, workspace: Path) -> str:
    """Pseudonym of the only study or refused file below `path`."""
    found = discover([path], workspace)
    (key,) = [source.key for source in found.sources] + [rejected.key for rejected in found.rejected]
    return key


def hashes(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file below a folder."""
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def leftovers(output: Path) -> list[str]:
    """Hidden files and folders that an atomic replacement must not leave, and unpacked archives."""
    hidden = [p for p in output.rglob(".*") if p.name != ".medxai"]
    unpacked = list((output / ".medxai" / "unpacked").rglob("*"))
    return [p.relative_to(output).as_posix() for p in [*hidden, *unpacked]]


def jobs(output: Path) -> list[JobRow]:
    """Rows of the worklist of an output folder."""
    return Worklist(open_database(sqlite_url(output / ".medxai" / "worklist.sqlite"))).jobs()


def record(output: Path, key: str) -> dict[str, Any]:
    """The quarantine record of a study."""
    data: dict[str, Any] = json.loads((output / "quarantine" / f"{key}.json").read_text())
    return data


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that say ``error:``."""
        return [line for line in self.err.splitlines() if line.startswith("error:")]


def command(capfd: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run the command line in this process, from its entry point to its exit code."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return Done(int(ended.value.code or 0), captured.out, captured.err)


def python(*arguments: object, **other: Any) -> Done:
    """Run another Python with these arguments from the root of the project."""
    line = [sys.executable, *[str(argument) for argument in arguments]]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT, **other)
    return Done(done.returncode, done.stdout, done.stderr)


def same_map(first: Path, second: Path) -> bool:
    """True when the exported maps on the original grids lie at the same place with the same values."""
    import nibabel

    (one,), (two,) = (list(folder.glob("nifti_gradcam_*_original.nii.gz")) for folder in (first, second))
    a, b = nibabel.load(one), nibabel.load(two)
    values = [np.asarray(image.dataobj, dtype=np.float64) for image in (a, b)]
    return np.allclose(a.affine, b.affine, atol=1e-3) and np.allclose(*values, atol=1e-5, rtol=1e-3)
