"""Fields with a point in each nucleus, as training reads them: pictures and ``points.csv``, nothing else."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from medxai.errors import SettingsError

Points = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PointField:
    """A field to learn from.

    Attributes:
        name: of its file.
        pixels: ``[H, W, 3]`` RGB.
        points: ``[n, 2]`` row and column of the mark in every nucleus, within the field.
    """

    name: str
    pixels: npt.NDArray[np.uint8]
    points: Points


def read_fields(folder: Path, least: int) -> list[PointField]:
    """Read the pictures that ``points.csv`` (image, row, column) names, in the order of their names.

    Nothing else in the folder is opened, masks least of all.

    Args:
        folder: with pictures and ``points.csv``.
        least: pixels that a field must have along each side.

    Raises:
        SettingsError: the table or a picture is missing, or a point lies outside its picture.
    """
    table = folder / "points.csv"
    points: dict[str, list[tuple[float, float]]] = {}
    try:
        with table.open(newline="") as stream:
            for row in csv.DictReader(stream):
                points.setdefault(row["image"], []).append((float(row["row"]), float(row["column"])))
    except (OSError, KeyError, TypeError, ValueError) as error:
        msg = f"{table.name} is missing or not a table of image, row, column"
        raise SettingsError(msg, study=folder.name) from error
    if not points:
        raise SettingsError("points.csv names no picture", study=folder.name)
    return [_read(folder, name, np.array(points[name]), least) for name in sorted(points)]


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """``[H, W, 3]`` RGB.

    Raises:
        SettingsError: there is no such picture.
    """
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except OSError as error:
        msg = f"{path.name} is missing or not a picture"
        raise SettingsError(msg, study=path.parent.name) from error


def _read(folder: Path, name: str, points: Points, least: int) -> PointField:
    pixels = read_picture(folder / name)
    size = pixels.shape[:2]
    if min(size) < least:
        msg = f"{name} has {size[0]} x {size[1]} pixels; at least {least} are cut out, so give a smaller crop"
        raise SettingsError(msg, study=folder.name)
    if not np.isfinite(points).all() or (np.rint(points) < 0).any() or (np.rint(points) >= size).any():
        msg = f"a point of {name} lies outside its {size[0]} x {size[1]} pixels"
        raise SettingsError(msg, study=folder.name)
    return PointField(name, pixels, points)
