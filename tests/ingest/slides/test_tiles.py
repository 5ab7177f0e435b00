"""Grids over known tissue, and their stream: order, pixels, shards, damaged tiles, bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medxai.errors import IngestError
from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.open import open_slide
from medxai.ingest.slides.survey import survey
from medxai.ingest.slides.tiles import TileGrid, shares_of, stream, tile_grid
from medxai.ingest.slides.tissue import find_tissue
from tests import slides, tiffs

SIZE = (920, 1236)
TRUTH = slides.tissue(SIZE)


def tiff(folder: Path, **settings: object) -> Slide:
    paint = tiffs.painter_of(TRUTH)
    settings = {"tile": 128, "factors": (1, 2, 4), "mpp": (2.0, 2.0), "quality": 95} | settings
    return open_slide(tiffs.write_pyramid(folder / "a.tif", SIZE, paint, **settings))  # type: ignore[arg-type]


def dicom(folder: Path, **settings: object) -> Slide:
    slides.save(slides.pyramid(**settings), folder)  # type: ignore[arg-type]
    return open_slide(folder)


def inside(grid: TileGrid) -> np.ndarray:
    """Share of each tile that is tissue, from the numbers that the picture was drawn with."""
    rows, columns = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]), indexing="ij")
    truth = ((rows - 0.5) / 0.42) ** 2 + ((columns - 0.5) / 0.44) ** 2 < 1
    size = grid.size
    return np.asarray([truth[r : r + size, c : c + size].sum() / size**2 for r, c in grid.places.tolist()])


def test_tiles_cover_the_slide_row_by_row(tmp_path: Path) -> None:
    with dicom(tmp_path) as slide:
        grid = tile_grid(slide, None, size=100, mpp=2.0, step=80)
    assert grid.shape == (12, 16)
    assert len(grid) == 12 * 16
    assert np.array_equal(grid.numbers, np.arange(192))
    assert grid.places[:2].tolist() == [[0, 0], [0, 80]]
    assert grid.places[16].tolist() == [80, 0]
    assert (grid.places[-1] + 100 >= SIZE).all()
    assert (grid.places[-1] < SIZE).all()


def test_tiles_with_enough_tissue_are_kept(tmp_path: Path) -> None:
    """All that clearly have it, none that clearly have not, with the share that is true."""
    with dicom(tmp_path) as slide:
        tissue = find_tissue(slide)
        whole = tile_grid(slide, tissue, size=64, mpp=2.0, least_tissue=0.0)
        half = tile_grid(slide, tissue, size=64, mpp=2.0)
    truth = inside(whole)
    assert np.abs(whole.shares - truth).max() < 0.15
    assert np.abs(whole.shares - truth).mean() < 0.02
    assert set(whole.numbers[truth > 0.65]) <= set(half.numbers)
    assert not set(whole.numbers[truth < 0.35]) & set(half.numbers)
    assert np.array_equal(np.sort(half.numbers), half.numbers)


def test_shares_count_parts_of_pixels() -> None:
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    first = np.array([[0.0, 0.0], [1.0, 2.0], [0.5, 1.5], [2.5, 4.5], [3.0, 5.0]])
    last = np.array([[4.0, 6.0], [3.0, 5.0], [1.5, 2.5], [4.5, 6.5], [9.0, 9.0]])
    assert shares_of(mask, first, last) == pytest.approx([6 / 24, 1.0, 0.25, 0.0625, 0.0])


@pytest.mark.parametrize("as_float", [False, True])
def test_the_stream_holds_the_pixels_of_the_places(tmp_path: Path, as_float: bool) -> None:
    with dicom(tmp_path) as slide:
        grid = tile_grid(slide, None, size=100, mpp=2.0)
        batches = list(stream(slide, grid, 16, as_float=as_float))
    assert [len(batch.tiles) for batch in batches] == [16] * 8 + [2]
    assert np.array_equal(np.concatenate([batch.numbers for batch in batches]), grid.numbers)
    padded = np.full((1000, 1300, 3), 255, np.uint8)
    padded[:920, :1236] = TRUTH
    for batch in batches:
        assert batch.tiles.dtype == (np.float32 if as_float else np.uint8)
        for tile, (row, column) in zip(batch.tiles, batch.places.tolist(), strict=True):
            truth = padded[row : row + 100, column : column + 100].transpose(2, 0, 1)
            assert np.array_equal(np.rint(tile * 255) if as_float else tile, truth)


def test_places_lead_back_to_the_finest_level(tmp_path: Path) -> None:
    """From tiles of another resolution, of a coarse level: the dark spot is where it was drawn."""
    with dicom(tmp_path, spacing=(0.002, 0.0015)) as slide:
        grid = tile_grid(slide, None, size=16, mpp=5.0)
        assert grid.choice.level == 1
        corners = grid.finest(slide)
        assert corners[0].tolist() == pytest.approx([0, 0, 16 * 5 / 2, 16 * 5 / 1.5])
        means = np.concatenate([batch.tiles.mean((1, 2, 3)) for batch in stream(slide, grid)])
    dark = corners[means < 0.5]
    assert len(dark) >= 4
    centre = (dark[:, :2] + dark[:, 2:]).mean(0) / 2
    assert centre == pytest.approx([0.62 * 919, 0.28 * 1235], abs=20)


def test_shards_are_the_whole_in_order(tmp_path: Path) -> None:
    with tiff(tmp_path) as slide:
        grid = tile_grid(slide, find_tissue(slide), size=64, mpp=2.0)
        shards = grid.shards(7)
        assert {len(shard) for shard in shards} == {len(grid) // 7, -(-len(grid) // 7)} | {len(grid) // 7}
        assert np.array_equal(np.concatenate([shard.numbers for shard in shards]), grid.numbers)
        whole = {n: t for b in stream(slide, grid, as_float=False) for n, t in zip(b.numbers, b.tiles, strict=True)}
        for shard in (shards[5], shards[2]):
            for batch in stream(slide, shard, 3, as_float=False):
                for number, tile in zip(batch.numbers, batch.tiles, strict=True):
                    assert np.array_equal(tile, whole[number])
        assert len(grid.shards(len(grid) + 3)[0]) in (0, 1)
        with pytest.raises(IngestError, match="at least one shard"):
            grid.shards(0)


def test_a_damaged_tile_is_told_of_and_the_others_come(tmp_path: Path) -> None:
    """Tile 24 of the file, rows 256 to 384 and columns 512 to 640; tiles of the grid are shifted to it."""
    with tiff(tmp_path, damaged=(24,)) as slide:
        grid = tile_grid(slide, None, size=100, mpp=2.0)
        batches = list(stream(slide, grid, 10))
        failed = [tile for batch in batches for tile in batch.failed]
        truth = [
            int(n) for n, (r, c) in zip(grid.numbers, grid.places.tolist(), strict=True)
            if r < 384 and r + 100 > 256 and c < 640 and c + 100 > 512
        ]  # fmt: skip
        assert [tile.number for tile in failed] == truth
        assert "the tile from row 256, column 512 on" in failed[0].reason
        read = np.concatenate([batch.numbers for batch in batches])
        assert sorted([*read, *truth]) == grid.numbers.tolist()
        assert all(len(batch.tiles) == 10 for batch in batches[:-1])
        tissue = find_tissue(slide)  # of a coarse level, which is whole
        looked = survey(slide, tile_grid(slide, tissue, size=100, mpp=2.0), tissue)
        assert len(looked.failed) == len(truth)
        assert len(looked.grid) == len(looked.quality.good)


def test_all_tiles_damaged(tmp_path: Path) -> None:
    with tiff(tmp_path, factors=(1,), damaged=range(100)) as slide:
        (batch,) = stream(slide, tile_grid(slide, None, size=400, mpp=2.0), 32)
        assert (batch.tiles.shape, len(batch.failed)) == ((0, 3, 400, 400), 12)


def test_a_change_of_colours_is_applied(tmp_path: Path) -> None:
    with dicom(tmp_path, levels=1) as slide:
        grid = tile_grid(slide, None, size=300, mpp=2.0)
        plain = next(iter(stream(slide, grid, as_float=False))).tiles
        turned = next(iter(stream(slide, grid, as_float=False, change=lambda tile: 255 - tile))).tiles
    assert np.array_equal(turned, 255 - plain)


def test_refusals(tmp_path: Path) -> None:
    with dicom(tmp_path) as slide:
        tissue = find_tissue(slide)
        with pytest.raises(IngestError, match=r"none of 1 tiles of 4000 pixels at 2 um is tissue to 50%"):
            tile_grid(slide, tissue, size=4000, mpp=2.0)
        for wrong in ({"size": 0}, {"size": 8, "step": 0}, {"size": 8, "least_tissue": 1.5}):
            with pytest.raises(IngestError, match="have to be at least 1"):
                tile_grid(slide, tissue, mpp=2.0, **wrong)  # type: ignore[arg-type]
        with pytest.raises(IngestError, match="at least one tile"):
            next(stream(slide, tile_grid(slide, tissue, size=64, mpp=2.0), 0))
