"""Blur, ink and folds that were put in are found; what is good is left alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from medxai.ingest.slides.open import open_slide
from medxai.ingest.slides.optical_density import optical_density
from medxai.ingest.slides.quality import BLURRED, Quality, judge, measure_tile
from medxai.ingest.slides.survey import survey
from medxai.ingest.slides.tiles import tile_grid
from medxai.ingest.slides.tissue import Tissue, find_tissue
from tests import stained
from tests.tools import require_data

MPP = 0.5
WHITE = 244.0
Colours = npt.NDArray[np.uint8]


def tile(seed: int, vectors: stained.Amounts = stained.HE, strength: float = 1.0) -> Colours:
    return stained.colours(strength * stained.amounts((256, 288), seed, glass=0.1), vectors, WHITE)


def slide_of(tiles: list[Colours]) -> Tissue:
    """What is known of the slide that these tiles are of."""
    density = np.stack([gaussian_filter(optical_density(t, WHITE).mean(-1), 20) for t in tiles])
    density = density[density > 0.06]
    return Tissue(
        mask=np.ones((8, 9), bool), mpp=16.0, share=1.0, area_mm2=1.0, glass=np.full(3, WHITE, np.float32),
        threshold=0.06, density=float(np.median(density)), dense=float(np.percentile(density, 95)),
        thumbnail=np.zeros((8, 9, 3), np.uint8),
    )  # fmt: skip


def quality(tiles: list[Colours], tissue: Tissue) -> Quality:
    return judge(measure_tile(t, MPP, tissue) for t in tiles)


def blurred(picture: Colours, sigma: float, noise: float = 0.0) -> Colours:
    smooth = gaussian_filter(picture.astype(float), (sigma, sigma, 0))
    smooth += noise * np.random.default_rng(0).standard_normal(smooth.shape)
    return np.asarray(np.rint(np.clip(smooth, 0, 255)), np.uint8)


def inked(picture: Colours, colour: tuple[int, int, int], width: int = 30) -> Colours:
    """A line across, through which tissue is seen as through a filter."""
    found = picture.astype(float)
    found[100 : 100 + width] = (found[100 : 100 + width] + 1) * (np.array(colour) + 1) / 256 - 1
    return np.asarray(np.rint(np.clip(found, 0, 255)), np.uint8)


def folded(picture: Colours) -> Colours:
    """A third of the tile over the next third: densities add up."""
    third = picture.shape[0] // 3
    found = picture.astype(float)
    found[third : 2 * third] = (found[third : 2 * third] + 1) * (found[:third] + 1) / (WHITE + 1) - 1
    return np.asarray(np.rint(np.clip(found, 0, 255)), np.uint8)


GOOD = [tile(seed) for seed in range(9)]
SLIDE = slide_of(GOOD)


@pytest.mark.parametrize(("sigma", "noise"), [(2.0, 0.0), (3.0, 0.0), (3.0, 2.0)])
def test_blurred_copies_are_found(sigma: float, noise: float) -> None:
    """And only they; a camera's noise does not make them sharp."""
    found = quality([*GOOD, *(blurred(t, sigma, noise) for t in GOOD[:3])], SLIDE)
    assert found.blurred.tolist() == [False] * 9 + [True] * 3
    assert not found.folded.any()
    assert not found.inked.any()
    assert found.good.tolist() == (~found.blurred).tolist()


def test_paler_and_other_stains_are_as_sharp() -> None:
    """Within the reach of grey levels, which rounding makes coarser where tissue is pale."""
    others = [tile(seed, vectors, s) for seed in range(3) for vectors in (stained.HE, stained.HDAB) for s in (0.5, 1.0)]
    found = quality([*GOOD, *others], SLIDE)
    assert not found.blurred.any()
    assert found.sharpness[9:] == pytest.approx(np.ones(12), abs=0.5)


@pytest.mark.parametrize("colour", [(20, 60, 200), (20, 150, 60), (15, 15, 18)], ids=["blue", "green", "black"])
def test_a_painted_line_is_found(colour: tuple[int, int, int]) -> None:
    found = quality([*GOOD, *(inked(t, colour) for t in GOOD[:3])], SLIDE)
    assert found.inked.tolist() == [False] * 9 + [True] * 3
    assert found.ink[9:] == pytest.approx(np.full(3, 30 / 256), rel=0.5)
    assert found.ink[:9].max() < 0.005


@pytest.mark.parametrize("vectors", [stained.HE, stained.OTHER_HE, stained.HDAB], ids=["HE", "other", "HDAB"])
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.6])
def test_stains_are_no_ink(vectors: stained.Amounts, strength: float) -> None:
    tiles = [tile(seed, vectors, strength) for seed in range(3)]
    assert not quality(tiles, slide_of(tiles)).inked.any()


def test_doubled_tissue_is_found() -> None:
    found = quality([*GOOD, *(folded(t) for t in GOOD[:3])], SLIDE)
    assert found.folded.tolist() == [False] * 9 + [True] * 3
    assert found.fold[9:] == pytest.approx(np.full(3, 0.3), abs=0.1)


def test_glass_is_not_judged() -> None:
    glass = np.full((256, 288, 3), round(WHITE), np.uint8)
    found = quality([*GOOD, glass], SLIDE)
    assert np.isnan(found.sharpness[-1])
    assert found.good[-1]
    alone = quality([glass], SLIDE)
    assert alone.good.tolist() == [True]


def test_no_tile_at_all() -> None:
    assert judge([]).good.shape == (0,)


@pytest.mark.data
@pytest.mark.parametrize(("folder", "folds"), [("histo_camelyon", 0.9), ("histo_ocdc", 0.5)])
def test_real_patches(folder: str, folds: float) -> None:
    """As they are none is blurred or inked; blurred by 1.5 pixels all are; doubled most are folds.

    In the second set half of some patches is glass, which folds into nothing.
    """
    paths = [path for path in sorted(require_data(folder).glob("*.jpg")) if "mask" not in path.name]
    tiles = []
    for path in paths:
        with open_slide(path, mpp=MPP) as slide:
            tiles.append(slide.read(0, 0, 0, *slide.levels[0].shape))
    tissue = slide_of(tiles)
    plain = [measure_tile(t, MPP, tissue) for t in tiles]
    found = judge(plain)
    assert not found.blurred.any()
    assert not found.inked.any()
    assert found.folded.sum() <= 1
    assert found.sharpness.min() > BLURRED * 1.2
    third = len(tiles) // 3
    mixed = judge([*plain, *(measure_tile(blurred(t, 1.5), MPP, tissue) for t in tiles[:third])])
    assert mixed.blurred.tolist() == [False] * len(tiles) + [True] * third
    doubled = judge([*plain, *(measure_tile(folded(t), MPP, tissue) for t in tiles)])
    assert doubled.folded[len(tiles) :].mean() >= folds


@pytest.mark.data
def test_ink_of_a_real_slide_is_found() -> None:
    """The edge of the specimen is inked green; no tile of its inside is flagged."""
    with open_slide(require_data("wsi", "small_HE.svs")) as slide:
        tissue = find_tissue(slide)
        found = survey(slide, tile_grid(slide, tissue, size=256, mpp=0.5), tissue)
    places = found.grid.places[found.quality.inked]
    assert 1 <= len(places) <= 4
    assert (places[:, 1] >= 1500).all()
    assert not found.quality.blurred.any()
