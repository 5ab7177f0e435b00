"""Tissue that is known, found: strong, pale, immunohistochemical; none is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import zoom

from medxai.errors import IngestError
from medxai.ingest.slides.open import open_slide
from medxai.ingest.slides.tissue import LEAST_AREA_UM2, Tissue, find_tissue, otsu
from tests import stained
from tests.tools import require_data

SHAPE = (600, 840)
MPP = 2.0


def glass(shape: tuple[int, int] = SHAPE, seed: int = 0, white: float = 243.0) -> npt.NDArray[np.float64]:
    """Uneven light and noise, as on bare glass."""
    draw = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.linspace(-1, 1, shape[0]), np.linspace(-1, 1, shape[1]), indexing="ij")
    light = white + 1.5 * rows - 1.0 * columns
    return np.asarray(light[..., None] + draw.normal(0, 1.5, (*shape, 3)))


def ellipse(centre: tuple[float, float], axes: tuple[float, float]) -> npt.NDArray[np.bool_]:
    rows, columns = np.indices(SHAPE)
    return np.asarray(((rows - centre[0]) / axes[0]) ** 2 + ((columns - centre[1]) / axes[1]) ** 2 < 1)


def found(picture: npt.NDArray[np.float64], folder: Path) -> Tissue:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8)).save(folder / "a.png")
    with open_slide(folder / "a.png", mpp=MPP) as slide:
        return find_tissue(slide)


def overlap(tissue: Tissue, truth: npt.NDArray[np.bool_]) -> float:
    """Dice's coefficient at the resolution of the truth."""
    factor = tissue.mpp / MPP
    mask = zoom(tissue.mask, factor, order=0)[: truth.shape[0], : truth.shape[1]]
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


@pytest.mark.parametrize(
    ("vectors", "strength", "name"),
    [(stained.HE, 1.0, "he"), (stained.HE, 0.35, "pale"), (stained.HDAB, 0.6, "ihc"),
     (stained.HDAB * [[1, 0]] + stained.HDAB[:, :1] * [[0, 1]], 0.4, "counterstain alone")],
)  # fmt: skip
def test_tissue_of_every_stain(tmp_path: Path, vectors: stained.Amounts, strength: float, name: str) -> None:
    truth = ellipse((260, 380), (180, 290))
    amounts = stained.amounts(SHAPE, seed=3, glass=0.0) * strength
    light = 10.0 ** -(amounts @ stained.unit(vectors).T)
    picture = np.where(truth[..., None], glass() * light, glass())
    tissue = found(picture, tmp_path)
    assert overlap(tissue, truth) > 0.97, name
    assert tissue.share == pytest.approx(truth.mean(), rel=0.05)
    assert tissue.area_mm2 == pytest.approx(truth.sum() * (MPP / 1000) ** 2, rel=0.05)
    assert tissue.glass == pytest.approx([243] * 3, abs=2)


def test_dark_ink_does_not_hide_pale_tissue(tmp_path: Path) -> None:
    truth = ellipse((300, 420), (150, 200))
    light = 10.0 ** -(0.35 * stained.amounts(SHAPE, seed=3, glass=0.0) @ stained.unit(stained.HE).T)
    picture = np.where(truth[..., None], glass() * light, glass())
    ink = np.zeros(SHAPE, bool)
    ink[20:60, 100:700] = True
    picture[ink] = (20, 20, 25)
    assert overlap(found(picture, tmp_path), truth | ink) > 0.93


def test_dust_and_small_holes_are_cleaned_in_micrometres(tmp_path: Path) -> None:
    """A speck of 60 micrometres goes, a hole of as much is filled, a hole of 400 stays."""
    truth = ellipse((300, 420), (220, 300))
    big_hole = ellipse((300, 420), (100, 100))
    picture = np.where((truth & ~big_hole)[..., None], glass() * 0.6, glass())
    for hole in (ellipse((150, 420), (15, 15)), ellipse((450, 500), (15, 15))):
        picture[hole] = glass()[hole]
    speck = ellipse((40, 60), (15, 15))
    picture[speck] *= 0.5
    assert 15**2 * np.pi * MPP**2 < LEAST_AREA_UM2
    tissue = found(picture, tmp_path)
    factor = round(tissue.mpp / MPP)
    assert overlap(tissue, truth & ~big_hole) > 0.96
    assert not tissue.mask[40 // factor, 60 // factor]
    assert tissue.mask[150 // factor, 420 // factor]
    assert not tissue.mask[300 // factor, 420 // factor]


def test_what_was_not_scanned_is_no_tissue(tmp_path: Path) -> None:
    truth = ellipse((300, 500), (150, 200))
    picture = np.where(truth[..., None], glass() * 0.6, glass())
    picture[:, :120] = 0
    assert overlap(found(picture, tmp_path), truth) > 0.96


@pytest.mark.parametrize("noise", [0.0, 1.5, 6.0])
def test_an_empty_slide_is_refused(tmp_path: Path, noise: float) -> None:
    picture = 240 + np.random.default_rng(1).normal(0, 1, (*SHAPE, 3)) * noise
    with pytest.raises(IngestError, match=r"a.png: no tissue on 1.7 x 1.2 mm: .* the slide is empty"):
        found(picture, tmp_path)


def test_tissue_that_leaves_no_glass(tmp_path: Path) -> None:
    light = 10.0 ** -(stained.amounts(SHAPE, seed=3, glass=0.0) @ stained.unit(stained.HE).T)
    assert found(glass() * light, tmp_path).share > 0.99


def test_otsu_parts_two_groups() -> None:
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.normal(1, 0.2, 900), draw.normal(3, 0.3, 300)]).astype(np.float32)
    assert 1.6 < otsu(values) < 2.4
    assert otsu(np.full(5, 2.0, np.float32)) == 2.0
    assert otsu(np.repeat(np.float32([0, 1]), 50)) == pytest.approx(0.5, abs=0.02)


@pytest.mark.data
def test_tissue_of_a_real_slide() -> None:
    with open_slide(require_data("wsi", "small_HE.svs")) as slide:
        tissue = find_tissue(slide)
    assert 0.35 < tissue.share < 0.5
    assert tissue.glass.min() > 235
    assert not tissue.mask[80:150, :20].any()
    assert tissue.mask[tissue.mask.shape[0] // 2, tissue.mask.shape[1] // 2]
