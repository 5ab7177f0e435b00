"""A benchmark of synthetic chest CTs: normal, ground glass or consolidation, from subtle to plain.

``python -m sample_cases.synthetic_ct --n 6 --seed 0 --out DIR`` writes cases with their truth.

Everything about the patient is drawn in millimetres around the centre of the lungs, so that the same seed on another
voxel grid is the same patient; noise belongs to the scan and thus to the grid. Index axes ``(d, h, w)`` point to
superior, posterior and left before the optional rotation; the affine maps them to LPS mm.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sample_cases.shapes import Affine, FloatArray, Frame
from sample_cases.synthetic_anatomy import Anatomy, draw_airways, draw_anatomy, draw_body, draw_lung
from sample_cases.synthetic_findings import Region, draw_regions, place_regions
from sample_cases.synthetic_parenchyma import Distractors, draw_distractors, draw_parenchyma
from sample_cases.synthetic_scan import draw_metal, draw_scanner, reconstruct

LABELS = ("normal", "ground_glass", "consolidation")
TRUTH = {"ground_glass": 1, "consolidation": 2, "nodule": 3}

#: Slices are drawn this thin and averaged; voxels are drawn in slabs of at most so many.
_THIN_MM, _SLAB_VOXELS = 3.2, 3_000_000


@dataclass(frozen=True, eq=False)
class Finding:
    """One finding of the truth.

    Attributes:
        kind: ``ground_glass``, ``consolidation`` or ``nodule``.
        centre_mm: centre of gravity, LPS mm.
        volume_ml: in the whole patient, also where the field of view cuts it.
    """

    kind: str
    centre_mm: tuple[float, float, float]
    volume_ml: float


@dataclass(frozen=True, eq=False)
class SyntheticCt:
    """A synthetic chest CT with its truth.

    Attributes:
        hu: ``[D, H, W]`` float32 with whole Hounsfield units, at least -1024.
        affine: index ``(d, h, w)`` -> LPS mm.
        label: one of `LABELS`, by what the field of view shows: consolidation outweighs ground glass.
        lungs: bool ``[D, H, W]``, the space of the lungs with the findings and vessels in it.
        findings: those that the field of view shows. A rim of ground glass is a finding of its own.
        truth: uint8 ``[D, H, W]``, 0 none, 1 ground glass, 2 consolidation, 3 nodule.
        kernel: of the reconstruction.
        noise_hu: standard deviation of the noise.
    """

    hu: FloatArray
    affine: Affine
    label: str
    lungs: npt.NDArray[np.bool_]
    findings: tuple[Finding, ...]
    truth: npt.NDArray[np.uint8]
    kernel: str
    noise_hu: float


def synthetic_ct(
    seed: int,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    label: str | None = None,
    *,
    kernel: str | None = None,
    noise_hu: float | None = None,
    contrast_hu: float = 0.0,
    metal: bool = False,
    offset_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    tilt_degrees: float = 0.0,
) -> SyntheticCt:
    """Draw one patient.

    Args:
        seed: decides everything; the same seed gives the same bytes. Another label leaves the anatomy as it is.
        shape: voxels ``(D, H, W)``.
        spacing: mm between voxel centres along them.
        label: one of `LABELS`; None draws one.
        kernel: ``soft``, ``standard`` or ``sharp``; None draws one.
        noise_hu: standard deviation of the noise; None draws one, 8 to 60 HU.
        contrast_hu: density of heart, aorta and pulmonary vessels after contrast agent; 0 for none.
        metal: put a pacemaker into the chest wall.
        offset_mm: centre of the field of view ``(z, y, x)`` relative to the centre of the lungs.
        origin_mm: LPS position of the centre of the lungs.
        tilt_degrees: rotation of the grid about the x axis, then half of it about the y axis.

    Returns:
        The volume with its truth.

    Raises:
        ValueError: an unknown label or kernel.
    """
    if label is not None and label not in LABELS:
        msg = f"unknown label {label!r}; known are {', '.join(LABELS)}"
        raise ValueError(msg)
    wanted = label or LABELS[int(np.random.default_rng([seed, 31]).integers(3))]
    anatomy = draw_anatomy(np.random.default_rng([seed, 32]))
    distractors = draw_distractors(np.random.default_rng([seed, 33]))
    regions = place_regions(anatomy, wanted, np.random.default_rng([seed, 34]))
    usual_kernel, usual_noise = draw_scanner(np.random.default_rng([seed, 35]))
    kernel, noise_hu = kernel or usual_kernel, usual_noise if noise_hu is None else noise_hu

    frame = Frame.centred(shape, spacing, offset_mm)
    hu = np.empty(shape, dtype=np.float32)
    lungs, truth = np.empty(shape, dtype=np.bool_), np.empty(shape, dtype=np.uint8)
    for part, thin, repeats in _slabs(frame):
        drawn = _draw_slab(thin, anatomy, regions, distractors, contrast_hu, metal)
        hu[part], lung, *covers = (_mean(field, repeats) for field in drawn)
        lungs[part] = lung > 0.5
        truth[part] = np.where(covers[0] + covers[1] > 0.5, np.where(covers[1] > 0.5, 2, 1), 0)
        truth[part][covers[2] > 0.5] = 3
        truth[part][~lungs[part]] = 0
    reconstruct(hu, frame, kernel, noise_hu, np.random.default_rng([seed, 36]))
    np.maximum(np.rint(hu, out=hu), -1024, out=hu)
    affine = frame.affine(origin_mm, offset_mm, tilt_degrees)
    findings = tuple(_finding(r, frame, affine) for r in regions if _is_shown(r, frame, truth))
    kinds = {finding.kind for finding in findings}
    shown = next((name for name in ("consolidation", "ground_glass") if name in kinds), "normal")
    return SyntheticCt(hu, affine, shown, lungs, findings, truth, kernel, noise_hu)


def benchmark(
    n: int, seed: int, shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> Iterator[SyntheticCt]:
    """Draw `n` cases; each three in a row hold every label once, in random order.

    Args:
        n: number of cases. Case `i` is the same whatever `n` is.
        seed: of the benchmark.
        shape: voxels ``(D, H, W)``.
        spacing: mm along them.

    Yields:
        The cases, drawn when they are asked for.
    """
    for index in range(n):
        case_seed, label = benchmark_case(index, seed)
        yield synthetic_ct(case_seed, shape, spacing, label)


def benchmark_case(index: int, seed: int) -> tuple[int, str]:
    """Seed and label of case `index` of a benchmark, to draw it alone or on another grid."""
    order = np.random.default_rng([seed, 41, index // 3]).permutation(3)
    case_seed = int(np.random.SeedSequence([seed, 42, index]).generate_state(1)[0])
    return case_seed, LABELS[order[index % 3]]


def _slabs(frame: Frame) -> Iterator[tuple[slice, Frame, int]]:
    """Ranges of slices, with the thin slices they are averaged from, and how many make one."""
    depth, height, width = frame.shape
    repeats = int(np.clip(np.ceil(frame.spacing[0] / _THIN_MM), 1, 6))
    count = max(1, _SLAB_VOXELS // (height * width * repeats))
    shifts = ((np.arange(repeats) - (repeats - 1) / 2) / repeats * frame.spacing[0]).astype(np.float32)
    spacing = (frame.spacing[0] / repeats, *frame.spacing[1:])
    for start in range(0, depth, count):
        part = slice(start, min(start + count, depth))
        z = (frame.z[part, 0, 0][:, None] + shifts[None, :]).reshape(-1, 1, 1)
        yield part, Frame((z.size, height, width), spacing, z, frame.y, frame.x), repeats


def _mean(field: FloatArray, repeats: int) -> FloatArray:
    mean: FloatArray = field.reshape(-1, repeats, *field.shape[1:]).mean(axis=1) if repeats > 1 else field
    return mean


def _draw_slab(
    frame: Frame,
    anatomy: Anatomy,
    regions: list[Region],
    distractors: Distractors,
    contrast_hu: float,
    metal: bool,
) -> tuple[FloatArray, ...]:
    """HU, and coverage 0..1 of lungs, ground glass, consolidation and nodules, all ``[D, H, W]``."""
    lung, outside = draw_lung(frame, anatomy)
    hu = draw_body(frame, anatomy, outside, contrast_hu)
    covers = np.zeros((3, *frame.shape), dtype=np.float32)
    inside = np.argwhere(lung > 0)
    if inside.size:
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
        box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
        part = frame.part(box)
        air = draw_parenchyma(part, anatomy, distractors, lung[box])
        covers[:, box[0], box[1], box[2]] = draw_regions(air, part, anatomy, regions, distractors, contrast_hu)
        hu[box] += lung[box] * (air - hu[box])
    draw_airways(hu, frame, anatomy)
    if metal:
        lung *= 1 - draw_metal(hu, frame, anatomy)
    return hu, lung, *covers


def _is_shown(region: Region, frame: Frame, truth: npt.NDArray[np.uint8]) -> bool:
    return bool((truth[region.level.box(frame)] == TRUTH[region.kind]).any())


def _finding(region: Region, frame: Frame, affine: Affine) -> Finding:
    x, y, z = (float(v) for v in (affine @ np.array([*frame.index_of(region.centre), 1.0]))[:3])
    return Finding(region.kind, (x, y, z), region.volume_ml)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and write the cases."""
    parser = argparse.ArgumentParser(
        prog="python -m sample_cases.synthetic_ct", description="Write synthetic chest CTs with their truth."
    )
    parser.add_argument("--n", type=int, default=6, help="number of cases (default 6)")
    parser.add_argument("--seed", type=int, default=0, help="of the benchmark (default 0)")
    parser.add_argument("--out", type=Path, help="folder for case_000.nii.gz, its lungs and truth, and truth.csv")
    axes = ("D", "H", "W")
    parser.add_argument(
        "--shape", type=int, nargs=3, metavar=axes, default=(32, 128, 128), help="voxels (default 32 128 128)"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=axes, default=(8.0, 2.8, 2.8), help="mm (default 8 2.8 2.8)"
    )
    parser.add_argument("--dicom", action="store_true", help="write DICOM series as well, below OUT/dicom")
    parser.add_argument("--sheet", type=Path, help="write a picture of the cases with the truth outlined")
    options = parser.parse_args(arguments)
    if options.out is None and options.sheet is None:
        parser.error("nothing to write: give --out or --sheet")
    from sample_cases.synthetic_write import write_benchmark

    write_benchmark(
        options.n,
        options.seed,
        tuple(options.shape),
        tuple(options.spacing),
        out=options.out,
        dicom=options.dicom,
        sheet=options.sheet,
    )


if __name__ == "__main__":
    main()
