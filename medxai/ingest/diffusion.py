"""Diffusion weighting of an image as its scanner states it: standard attributes first, then the vendors' own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

#: GE writes b-values with a large offset where a sequence marks them (1e9 + b).
_GE_OFFSET = 100_000


@dataclass(frozen=True)
class Diffusion:
    """Diffusion weighting.

    Attributes:
        b: b-value in s/mm2.
        direction: unit vector in the patient (LPS); None where there is none, as for b = 0 and trace images.
    """

    b: float
    direction: tuple[float, float, float] | None = None


def read_diffusion(header: Dataset) -> Diffusion | None:
    """Diffusion weighting of a single-frame header; None where it states none.

    Reads DiffusionBValue and DiffusionGradientOrientation (PS3.3 C.8.13.5.9), and the private elements of Siemens
    (0019,100C/E), GE (0043,1039 and 0019,10BB-BD), Philips (2001,1003 and 2005,10B0-B2) and United Imaging
    (0065,1009/37), each only where the block is the vendor's. United Imaging's directions lie along the columns, rows
    and normal of the image (checked with dcm2niix) and are turned to the patient. GE's are in the scanner's frame and
    are left out.
    """
    b = _number(header.get("DiffusionBValue", None))
    direction = _vector(header.get("DiffusionGradientOrientation", None))
    if b is None:
        b, direction = _private(header)
    if b is None or b < 0:
        return None
    return Diffusion(b, direction if b > 0 else None)


def _private(header: Dataset) -> tuple[float | None, tuple[float, float, float] | None]:
    if (siemens := _block(header, 0x0019, "SIEMENS MR HEADER")) is not None:
        return _number(siemens(0x0C)), _vector(siemens(0x0E))
    if (ge := _block(header, 0x0043, "GEMS_PARM_01")) is not None:
        values = ge(0x39)
        first = values[0] if isinstance(values, (list, tuple)) or hasattr(values, "append") else values
        b = _number(first)
        return (None if b is None else b % _GE_OFFSET), None
    if (philips := _block(header, 0x2001, "Philips Imaging DD 001")) is not None:
        b = _number(philips(0x03))
        more = _block(header, 0x2005, "Philips MR Imaging DD 001")
        return b, _vector([more(0xB0), more(0xB1), more(0xB2)]) if more is not None else None
    if (imaging := _block(header, 0x0065, "Image Private Header")) is not None:
        return _number(imaging(0x09)), _of_image(_vector(imaging(0x37)), header)
    return None, None


def _of_image(direction: tuple[float, float, float] | None, header: Dataset) -> tuple[float, float, float] | None:
    """A direction along columns, rows and normal of the image, in the patient; None without an orientation."""
    try:
        row, column = np.array([float(v) for v in header.ImageOrientationPatient]).reshape(2, 3)
    except (AttributeError, TypeError, ValueError):
        return None
    if direction is None:
        return None
    return _vector(direction[0] * row + direction[1] * column + direction[2] * np.cross(row, column))


def _block(header: Dataset, group: int, creator: str) -> Any:
    """Reader of the elements of a private block by their last byte; None where the creator has none."""
    try:
        block = header.private_block(group, creator)
    except KeyError:
        return None

    def read(element: int) -> Any:
        try:
            return block[element].value
        except KeyError:
            return None

    return read


def _number(value: Any) -> float | None:
    """A finite number, whether the element was stored with its own representation or as unknown bytes."""
    if isinstance(value, bytes):
        value = np.frombuffer(value, "<f8")[0] if len(value) == 8 else value.decode("ascii", "ignore").strip("\0 ")
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _vector(value: Any) -> tuple[float, float, float] | None:
    if isinstance(value, bytes):
        value = np.frombuffer(value, "<f8").tolist() if len(value) == 24 else None
    try:
        x, y, z = (float(v) for v in value)
    except (TypeError, ValueError):
        return None
    length = float(np.linalg.norm((x, y, z)))
    if not 0.5 < length < 2:  # a zero vector says that there is no direction
        return None
    return (x / length, y / length, z / length)
