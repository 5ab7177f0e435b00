"""Tiles of known truth that look like tissue stained for cytokeratin: three patterns, masks of what makes them.

``python -m sample_cases.synthetic_textures --n 90 --seed 0 --out DIR`` writes tiles, masks and ``labels.csv``.

Every tile shows pale stroma with some blue nuclei. `non_tumour` has nothing else, `mild` has large brown nests,
`infiltrative` small brown dots, scattered over one stretch of the tile. Brightness and colour differ from patient to
patient and from tile to tile, so that colour alone does not tell the patterns apart.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

#: In the order of their labels.
CLASSES = ("non_tumour", "mild", "infiltrative")
Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_STROMA, _NUCLEUS, _BROWN = (np.array(c) for c in ((0.80, 0.78, 0.83), (0.42, 0.46, 0.66), (0.50, 0.33, 0.20)))


@dataclass(frozen=True, eq=False)
class Texture:
    """One tile.

    Attributes:
        pixels: ``[size, size, 3]`` RGB.
        mask: ``[size, size]`` the nests or dots; nothing in `non_tumour`.
        label: index in `CLASSES`.
        patient: who shares its stain.
    """

    pixels: npt.NDArray[np.uint8]
    mask: Bool
    label: int
    patient: str


def textures(n: int, seed: int, size: int = 128, patients: int = 15, jitter: float = 1.0) -> list[Texture]:
    """Draw tiles, all patterns equally often and from every patient.

    Args:
        n: number of tiles.
        seed: of everything.
        size: pixels along each side.
        patients: who are told apart; each has a stain of its own.
        jitter: strength of what differs in colour; 0 for none.
    """
    stains = np.random.default_rng([seed, 1]).normal(0, 1, (patients, 6)) * jitter
    found = []
    for number in range(n):
        random = np.random.default_rng([seed, 2, number])
        label, patient = number % len(CLASSES), (number // len(CLASSES)) % patients
        image, mask = _drawn(label, size, random)
        stain = 0.6 * stains[patient] + 0.6 * jitter * random.normal(0, 1, 6)
        image = np.clip(image, 0, 1) ** np.exp(0.12 * stain[:3]) * (1 + 0.05 * stain[3:])
        image += random.normal(0, 0.012, image.shape)
        pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        found.append(Texture(pixels, mask, label, f"patient_{patient:02d}"))
    return found


def _drawn(label: int, size: int, random: np.random.Generator) -> tuple[Float, Bool]:
    """Image ``[size, size, 3]`` in 0..1 before the stain, and the mask of its nests or dots."""
    fibres = gaussian_filter(random.normal(0, 1, (size, size)), (1.5, 4.0), mode="wrap")
    image = _STROMA + 0.04 * (fibres / fibres.std())[..., None]
    mask = np.zeros((size, size), bool)
    if label == 1:
        for _ in range(random.integers(1, 4)):
            mask |= _blob(size, random.uniform(0.2, 0.8, 2) * size, random.uniform(0.13, 0.24) * size, random)
    if label == 2:
        centre = random.uniform(0.25, 0.75, 2) * size
        for place in random.normal(centre, 0.13 * size, (random.integers(22, 36), 2)):
            mask |= _disc(size, place, random.uniform(1.8, 3.4))
    image = _painted(image, mask, _BROWN, random)
    nuclei = np.zeros_like(mask)
    for place in random.uniform(0, size, (random.integers(3, 10), 2)):
        nuclei |= _disc(size, place, random.uniform(2.0, 3.4))
    return _painted(image, nuclei & ~mask, _NUCLEUS, random), mask


def _painted(image: Float, where: Bool, colour: Float, random: np.random.Generator) -> Float:
    soft = gaussian_filter(where.astype(float), 0.7)[..., None] * random.uniform(0.75, 1.0)
    grain = 0.05 * gaussian_filter(random.normal(0, 1, where.shape), 1.0)[..., None]
    painted: Float = image * (1 - soft) + (colour + grain) * soft
    return painted


def _disc(size: int, centre: Float, radius: float) -> Bool:
    rows, columns = np.ogrid[:size, :size]
    return np.asarray((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2)


def _blob(size: int, centre: Float, radius: float, random: np.random.Generator) -> Bool:
    """A disc whose outline wavers by a quarter."""
    rows, columns = np.ogrid[:size, :size]
    angle = np.arctan2(rows - centre[0], columns - centre[1])
    waves = sum(random.normal(0, 0.1) * np.cos(k * angle + random.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    return np.asarray(np.hypot(rows - centre[0], columns - centre[1]) <= radius * (1 + waves))


def write(drawn: list[Texture], folder: Path) -> Path:
    """Write tiles and masks as PNG and ``labels.csv``, as `medxai train dceac --data` reads them."""
    from PIL import Image

    from medxai.learn.cohort_table import CohortRow, write_table

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, texture in enumerate(drawn):
        name = f"{texture.patient}_{number:04d}"
        Image.fromarray(texture.pixels).save(folder / f"{name}.png")
        Image.fromarray(texture.mask.astype(np.uint8) * 255).save(folder / f"{name}_mask.png")
        rows.append(CohortRow(f"{name}.png", CLASSES[texture.label], f"{name}_mask.png", texture.patient))
    return write_table(folder / "labels.csv", rows)


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_cases.synthetic_textures", description=__doc__)
    parser.add_argument("--n", type=int, default=90, help="tiles [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=128, help="pixels along each side [%(default)s]")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    options = parser.parse_args(arguments)
    print(write(textures(options.n, options.seed, options.size), options.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
