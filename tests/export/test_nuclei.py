"""Pictures and page of nuclei: what is drawn lies where the nuclei do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxai.export import nuclei_page, nuclei_pictures
from medxai.export.nuclei_contours import CERTAIN, DOUBTFUL, contour
from medxai.ingest.slides.open import open_slide
from medxai.predict.nuclei_tiles import plan_tiles, tissue_of
from medxai.predict.slide_nuclei import SeenField, SlideNuclei, find_nuclei
from tests import nuclei as discs

SHAPE = (310, 420)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SlideNuclei, np.ndarray]:
    """A patch with nuclei in its left half alone, and what is found on it."""
    folder = tmp_path_factory.mktemp("patch")
    places = discs.grid_of_places(SHAPE)
    places = places[places[:, 1] < 200]
    Image.fromarray(discs.picture(SHAPE, places)).save(folder / "a.png")
    with open_slide(folder / "a.png", mpp=0.5) as slide:
        plan = plan_tiles(slide, tissue_of(slide), mpp=0.5, radius=discs.RADIUS, core=128)
        return folder, find_nuclei(slide, plan, discs.dark_field, radius=discs.RADIUS, work=folder / "w"), places


def test_contours_surround_the_discs(found: tuple[Path, SlideNuclei, np.ndarray]) -> None:
    _, nuclei, places = found
    for number in range(len(nuclei)):
        points = contour(nuclei, number)
        assert (points[0] == points[-1]).all()
        away = np.linalg.norm(places - nuclei.centres[number], axis=1)
        radii = np.linalg.norm(points - places[away.argmin(), ::-1], axis=1)
        assert np.abs(radii - discs.RADIUS).max() < 1.0


def test_density_is_that_of_the_drawing(found: tuple[Path, SlideNuclei, np.ndarray]) -> None:
    """High on the left, none on the right, and the count where it is even."""
    folder, nuclei, places = found
    with open_slide(folder / "a.png", mpp=0.5) as slide:
        tissue = tissue_of(slide)
        density, top = nuclei_pictures.density_map(nuclei, slide, tissue)
        picture = np.asarray(nuclei_pictures.overview(nuclei, slide, tissue))
    assert density.shape == tissue.mask.shape
    columns = density.shape[1]
    assert np.nanmean(density[:, -columns // 10 :]) < 0.1 * top
    even = len(places) / (SHAPE[0] * 210 * 0.25e-6)
    assert np.nanmedian(density[:, : columns // 4]) == pytest.approx(even, rel=0.25)
    red, blue = picture[:400, 20:300].mean((0, 1))[[0, 2]]
    assert red > blue + 60, "the left is coloured as evidence is"
    right = picture[:400, 700:790].mean((0, 1))
    assert np.abs(right - discs.TISSUE).max() < 25


def test_doubtful_ones_have_their_own_colour() -> None:
    labels = np.zeros((40, 60), np.int32)
    labels[5:15, 5:15], labels[20:32, 30:44] = 1, 2
    evidence = np.zeros((40, 60), np.float32)
    evidence[5:15, 5:15], evidence[34:38, 50:58] = 1.0, 1.0
    colours = np.full((40, 60, 3), 200, np.uint8)
    field = SeenField(0, colours, labels, evidence, ("", "merged?"), 3, 0.5)
    drawn = nuclei_pictures.contoured(field, zoom=2)
    for number, colour in ((1, CERTAIN), (2, DOUBTFUL)):
        rows, columns = np.nonzero((drawn == colour).all(-1))
        at = np.argwhere(labels == number)
        assert (rows.min() // 2, columns.min() // 2) == tuple(at.min(0))
        assert (rows.max() // 2, columns.max() // 2) == tuple(at.max(0))
    differ = nuclei_pictures.disagreement(field.colours, field.labels, field.evidence).astype(int)
    even = differ[0, 0]
    assert (differ[10, 10] == even).all(), "mask and evidence agree"
    assert differ[25, 35, 2] > differ[25, 35, 0] + 60, "mask without evidence is blue"
    assert differ[36, 54, 0] > differ[36, 54, 1] + 60, "evidence without mask is red"
    part = nuclei_pictures.closer(field, 16)
    assert part.labels.shape == part.evidence.shape == part.colours.shape[:2] == (16, 16)
    assert np.count_nonzero(part.labels) == 12 * 14


def test_which_fields_are_shown(found: tuple[Path, SlideNuclei, np.ndarray]) -> None:
    _, nuclei, _ = found
    number = int(nuclei.numbers[nuclei.counts() > 3][0])
    flags = tuple("merged? uncertain" if tile == number and n % 2 else "" for n, tile in enumerate(nuclei.tiles))
    typical, doubtful = nuclei_page.shown_fields(replace(nuclei, flags=flags))
    assert doubtful.tolist() == [number]
    assert number not in typical
    assert 0 < len(typical) <= nuclei_page.SHOWN
    none = nuclei_page.shown_fields(nuclei)
    assert len(none[1]) == 0
