"""Nuclei over seams, in pixels of the finest level and in mm, resumed, with damaged tiles, in a part of a slide."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import cKDTree

from medxai.errors import IngestError
from medxai.ingest.slides.level import Slide
from medxai.ingest.slides.open import open_slide
from medxai.predict.nuclei_masks import NucleiMasks, pack
from medxai.predict.nuclei_tiles import plan_tiles, scale_of, tissue_of
from medxai.predict.slide_nuclei import SHARD, Segment, SlideNuclei, find_nuclei, look_again
from tests import nuclei as discs
from tests import slides, tiffs

SHAPE, CORE = (410, 530), 96
PLACES = discs.grid_of_places(SHAPE)


def tiff(folder: Path, *, zoom: int = 1, damaged: tuple[int, ...] = ()) -> Path:
    """An SVS-like pyramid of the discs; `zoom` pixels of the finest level on one of the network."""
    pixels = discs.picture(SHAPE, PLACES, zoom)
    size, paint = (SHAPE[0] * zoom, SHAPE[1] * zoom), tiffs.painter_of(pixels)
    mpp = (0.5 / zoom, 0.5 / zoom)
    return tiffs.write_pyramid(
        folder / "a.tif", size, paint, tile=64, factors=(1, 4), mpp=mpp, quality=98, damaged=damaged
    )


def found(slide: Slide, work: Path, segment: Segment = discs.dark_field, **wanted: object) -> SlideNuclei:
    plan = plan_tiles(slide, tissue_of(slide), mpp=0.5, radius=discs.RADIUS, core=CORE, **wanted)  # type: ignore[arg-type]
    return find_nuclei(slide, plan, segment, radius=discs.RADIUS, work=work)


def apart(nuclei: SlideNuclei, places: np.ndarray) -> float:
    """The largest distance of a nucleus from the place that it belongs to; each place has one."""
    distance, which = cKDTree(places).query(nuclei.centres)
    assert sorted(which.tolist()) == list(range(len(places)))
    return float(distance.max())


@pytest.mark.parametrize("zoom", [1, 2])
def test_each_is_counted_once(tmp_path: Path, zoom: int) -> None:
    """Also on the seams of tiles; places are pixels of the finest level, areas um2."""
    with open_slide(tiff(tmp_path, zoom=zoom)) as slide:
        nuclei = found(slide, tmp_path / "work")
    assert len(nuclei) == len(PLACES) > 200
    assert nuclei.planned == 30
    seams = np.abs((PLACES + CORE / 2) % CORE - CORE / 2).min(1) < discs.RADIUS
    assert seams.sum() > 20
    assert apart(nuclei, PLACES * zoom) < 0.3 * zoom
    assert nuclei.areas_um2 == pytest.approx(np.pi * (discs.RADIUS * 0.5) ** 2, rel=0.1)
    assert nuclei.tissue_mm2.sum() == pytest.approx(SHAPE[0] * SHAPE[1] * 0.25e-6, rel=0.01)
    assert nuclei.density == pytest.approx(len(PLACES) / nuclei.tissue_mm2.sum())
    assert nuclei.counts().sum() == len(PLACES)
    assert set(nuclei.flags) == {""}


def test_one_that_two_tiles_place_on_either_side_is_one(tmp_path: Path) -> None:
    """A network that sees a nucleus a little shifted, depending on its place in the tile, still counts it once."""

    def shaky(pixels: np.ndarray) -> object:
        return discs.dark_field(np.roll(pixels, 2 if pixels[0, 40, 40] > pixels[0, 80, 80] else -2, axis=2))

    with open_slide(tiff(tmp_path)) as slide:
        nuclei = found(slide, tmp_path / "work", shaky)  # type: ignore[arg-type]
    near, _ = cKDTree(nuclei.centres).query(PLACES)
    assert near.max() < 3
    assert len(nuclei) == len(PLACES)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    path, asked = tiff(tmp_path), []

    def killed(pixels: np.ndarray) -> object:
        asked.append(pixels)
        if len(asked) == SHARD + 3:
            raise KeyboardInterrupt
        return discs.dark_field(pixels)

    with open_slide(path) as slide:
        with pytest.raises(KeyboardInterrupt):
            found(slide, tmp_path / "work", killed)  # type: ignore[arg-type]
        again = found(slide, tmp_path / "work", killed)  # type: ignore[arg-type]
        whole = found(slide, tmp_path / "other")
    assert again.planned == 30 > SHARD
    # The first shard is there and is not asked for again; the second is done anew.
    assert len(asked) == SHARD + 3 + again.planned - len(list_of(again.planned)[0])
    assert again.centres.tolist() == whole.centres.tolist()


def list_of(planned: int) -> list[range]:
    """Shards of a plan, as `TileGrid.shards` cuts them."""
    count = -(-planned // SHARD)
    ends = [planned * number // count for number in range(count + 1)]
    return [range(*pair) for pair in pairwise(ends)]


def test_a_damaged_tile_costs_itself(tmp_path: Path) -> None:
    """The tiles that need it are listed; what lies elsewhere is counted, and their tissue is not."""
    with open_slide(tiff(tmp_path, damaged=(0,))) as slide:
        nuclei = found(slide, tmp_path / "work")
    assert len(nuclei.failed) == 1
    assert nuclei.failed[0].startswith("tile 0: ")
    assert 0 not in nuclei.numbers
    beyond = PLACES[(PLACES >= CORE).any(1)]
    assert apart(nuclei, beyond) < 0.3
    expected = (SHAPE[0] * SHAPE[1] - CORE**2) * 0.25e-6
    assert nuclei.tissue_mm2.sum() == pytest.approx(expected, rel=0.02)


def test_a_region_and_some_tiles(tmp_path: Path) -> None:
    with open_slide(tiff(tmp_path, zoom=2)) as slide:
        part = found(slide, tmp_path / "part", region=(200, 301, 300, 402))
        plan = plan_tiles(slide, tissue_of(slide), mpp=0.5, radius=discs.RADIUS, core=CORE, region=(200, 301, 300, 402))
        seen = look_again(slide, plan, part.numbers, discs.dark_field)
        some = found(slide, tmp_path / "some", most=4)
        with pytest.raises(IngestError, match="no tissue of the slide of 1060 x 820 pixels lies in the region"):
            found(slide, tmp_path / "none", region=(5000, 0, 10, 10))
    low, high = np.array([200, 301]), np.array([500, 703])
    doubled = PLACES * 2
    inside = doubled[((doubled >= low) & (doubled < high)).all(1)]
    assert apart(part, inside) < 0.6
    assert part.tissue_mm2.sum() == pytest.approx(300 * 402 * 0.0625e-6, rel=0.01)
    assert sum(field.labels.size for field in seen) == 150 * 202, "half pixels at its border are shown whole"
    assert len(some.numbers) == 4
    assert some.counts().sum() == len(some) > 10


def test_a_dicom_slide_in_mm(tmp_path: Path) -> None:
    """Centres lie where the affine of the finest level puts the discs, with pixels that are no squares."""
    pixels = discs.picture(SHAPE, PLACES)
    level = slides.level(pixels, spacing=(0.0005, 0.0005), origin=(11.0, 7.5))
    slides.save([level], tmp_path / "in")
    with open_slide(tmp_path / "in") as slide:
        nuclei = found(slide, tmp_path / "work")
        affine = slide.levels[0].affine
    assert affine is not None
    # Rows run along -Y and columns along -X (see `slides.ORIENTATION`); centres count from the outer corner.
    index = np.concatenate([np.zeros((len(nuclei), 1)), nuclei.centres - 0.5, np.ones((len(nuclei), 1))], 1)
    mm = (index @ affine.T)[:, :2]
    truth = np.array([11.0, 7.5]) - (PLACES - 0.5) * 0.0005
    near, _ = cKDTree(mm).query(truth)
    assert len(nuclei) == len(PLACES)
    assert near.max() < 0.3 * 0.0005


def test_a_small_patch(tmp_path: Path) -> None:
    """Smaller than a tile and than a part of tissue on a slide; those on its border count with what is there."""
    shape = (70, 90)
    places = np.array([[0.0, 20.0], [35.0, 45.0], [69.5, 70.0], [30.0, 89.0]])
    Image.fromarray(discs.picture(shape, places)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.5) as slide:
        nuclei = found(slide, tmp_path / "work")
        plan = plan_tiles(slide, tissue_of(slide), mpp=0.5, radius=discs.RADIUS)
        (field,) = look_again(slide, plan, nuclei.numbers, discs.dark_field)
    assert len(nuclei) == 4
    near, which = cKDTree(places).query(nuclei.centres)
    assert sorted(which.tolist()) == [0, 1, 2, 3]
    assert near.max() < 4  # half a disc has its middle further in
    assert nuclei.areas_um2.min() < 0.6 * nuclei.areas_um2.max()
    assert field.colours.shape == (*shape, 3)
    assert np.array_equal(field.colours, discs.picture(shape, places))
    assert len(np.unique(field.labels)) == 5


def test_a_coarse_slide_is_looked_at_as_it_is(tmp_path: Path) -> None:
    with open_slide(tiff(tmp_path)) as slide:
        assert scale_of(slide, 0.5) == pytest.approx(0.5)
        assert scale_of(slide, 1.0) == 1.0
        assert scale_of(slide, 0.25) == pytest.approx(0.5)
        with pytest.raises(IngestError, match=r"outlined at 0\.1 um per pixel, and the slide has 0\.5"):
            scale_of(slide, 0.1)


def test_no_tissue(tmp_path: Path) -> None:
    Image.fromarray(np.full((80, 120, 3), 245, np.uint8)).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png", mpp=0.5) as slide, pytest.raises(IngestError, match="no tissue on"):
        found(slide, tmp_path / "work")


def test_masks_come_back() -> None:
    draw = np.random.default_rng(4)
    masks = [draw.random((3 + n, 9 - n)) > 0.4 for n in range(5)]
    corners = [np.array([2 * n, 3 * n]) for n in range(5)]
    packed = pack(corners, masks)
    again = NucleiMasks.of({name: np.concatenate([part, part]) for name, part in packed.arrays().items()})
    some = again.take(np.array([7, 1]))
    for number, wanted in ((0, 2), (1, 1)):
        assert np.array_equal(some.mask(number), masks[wanted])
    plane = np.zeros((2, 20, 30), int)
    for n, k in enumerate((0, 1)):
        top, left = corners[k]
        plane[n, top : top + masks[k].shape[0], left : left + masks[k].shape[1]] = masks[k]
    assert packed.shared(0, 1) == plane.prod(0).sum()
    assert packed.shared(0, 4) == 0
    assert len(packed.take(np.zeros(0, np.int64))) == 0
