"""Fields of known truth that look like tissue in haematoxylin and eosin: nuclei as objects, and a point in each.

``python -m sample_cases.synthetic_nuclei --n 32 --seed 0 --out DIR`` writes pictures, ``points.csv`` and, in a folder
of their own, ``masks/`` with one number for each nucleus.

Nuclei are ellipses with chromatin, some pale and blurred; about a fifth touch another. Around some lies cytoplasm that
takes haematoxylin too, fibres of the stroma do a little, and some fields hold dark debris, so that colour alone does
not tell what is a nucleus. Stains differ from field to field.
"""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation, gaussian_filter

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

#: Mean radius in pixels, as at 0.25 micrometres per pixel.
RADIUS = 11.0
#: Share of nuclei that are placed against another; as many become touched.
AGAINST = 0.075
#: Optical density of haematoxylin, eosin and pigment in red, green and blue.
_STAINS = np.array([(0.62, 0.66, 0.30), (0.10, 0.72, 0.30), (0.45, 0.62, 0.80)])


@dataclass(frozen=True, eq=False)
class Field:
    """One field.

    Attributes:
        pixels: ``[size, size, 3]`` RGB.
        instances: ``[size, size]`` nuclei from 1 on, 0 between them.
        points: ``[n, 2]`` row and column of the mark in each nucleus, in the order of their numbers.
    """

    pixels: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int32]
    points: Float


def fields(n: int, seed: int, size: int = 128, jitter: float = 1.0, radius: float = RADIUS) -> list[Field]:
    """Draw fields; the first ones do not depend on how many.

    Args:
        n: number of fields.
        seed: of everything.
        size: pixels along each side.
        jitter: standard deviation in pixels by which a mark misses the centroid; it stays on its nucleus. Pictures and
            nuclei do not depend on it.
        radius: mean of the nuclei in pixels; everything is drawn to its scale.
    """
    return [_field(np.random.default_rng([seed, number]), size, jitter, radius) for number in range(n)]


def _field(random: np.random.Generator, size: int, jitter: float, radius: float) -> Field:
    scale = radius / 6
    instances, density = _nuclei(random, size, radius)
    stains = np.clip(_STAINS * (1 + random.normal(0, 0.10, _STAINS.shape)), 0.02, None)
    stains *= random.uniform(0.8, 1.25, (3, 1))
    fibres = _noise(random, size, tuple(scale * random.permutation((1.5, 6.0))))
    eosin = np.clip(0.32 + 0.10 * fibres + 0.06 * _noise(random, size, (10 * scale,) * 2), 0.05, None)
    haematoxylin = 0.07 + 0.035 * np.clip(fibres, 0, None) + 0.02 * _noise(random, size, (14 * scale,) * 2)
    haematoxylin = haematoxylin + _cytoplasm(random, instances, scale)
    pigment = _debris(random, instances, scale)
    inside = np.clip(density, 0, 1.2)
    eosin = eosin * (1 - 0.5 * np.clip(inside, 0, 1))
    od = np.stack([np.clip(haematoxylin, 0, None) + inside, eosin, pigment], -1) @ stains
    image = gaussian_filter(np.exp(-od), (0.5, 0.5, 0)) + random.normal(0, 0.012, (size, size, 3))
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Field(pixels, instances, _marks(random, instances, jitter))


def _nuclei(random: np.random.Generator, size: int, radius: float) -> tuple[npt.NDArray[np.int32], Float]:
    """Instances, and the density of haematoxylin in them."""
    scale = radius / 6
    instances, density = np.zeros((size, size), np.int32), np.zeros((size, size))
    wanted = round(random.uniform(0.9, 1.5) * (size / (3.8 * radius)) ** 2)
    grain = _noise(random, size, (scale, scale))
    placed: list[tuple[float, float, float]] = []
    for _ in range(wanted * 12):
        if len(placed) >= wanted:
            break
        axes = radius * random.uniform(0.75, 1.6) * np.array([1.0, random.uniform(0.45, 1.0)])
        angle = random.uniform(0, np.pi)
        beside = len(placed) > 2 and random.random() < AGAINST
        if beside:
            row, column, other = placed[random.integers(len(placed))]
            turn, apart = random.uniform(0, 2 * np.pi), 0.85 * (other + axes.mean())
            centre = np.array([row + apart * np.sin(turn), column + apart * np.cos(turn)])
        else:
            centre = random.uniform(0, size, 2)
        shape = _ellipse(size, centre, axes, angle)
        free = shape & (instances == 0)
        near = shape if beside else binary_dilation(shape, iterations=round(2 * scale))
        hidden = (instances[near] > 0).sum()
        if free.sum() < 0.9 * radius**2 or hidden > (0.3 * shape.sum() if beside else 0):
            continue
        placed.append((float(centre[0]), float(centre[1]), float(axes.mean())))
        instances[free] = len(placed)
        strength, blur = random.uniform(0.22, 0.85), scale * random.uniform(0.4, 1.5)
        soft = gaussian_filter(free.astype(float), blur)
        rim = np.clip(soft - gaussian_filter(free.astype(float), blur + 1.5 * scale), 0, None)
        density = np.maximum(density, soft * strength * (1 + 0.28 * grain) + 0.35 * strength * rim)
    return instances, density


def _cytoplasm(random: np.random.Generator, instances: npt.NDArray[np.int32], scale: float) -> Float:
    """Haematoxylin around half of the nuclei."""
    found = np.zeros(instances.shape)
    for number in range(1, int(instances.max()) + 1):
        if random.random() < 0.5:
            around = binary_dilation(instances == number, iterations=round(scale * random.uniform(2, 6)))
            found = np.maximum(found, around * random.uniform(0.06, 0.18))
    return np.asarray(gaussian_filter(found, 1.2 * scale))


def _debris(random: np.random.Generator, instances: npt.NDArray[np.int32], scale: float) -> Float:
    """Dark specks of another colour between the nuclei, in two fields of five."""
    found = np.zeros(instances.shape)
    if random.random() < 0.4:
        for _ in range(int(random.integers(3, 9))):
            axes = scale * random.uniform(1.2, 4.0, 2)
            speck = _ellipse(len(found), random.uniform(0, len(found), 2), axes, random.uniform(0, np.pi))
            found[speck & (instances == 0)] = random.uniform(0.5, 1.0)
    return np.asarray(gaussian_filter(found, 0.7 * scale))


def _marks(random: np.random.Generator, instances: npt.NDArray[np.int32], jitter: float) -> Float:
    marks = []
    for number in range(1, int(instances.max()) + 1):
        places = np.argwhere(instances == number)
        wanted = places.mean(0) + jitter * random.normal(0, 1, 2)
        nearest = places[((places - wanted) ** 2).sum(1).argmin()]
        marks.append(nearest)
    return np.array(marks, float).reshape(-1, 2)


def _ellipse(size: int, centre: Float, axes: Float, angle: float) -> Bool:
    rows, columns = np.ogrid[:size, :size]
    y, x = rows - centre[0], columns - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.asarray((along / axes[0]) ** 2 + (across / axes[1]) ** 2 <= 1)


def _noise(random: np.random.Generator, size: int, width: tuple[float, ...]) -> Float:
    """Smooth noise of deviation 1."""
    found = gaussian_filter(random.normal(0, 1, (size, size)), width, mode="wrap")
    return np.asarray(found / found.std())


def write(drawn: list[Field], folder: Path) -> Path:
    """Write ``field_NNN.png``, ``masks/field_NNN.png`` of 16 bits and ``points.csv``; returns its path."""
    from PIL import Image

    from medxai.files import write_text

    (folder / "masks").mkdir(parents=True, exist_ok=True)
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    table.writerow(("image", "row", "column"))
    for number, field in enumerate(drawn):
        name = f"field_{number:03d}.png"
        Image.fromarray(field.pixels).save(folder / name)
        Image.fromarray(field.instances.astype(np.uint16)).save(folder / "masks" / name)
        table.writerows((name, f"{row:g}", f"{column:g}") for row, column in field.points)
    return write_text(folder / "points.csv", lines.getvalue())


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_cases.synthetic_nuclei", description=__doc__)
    parser.add_argument("--n", type=int, default=32, help="fields [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128, help="pixels along each side [%(default)s]")
    parser.add_argument("--jitter", type=float, default=1.0, help="deviation of marks in pixels [%(default)s]")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args(arguments)
    print(write(fields(options.n, options.seed, options.size, options.jitter), options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
