"""The level that is taken, and pieces that are resized as the whole plane would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxai.errors import IngestError
from medxai.ingest.slides.choose import choose_level
from medxai.ingest.slides.open import open_slide
from medxai.ingest.slides.scaled import read_scaled, scaled_shape
from medxai.ingest.slides.thumbnail import thumbnail
from tests import slides, tiffs


@pytest.mark.parametrize(
    ("mpp", "level", "factor"),
    [(2.0, 0, 1.0), (2.08, 0, 1.0), (3.0, 0, 2 / 3), (4.0, 1, 1.0), (3.9, 1, 1.0), (8.3, 2, 1.0), (20.0, 2, 0.4),
     (1.7, 0, 2 / 1.7)],
)  # fmt: skip
def test_the_coarsest_level_that_is_fine_enough(tmp_path: Path, mpp: float, level: int, factor: float) -> None:
    """Levels have 2, 4 and 8 micrometres per pixel; 5 % count as the same."""
    slides.save(slides.pyramid(), tmp_path)
    with open_slide(tmp_path) as slide:
        found = choose_level(slide, mpp)
    assert (found.level, found.mpp) == (level, mpp)
    assert found.factor == pytest.approx((factor, factor))


def test_nothing_is_enlarged_beyond_the_limit(tmp_path: Path) -> None:
    slides.save(slides.pyramid(levels=2), tmp_path)
    with open_slide(tmp_path) as slide:
        words = r"0.25 um per pixel need tiles enlarged 8 times, and at most 1.25 .* are 0 \(1236 x 920, 2 um\), 1"
        with pytest.raises(IngestError, match=words):
            choose_level(slide, 0.25)
        assert choose_level(slide, 1.0, most_enlarged=2.0).factor == pytest.approx((2.0, 2.0))
        with pytest.raises(IngestError, match="above 0"):
            choose_level(slide, 0.0)


@pytest.mark.parametrize("mpp", [2.6, 7.7, 1.7])
def test_pieces_fit_without_seams(tmp_path: Path, mpp: float) -> None:
    """Each is what the same filter makes of the whole plane, for pixels that are no squares."""
    slides.save(slides.pyramid(levels=1, spacing=(0.002, 0.0015)), tmp_path)
    truth = slides.tissue()
    with open_slide(tmp_path) as slide:
        choice = choose_level(slide, mpp)
        rows, columns = scaled_shape(slide, choice)
        assert (rows, columns) == (np.ceil(920 * 2.0 / mpp), np.ceil(1236 * 1.5 / mpp))
        box = (0, 0, columns * mpp / 1.5, rows * mpp / 2.0)
        padded = np.full((920 + 9, 1236 + 9, 3), 255, np.uint8)
        padded[:920, :1236] = truth
        whole = np.asarray(Image.fromarray(padded).resize((columns, rows), Image.Resampling.BILINEAR, box=box))
        for row, column, height, width in ((0, 0, 60, 90), (60, 90, 61, 47), (rows - 50, columns - 33, 50, 33)):
            piece = read_scaled(slide, choice, row, column, height, width).astype(int)
            off = np.abs(piece - whole[row : row + height, column : column + width])
            # At the corner of the plane the whole has no surroundings; a piece has white ones.
            inner = off[int(row == 0) * 2 :, int(column == 0) * 2 :]
            assert inner.max() <= 1


def test_a_thumbnail_has_square_pixels(tmp_path: Path) -> None:
    slides.save(slides.pyramid(spacing=(0.002, 0.001)), tmp_path)
    with open_slide(tmp_path) as slide:
        small = thumbnail(slide, mpp=10.0)
        assert small.pixels.shape[:2] == (184, 124)
        assert small.damaged == ()
        by_side = thumbnail(slide, longest=92)
        assert by_side.pixels.shape[:2] == (92, 62)
        for wrong in ({}, {"mpp": 10.0, "longest": 9}):
            with pytest.raises(IngestError, match="either micrometres per pixel or a longest side"):
                thumbnail(slide, **wrong)  # type: ignore[arg-type]
    dark = np.argwhere((small.pixels < (120, 70, 160)).all(-1)).mean(0)
    assert dark == pytest.approx([0.62 * 184, 0.28 * 124], abs=1.5)


def test_a_thumbnail_without_its_damaged_tile(tmp_path: Path) -> None:
    size = (920, 1236)
    truth = slides.tissue(size)
    paint = tiffs.painter_of(truth)
    path = tiffs.write_pyramid(tmp_path / "a.tif", size, paint, tile=128, factors=(1,), damaged=(24,), mpp=(2.0, 2.0))
    with open_slide(path) as slide:
        small = thumbnail(slide, mpp=8.0)
    assert len(small.damaged) >= 1
    white = (small.pixels == 255).all(-1)
    inside = white[256 // 4 : 384 // 4, 512 // 4 : 640 // 4]
    assert inside.mean() > 0.95
    assert white.sum() < 3 * inside.size
