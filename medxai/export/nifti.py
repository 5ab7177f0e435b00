"""Maps as NIfTI-1 for research tools: on the original grid, on the input grid, and raw on the layer's own grid."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.export.naming import ascii_text, chosen, method_title, stem
from medxai.files import write_bytes
from medxai.ingest.slide import shows_slide
from medxai.settings import ExportOptions
from medxai.study import Affine, Explanation, Result

ROLE = "nifti"

#: LPS (DICOM) to RAS (NIfTI): the first two axes point the other way.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def applies(result: Result) -> str | None:
    """Return None for cines and for images with a place in millimetres, otherwise the reason why not."""
    volume = result.study.volume
    if shows_slide(result.study):
        return "NIfTI states a place in a scanner, and a whole slide has one on the glass"
    if volume.axes == "THW":
        return None
    if not volume.calibrated:
        return "the image has no spacing in millimetres"
    if not volume.affine[:3, 1].any() or not volume.affine[:3, 2].any():
        return "the image has no affine"
    return None


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write three files per chosen explanation: ``..._original``, ``..._input`` and ``..._raw``.

    The first two are normalised by neither maximum nor slice: they hold the map's own values, so that studies can be
    compared. The raw map is signed. Of slices that are no regular grid, which NIfTI cannot describe, the original grid
    is the straight one through them. Maps of a cine have time as the fourth axis and one slice; without a calibration
    their sizes are in pixels and the affine is unknown (code 0).
    """
    paths, stack = [], result.study.volume.stack
    for explanation in chosen(result, options):
        name = stem(ROLE, explanation)
        note = f"{method_title(explanation.method)} {explanation.class_label}"
        raw, raw_affine = raw_grid(explanation)
        original = (explanation.map, explanation.affine, "original grid")
        if stack is not None:
            original = (stack.straight(explanation.map), stack.affine, "straight grid through the slices")
        grids = (
            ("original", *original),
            ("input", explanation.input_map, explanation.input_affine, "input grid"),
            ("raw", raw, raw_affine, "layer grid, signed"),
        )
        volume = result.study.volume
        for suffix, values, affine, text in grids:
            if volume.axes == "THW":
                frames = values if suffix != "raw" else explanation.raw.reshape(-1, *explanation.raw.shape[-2:])
                known = affine if volume.calibrated and suffix != "raw" else None
                data = encode(np.moveaxis(frames, 0, -1)[None], known, f"{note}, {text}", volume.frame_seconds)
            else:
                data = encode(values, affine, f"{note}, {text}")
            paths.append(write_bytes(folder / f"{name}_{suffix}.nii.gz", data))
    return paths


def raw_grid(explanation: Explanation) -> tuple[npt.NDArray[np.float32], Affine | None]:
    """Return the raw map and its affine, index -> LPS mm.

    A single window covers the whole input grid, so its cells are the input grid divided evenly, with cell centres
    half a cell from the edge. The place of several windows is not kept: they give ``[*s, n]`` and no affine.
    """
    raw = explanation.raw
    if raw.shape[0] != 1:
        return np.ascontiguousarray(np.moveaxis(raw, 0, -1)), None
    cells = raw[0].shape
    grid = explanation.input_map.shape
    if len(cells) != len(grid):
        return raw[0], None
    factors = np.ones(3)
    factors[3 - len(cells) :] = [whole / part for whole, part in zip(grid, cells, strict=True)]
    scale = np.diag([*factors, 1.0])
    scale[:3, 3] = (factors - 1.0) / 2.0
    return raw[0], np.asarray(explanation.input_affine @ scale, dtype=np.float64)


def encode(values: npt.NDArray[np.float32], affine: Affine | None, note: str, seconds: float | None = None) -> bytes:
    """Return a gzipped NIfTI-1 file as bytes, the same for the same content.

    Args:
        values: ``[D, H, W]``, ``[H, W]`` (becomes one slice) or ``[D, H, W, n]``.
        affine: index ``(d, h, w)`` -> LPS mm; None writes an identity with codes 0 (unknown).
        note: up to 79 ASCII characters for ``descrip``.
        seconds: between the entries of the fourth axis, where that is time.

    Returns:
        Axes in the order x, y, z (the array transposed), affine in RAS mm as both sform and qform with code 1
        (scanner anatomical), units mm.
    """
    import nibabel

    volume = values[np.newaxis] if values.ndim == 2 else values
    order = (2, 1, 0, *range(3, volume.ndim))
    array = np.asfortranarray(volume.transpose(order), dtype=np.float32)
    ras = None if affine is None else _ras(affine)
    image: Any = nibabel.Nifti1Image(array, ras if ras is not None else np.eye(4))
    code = 0 if ras is None else 1
    image.set_sform(ras, code)
    image.set_qform(ras, code)
    image.header.set_xyzt_units("mm", "sec" if seconds else None)
    if seconds:
        image.header.set_zooms((*image.header.get_zooms()[:3], seconds))
    image.header["descrip"] = ascii_text(note, 79).encode()
    top = float(array.max(initial=0.0))
    image.header["cal_min"], image.header["cal_max"] = min(0.0, float(array.min(initial=0.0))), top
    # Level 6 and no time stamp: the same map gives the same bytes.
    # Level 1: on a dense float map less than half the time of level 6, and 0.3 % larger.
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def _ras(affine: Affine) -> Affine:
    """Return the affine of the axes x, y, z in RAS mm; a missing slice axis becomes the plane's normal, 1 mm thick."""
    matrix = np.array(affine, dtype=np.float64)
    if not matrix[:3, 0].any():
        normal = np.cross(matrix[:3, 2], matrix[:3, 1])
        matrix[:3, 0] = normal / np.linalg.norm(normal)
    swap = np.eye(4)[[2, 1, 0, 3]]
    return np.asarray(_LPS_TO_RAS @ matrix @ swap, dtype=np.float64)
