"""The OME-TIFF of a slide read back: pixels at their place, micrometres, pyramid; what is withheld is left out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from medxai.export import ExportOptions, slide_overlay
from medxai.export.colours import blend
from medxai.study import TrustReport
from tests import slides
from tests.export.build import Case, ct_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Rows farther apart than columns, sides that are odd after two halvings."""
    return slides.slide_case(tmp_path_factory.mktemp("slide"), spacing=(0.003, 0.002))


def test_it_is_read_back(case: Case, tmp_path: Path) -> None:
    options = ExportOptions()
    assert slide_overlay.applies(case.result) is None
    first, second = slide_overlay.write(case.result, tmp_path, options)
    volume, explanation = case.result.study.volume, case.result.explanations[0]
    with tifffile.TiffFile(first) as found:
        assert found.is_ome
        over, alone = found.series
        assert over.axes == "YXS"
        colours = np.rint(volume.pixels.transpose(1, 2, 0)).astype(np.uint8)
        assert np.array_equal(over.asarray(), blend(colours, explanation.normalised(), options.overlay_opacity))
        assert np.array_equal(alone.asarray(), explanation.normalised())
        shapes = [level.shape for level in over.levels]
        assert shapes == [(920, 1236, 3), (460, 618, 3), (230, 309, 3)]
        assert [level.shape for level in alone.levels] == [shape[:2] for shape in shapes]
        page = over.levels[1].pages[0]
        assert (page.tilelength, page.tilewidth) == (slide_overlay.TILE, slide_overlay.TILE)
        peak = np.unravel_index(int(alone.levels[2].asarray().argmax()), shapes[2][:2])
        at = np.unravel_index(int(explanation.map.argmax()), explanation.map.shape)
        assert np.abs(np.array(peak) * 4 + 1.5 - at).max() < 4
        text = found.ome_metadata
    assert text is not None
    sizes = re.findall(r'PhysicalSizeX="([\d.]+)" PhysicalSizeXUnit="µm" PhysicalSizeY="([\d.]+)"', text)
    assert [tuple(map(float, size)) for size in sizes] == [(pytest.approx(2.0), pytest.approx(3.0))] * 2
    assert "AI explanation, not for diagnosis" in text
    assert "SECRET" not in text
    assert second != first


def test_openslide_reads_the_overlay(case: Case, tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    path, *_ = slide_overlay.write(case.result, tmp_path, ExportOptions())
    with openslide.OpenSlide(path) as slide, tifffile.TiffFile(path) as found:
        assert slide.dimensions == (1236, 920)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(2.0, rel=1e-3)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(3.0, rel=1e-3)
        part = np.asarray(slide.read_region((310, 500), 0, (80, 60)).convert("RGB"))
        assert np.array_equal(part, found.series[0].asarray()[500:560, 310:390])


def test_the_same_twice(case: Case, tmp_path: Path) -> None:
    one, two = (slide_overlay.write(case.result, tmp_path / name, ExportOptions()) for name in ("a", "b"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_what_is_left_out(case: Case, tmp_path: Path) -> None:
    count = len(case.result.explanations)
    reports = tuple(TrustReport("withheld" if n == 0 else "limited", ("",), {}, 0.1) for n in range(count))
    judged = replace(case.result, trust=reports)
    assert len(slide_overlay.write(judged, tmp_path / "a", ExportOptions())) == count - 1
    assert len(slide_overlay.write(judged, tmp_path / "b", ExportOptions(send_withheld=True))) == count
    empty = tuple(replace(item, map=np.zeros_like(item.map)) for item in case.result.explanations)
    assert (
        slide_overlay.applies(replace(case.result, explanations=empty)) == "no map of the slide has positive evidence"
    )
    assert slide_overlay.applies(ct_case().result) == "no whole slide"
