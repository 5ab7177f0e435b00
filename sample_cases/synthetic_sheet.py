"""A contact sheet of synthetic CTs: an axial and a coronal slice of each, with the truth outlined."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from medxai.files import atomic_path
from sample_cases.synthetic_ct import SyntheticCt

#: Lung window, mm a pixel of the sheet, grey levels; colours of ground glass, consolidation and nodules.
_CENTRE, _WIDTH, _PIXEL_MM, _GREYS = -500.0, 1500.0, 1.8, 48
_COLOURS = ((255, 190, 40), (255, 70, 70), (90, 200, 255))


def write_sheet(path: Path, cases: Sequence[SyntheticCt], columns: int = 6) -> Path:
    """Write one PNG; each case has its axial slice with the most truth, and a coronal slice below.

    Args:
        path: PNG to write.
        cases: all on one grid.
        columns: cases in a row.
    """
    tiles = [_tile(case, number) for number, case in enumerate(cases)]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * height, min(columns, len(tiles)) * width), dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + height, left : left + width] = tile
    picture = Image.fromarray(sheet, mode="P")
    picture.putpalette(
        [v for k in range(_GREYS) for v in [round(255 * k / (_GREYS - 1))] * 3] + list(sum(_COLOURS, ()))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)
    return path


def _tile(case: SyntheticCt, number: int) -> npt.NDArray[np.uint8]:
    spacing = np.linalg.norm(case.affine[:3, :3], axis=0)
    findings = case.truth > 0
    disease = findings & (case.truth < 3)
    weight = disease if disease.any() else case.lungs if not findings.any() else findings
    d = int(weight.sum(axis=(1, 2)).argmax())
    h = int(weight.sum(axis=(0, 2)).argmax())
    axial = _slice(case.hu[d], case.truth[d], spacing[1], spacing[2])
    coronal = _slice(case.hu[::-1, h], case.truth[::-1, h], spacing[0], spacing[2])
    tile = Image.fromarray(np.concatenate([axial, coronal]))  # indices into the palette
    text = f"{number} {case.label.replace('_', ' ')}, {case.kernel} {case.noise_hu:.0f} HU"
    ImageDraw.Draw(tile).text((3, 2), text, fill=_GREYS - 1)
    return np.asarray(tile)


def _slice(
    hu: npt.NDArray[np.float32], truth: npt.NDArray[np.uint8], row_mm: float, column_mm: float
) -> npt.NDArray[np.uint8]:
    zoom = (row_mm / _PIXEL_MM, column_mm / _PIXEL_MM)
    grey = np.clip((ndimage.zoom(hu, zoom, order=1) - _CENTRE) / _WIDTH + 0.5, 0, 1) * (_GREYS - 1)
    picture: npt.NDArray[np.uint8] = np.rint(grey).astype(np.uint8)
    for kind in range(1, 4):
        mask = ndimage.zoom((truth == kind).astype(np.float32), zoom, order=1) > 0.5
        picture[mask ^ ndimage.binary_dilation(mask)] = _GREYS + kind - 1
    return picture
