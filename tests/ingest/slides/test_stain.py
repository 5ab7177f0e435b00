"""Stain vectors that are known, found; tiles of two stainings of the same tissue become alike; nothing gives NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.open import open_slide
from medxai.ingest.slides.optical_density import colours_of, optical_density
from medxai.ingest.slides.stain import REFERENCE, amounts_of, estimate_stains, normalise, sample_pixels
from medxai.ingest.slides.tiles import tile_grid
from medxai.ingest.slides.whitening import estimate_spread, whiten_and_colour
from tests import slides, stained, tiffs
from tests.tools import require_data

WHITE = 244.0
AMOUNTS = stained.amounts((200, 260), seed=5)
ONE = stained.colours(AMOUNTS, stained.HE, WHITE)
OTHER = stained.colours(0.8 * AMOUNTS, stained.OTHER_HE, WHITE)


def difference(a: stained.Colours, b: stained.Colours) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def test_density_and_back() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    assert np.array_equal(colours_of(optical_density(colours, WHITE), WHITE), colours)
    assert optical_density(np.uint8([[255, 255, 255], [0, 0, 0]])).tolist() == pytest.approx(
        np.repeat([[0.0], [np.log10(256)]], 3, axis=1), rel=1e-6
    )


@pytest.mark.parametrize(
    ("vectors", "most"), [(stained.HE, 2.0), (stained.OTHER_HE, 2.0), (stained.HDAB, 2.0)], ids=["HE", "other", "HDAB"]
)
@pytest.mark.parametrize("seed", [1, 2])
def test_known_vectors_are_found(vectors: stained.Amounts, most: float, seed: int) -> None:
    picture = stained.colours(stained.amounts((300, 400), seed), vectors, WHITE)
    found = estimate_stains(picture, WHITE)
    assert max(stained.angles(found.vectors, vectors)) < most
    assert np.linalg.norm(found.vectors, axis=0) == pytest.approx([1, 1])


def test_known_amounts_are_found() -> None:
    stains = estimate_stains(ONE, WHITE)
    off = amounts_of(ONE, stains) - AMOUNTS
    assert np.abs(off).mean() < 0.02
    assert stains.strongest == pytest.approx(np.percentile(AMOUNTS[AMOUNTS.sum(-1) > 0.15], 99, axis=0), rel=0.1)


def test_two_stainings_of_one_tissue_become_alike() -> None:
    """By either way: each to the other, and both to the reference."""
    apart = difference(ONE, OTHER)
    assert apart > 8
    one, other = estimate_stains(ONE, WHITE), estimate_stains(OTHER, WHITE)
    assert difference(normalise(ONE, one, other), OTHER) < 0.15 * apart
    assert difference(normalise(ONE, one), normalise(OTHER, other)) < 0.15 * apart
    spreads = estimate_spread(ONE, WHITE), estimate_spread(OTHER, WHITE)
    assert difference(whiten_and_colour(ONE, *spreads), OTHER) < 0.15 * apart


def test_its_own_statistics_change_nothing() -> None:
    stains, spread = estimate_stains(ONE, WHITE), estimate_spread(ONE, WHITE)
    assert np.abs(normalise(ONE, stains, stains).astype(int) - ONE).max() <= 4
    assert difference(normalise(ONE, stains, stains), ONE) < 0.5
    assert np.abs(whiten_and_colour(ONE, spread, spread).astype(int) - ONE).max() <= 1


def test_whitening_and_colouring_gives_the_spread_of_the_other() -> None:
    """Where all pixels are stained, so that both spreads are of the same ones."""
    dense = stained.amounts((200, 260), seed=5, glass=0.0) + 0.2
    one, other = (stained.colours(dense, vectors, WHITE) for vectors in (stained.HE, stained.OTHER_HE))
    spreads = estimate_spread(one, WHITE), estimate_spread(other, WHITE)
    found = optical_density(whiten_and_colour(one, *spreads), WHITE).reshape(-1, 3)
    wanted = (spreads[1].directions * spreads[1].variances) @ spreads[1].directions.T
    assert found.T @ found / len(found) == pytest.approx(wanted, rel=0.01, abs=0.001)


def test_bare_glass_stays_bare() -> None:
    glass = np.full((30, 40, 3), round(WHITE), np.uint8)
    one, other = estimate_stains(ONE, WHITE), estimate_stains(OTHER, WHITE)
    assert np.abs(normalise(glass, one, other).astype(int) - glass).max() <= 1
    spreads = estimate_spread(ONE, WHITE), estimate_spread(OTHER, WHITE)
    assert np.abs(whiten_and_colour(glass, *spreads).astype(int) - glass).max() <= 1


HARD = {
    "white": np.full((64, 64, 3), 255, np.uint8),
    "nearly white": np.random.default_rng(0).integers(238, 256, (64, 64, 3), np.uint8),
    "black": np.zeros((64, 64, 3), np.uint8),
    "one grey": np.full((64, 64, 3), 120, np.uint8),
    "first stain alone": stained.colours(AMOUNTS * [1, 0], stained.HE, WHITE),
    "second stain alone": stained.colours(AMOUNTS * [0, 1], stained.HE, WHITE),
    "noise": np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_tiles_are_refused_or_finite(name: str) -> None:
    """And with the stains of their slide they are always normalised."""
    tile = HARD[name]
    if name == "noise":
        own = estimate_stains(tile, WHITE)
        assert np.isfinite([*own.vectors.ravel(), *own.strongest]).all()
    else:
        with pytest.raises(IngestError, match="estimate"):
            estimate_stains(tile, WHITE)
    stains, target = estimate_stains(ONE, WHITE), estimate_spread(OTHER, WHITE)
    if "white" in name:
        with pytest.raises(IngestError, match="pixels are stained"):
            estimate_spread(tile, WHITE)
    else:
        spread = estimate_spread(tile, WHITE)
        assert np.isfinite(spread.variances).all()
        assert whiten_and_colour(tile, spread, target).shape == tile.shape
    assert np.isfinite(amounts_of(tile, stains)).all()
    for wanted in (REFERENCE, stains):
        changed = normalise(tile, stains, wanted)
        assert (changed.shape, changed.dtype) == (tile.shape, np.uint8)


def test_one_stain_says_so() -> None:
    with pytest.raises(IngestError, match="degrees apart and 8 are needed: it holds one stain alone"):
        estimate_stains(HARD["first stain alone"], WHITE)
    with pytest.raises(IngestError, match="0 pixels are stained and 200 are needed"):
        estimate_stains(HARD["white"], WHITE)


def test_pixels_of_a_slide(tmp_path: Path) -> None:
    """Its stains are those of its tissue, whatever tile is looked at; damaged tiles are left out."""
    picture = stained.colours(stained.amounts((512, 768), 7), stained.HE, WHITE)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.5) as slide:
        grid = tile_grid(slide, None, size=64, mpp=0.5)
        pixels = sample_pixels(slide, grid, tiles=20, pixels=500)
        assert pixels.shape == (10_000, 3)
        assert np.array_equal(pixels, sample_pixels(slide, grid, tiles=20, pixels=500))
        assert max(stained.angles(estimate_stains(pixels, WHITE).vectors, stained.HE)) < 2.5
    paint = tiffs.painter_of(slides.tissue((256, 256)))
    path = tiffs.write_pyramid(tmp_path / "b.tif", (256, 256), paint, tile=128, factors=(1,), damaged=range(4))
    with open_slide(path) as slide, pytest.raises(TileError, match="none of 4 tiles could be read"):
        sample_pixels(slide, tile_grid(slide, None, size=128, mpp=0.25))


@pytest.mark.data
def test_real_patches_of_two_hospitals_come_nearer() -> None:
    """Mean colours of tissue, patch by patch, spread less after normalisation to the reference."""
    before, after = [], []
    for folder in ("histo_camelyon", "histo_ocdc"):
        paths = [path for path in sorted(require_data(folder).glob("*.jpg")) if "mask" not in path.name]
        for path in paths:
            tile = np.asarray(Image.open(path).convert("RGB"))
            changed = normalise(tile, estimate_stains(tile))
            stained_pixels = np.linalg.norm(optical_density(tile), axis=-1) > 0.2
            before.append(tile[stained_pixels].mean(0))
            after.append(changed[stained_pixels].mean(0))
    assert len(before) == 26
    assert np.std(after, axis=0).mean() < 0.8 * np.std(before, axis=0).mean()
