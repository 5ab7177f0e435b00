"""What a slice looks like on a screen: window, orientation, proportions. No patient data enters here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.export.placement import letters
from medxai.study import Volume

if TYPE_CHECKING:
    from pydicom import Dataset

UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """How to turn a stored slice ``[H, W]`` into a displayed one, and what is where.

    Attributes:
        transpose: swap rows and columns first.
        flip_rows: then turn upside down.
        flip_columns: then mirror.
        left: letter at the left edge of the picture, as ``R``; empty when unknown.
        right: at the right edge.
        top: at the top.
        bottom: at the bottom.
        row_mm: height of a displayed pixel in mm; 1 when unknown.
        column_mm: width of a displayed pixel.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    left: str = ""
    right: str = ""
    top: str = ""
    bottom: str = ""
    row_mm: float = 1.0
    column_mm: float = 1.0

    def apply(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return ``[H, W]`` or ``[H, W, 3]`` in display orientation."""
        out = np.swapaxes(plane, 0, 1) if self.transpose else plane
        out = out[::-1] if self.flip_rows else out
        return out[:, ::-1] if self.flip_columns else out

    def size(self, rows: int, columns: int, longest: int) -> tuple[int, int]:
        """Return the (width, height) in pixels that fits `longest` in true proportions.

        Args:
            rows: displayed rows.
            columns: displayed columns.
            longest: longest side wanted; never exceeded.
        """
        height, width = rows * self.row_mm, columns * self.column_mm
        scale = longest / max(height, width)
        return max(1, round(width * scale)), max(1, round(height * scale))


def frames(volume: Volume) -> int:
    """Return the number of slices or time points; 1 for a still."""
    return 1 if volume.axes == "HW" else volume.shape[0]


def plane(volume: Volume, values: npt.NDArray[Any], index: int) -> npt.NDArray[Any]:
    """Return plane `index` of an array ``[*S]`` on the grid of `volume`, as ``[H, W]``."""
    return values if volume.axes == "HW" else values[index]


def view_of(volume: Volume, *, as_stored: bool = False) -> View:
    """Return the conventional view of the slices of a volume.

    Axial slices are seen from the feet with the patient's front up, coronal ones from the front, sagittal ones
    from the left with the front at the left; stored DICOM slices already are, NIfTI ones often are not. Images
    without a place in the patient stay as stored and carry no letters.

    Args:
        volume: the image.
        as_stored: keep rows and columns, only find letters and proportions.
    """
    _, row_mm, column_mm = volume.spacing
    known = volume.calibrated and row_mm > 0 and column_mm > 0
    row_mm, column_mm = (row_mm, column_mm) if known else (1.0, 1.0)
    if volume.axes != "DHW" or not volume.calibrated or not volume.affine[:3, 0].any():
        return View(row_mm=row_mm, column_mm=column_mm)
    down, right = volume.affine[:3, 1], volume.affine[:3, 2]
    normal = int(np.abs(np.cross(right, down)).argmax())
    # Directions of LPS space that a screen shows to the right and downwards, by the plane's normal axis.
    want_right, want_down = {0: ((0, 1, 0), (0, 0, -1)), 1: ((1, 0, 0), (0, 0, -1)), 2: ((1, 0, 0), (0, 1, 0))}[normal]
    transpose = False
    if not as_stored:
        transpose = abs(float(right @ want_right)) / column_mm < abs(float(down @ want_right)) / row_mm
    if transpose:
        down, right, row_mm, column_mm = right, down, column_mm, row_mm
    flip_columns = not as_stored and float(right @ want_right) < 0
    flip_rows = not as_stored and float(down @ want_down) < 0
    right = -right if flip_columns else right
    down = -down if flip_rows else down
    return View(
        transpose, flip_rows, flip_columns,
        letters(-right), letters(right), letters(-down), letters(down), row_mm, column_mm,
    )  # fmt: skip


def window_of(volume: Volume, model: tuple[float, float] | None = None) -> tuple[float, float]:
    """Return the darkest and brightest grey value shown.

    The window of the header (PS3.3 C.11.2.1.2) when there is one that fits; of several the one closest to what the
    model saw, so that a lung model's map lies on a lung window. Then the model's own window, 0..255 for ultrasound,
    otherwise the 1st and 99th percentile of the values above the minimum, which is usually air or padding.

    Args:
        volume: the image.
        model: grey values between which the model tells values apart, or None.
    """
    header = _header_window(volume, model)
    if header is not None:
        return header
    if model is not None:
        return model
    if volume.modality == "US" and 1.0 < float(volume.pixels.max(initial=0.0)) <= 255.0:
        return 0.0, 255.0
    sample = volume.pixels[0].ravel()[:: max(1, volume.pixels[0].size // 1_000_000)]
    inside = sample[sample > sample.min()] if sample.size else sample
    if inside.size == 0:
        value = float(sample[0]) if sample.size else 0.0
        return value, value + 1.0
    low, high = (float(v) for v in np.percentile(inside, (1.0, 99.0)))
    return (low, high) if high > low else (low, low + 1.0)


def _header_window(volume: Volume, model: tuple[float, float] | None) -> tuple[float, float] | None:
    if not volume.source:
        return None
    header = volume.source[len(volume.source) // 2]
    if header.get("PhotometricInterpretation", "MONOCHROME2") != "MONOCHROME2":
        # Inverted at ingestion, or colour: the stored window speaks of other numbers.
        return None
    item = _window_item(header)
    try:
        centers, widths = (_numbers(item[keyword].value) for keyword in ("WindowCenter", "WindowWidth"))
        pairs = [(c - w / 2.0, c + w / 2.0) for c, w in zip(centers, widths, strict=True) if w > 1]
    except (KeyError, TypeError, ValueError):
        return None
    if not pairs:
        return None
    low, high = pairs[0] if model is None else max(pairs, key=lambda pair: _likeness(pair, model))
    sample = volume.pixels[0].ravel()[:: max(1, volume.pixels[0].size // 200_000)]
    # A window that shows next to nothing of the pixels is not meant for them.
    inside = float(np.mean((sample > low) & (sample < high))) if sample.size else 0.0
    return (low, high) if inside > 0.01 else None


def _window_item(header: Dataset) -> Dataset:
    if "WindowCenter" in header:
        return header
    groups = [*header.get("SharedFunctionalGroupsSequence", []), *header.get("PerFrameFunctionalGroupsSequence", [])]
    for group in groups:
        for item in group.get("FrameVOILUTSequence", []):
            return item
    return header


def _numbers(value: Any) -> list[float]:
    return [float(value)] if isinstance(value, (int, float, str)) else [float(v) for v in value]


def _likeness(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Overlap of two windows over their union."""
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0]))


def rgb_plane(volume: Volume, index: int, window: tuple[float, float]) -> UInt8:
    """Return slice `index` as ``[H, W, 3]`` RGB: colour as it is (0..255), grey through `window`.

    Images with a number of channels other than three show the first one.
    """
    if volume.pixels.shape[0] == 3:
        stacked = np.stack([plane(volume, channel, index) for channel in volume.pixels], axis=-1)
        return np.asarray(np.rint(np.clip(stacked, 0, 255)), dtype=np.uint8)
    low, high = window
    grey = (plane(volume, volume.pixels[0], index) - np.float32(low)) * np.float32(255.0 / (high - low))
    return np.repeat(np.rint(np.clip(grey, 0, 255)).astype(np.uint8)[..., np.newaxis], 3, axis=-1)


def evidence_curve(volume: Volume, values: Float) -> Float:
    """Return the maximum of the normalised map in each slice or frame, ``[n]`` in 0..1."""
    planes = values.reshape(1, -1) if volume.axes == "HW" else values.reshape(values.shape[0], -1)
    return np.asarray(planes.max(axis=1), dtype=np.float32)


def spread(curve: Float, count: int) -> list[int]:
    """Return up to `count` slice indices, ascending, that show the evidence: its peak and its extent.

    Args:
        curve: evidence per slice.
        count: slices wanted.
    """
    total = len(curve)
    if total <= count:
        return list(range(total))
    seen = np.flatnonzero(curve >= 0.2) if float(curve.max(initial=0.0)) > 0 else np.arange(total)
    peak = int(curve.argmax())
    if len(seen) < count:
        # Less evidence than room: fill up with its neighbours, nearest to the peak first.
        order = sorted(range(total), key=lambda i: (0 if curve[i] >= 0.2 else 1, abs(i - peak), i))
        return sorted(order[:count])
    picks = {int(seen[round(v)]) for v in np.linspace(0, len(seen) - 1, count)}
    if peak not in picks:
        picks.discard(min(picks, key=lambda i: abs(i - peak)))
        picks.add(peak)
    return sorted(picks)
