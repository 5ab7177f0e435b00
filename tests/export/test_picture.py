from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medxai.export import ExportOptions, display, picture
from medxai.export.colours import alpha, heat, table
from tests.export import build


@pytest.mark.parametrize("make", [build.ct_case, lambda: build.us_case(cine=True), lambda: build.us_case(cine=False)])
def test_a_mosaic_is_written_per_map(make, tmp_path):
    paths = picture.write(make().result, tmp_path, ExportOptions())
    assert len(paths) == 2
    with Image.open(paths[0]) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert (pixels.max(axis=2) - pixels.min(axis=2)).max() > 100  # there is colour in it


def test_lightness_rises_with_evidence():
    linear = (table() / 255.0) ** 2.2
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance[::8]) > 0).all()  # every eighth: single steps wobble by rounding to 8 bits


def test_transparency_is_proportional_to_evidence():
    values = np.array([0.0, 0.02, 0.25, 0.5, 1.0], np.float32)
    np.testing.assert_allclose(alpha(values, 0.8), [0, 0, 0.2, 0.4, 0.8], atol=1e-6)
    assert heat(values).shape == (5, 3)


@pytest.mark.parametrize("flipped", [False, True])
def test_dicom_axial_slices_are_shown_as_stored_with_their_letters(flipped):
    view = display.view_of(build.ct_case(oblique=False, flipped=flipped).result.study.volume)
    assert (view.left, view.right, view.top, view.bottom) == ("R", "L", "A", "P")
    assert (view.transpose, view.flip_rows, view.flip_columns) == (False, False, False)


@pytest.mark.parametrize("normal", ["axial", "coronal", "sagittal"])
def test_other_orientations_are_turned_to_the_conventional_view(normal):
    right, down = {
        "axial": ([1, 0, 0], [0, 1, 0]),
        "coronal": ([1, 0, 0], [0, 0, -1]),
        "sagittal": ([0, 1, 0], [0, 0, -1]),
    }[normal]
    expected = {"axial": "RLAP", "coronal": "RLHF", "sagittal": "APHF"}[normal]
    marked = np.array([[1, 2], [3, 4]])  # as a radiologist expects it
    base = build.ct_case(oblique=False).result.study.volume
    for transpose in (False, True):
        for rows in (False, True):
            for columns in (False, True):
                w, h = np.array(right, float), np.array(down, float)
                stored = marked
                if columns:
                    w, stored = -w, stored[:, ::-1]
                if rows:
                    h, stored = -h, stored[::-1]
                if transpose:
                    w, h, stored = h, w, stored.T
                affine = np.eye(4)
                affine[:3, 0], affine[:3, 1], affine[:3, 2] = np.cross(w, h) * 4, h * 0.8, w * 0.6
                view = display.view_of(replace(base, affine=affine))
                np.testing.assert_array_equal(view.apply(stored), marked)
                assert view.left + view.right + view.top + view.bottom == expected


def test_slices_are_picked_round_the_evidence():
    curve = np.zeros(100, np.float32)
    curve[40:44] = [0.5, 1.0, 0.6, 0.3]
    picked = display.spread(curve, 12)
    assert len(picked) == 12
    assert set(range(40, 44)) <= set(picked)
    assert picked == sorted(picked)
    long = np.full(100, 0.5, np.float32)
    long[37] = 1.0
    assert 37 in display.spread(long, 12)
    assert display.spread(np.zeros(3, np.float32), 12) == [0, 1, 2]


def test_an_empty_map_is_drawn_with_its_reason(tmp_path):
    case = build.ct_case()
    volume = case.result.study.volume
    nothing = build.explain(volume, np.zeros(volume.shape, np.float32))
    assert picture.write(replace(case.result, explanations=(nothing,)), tmp_path, ExportOptions())[0].exists()


def test_the_window_of_the_header_is_used_and_a_senseless_one_is_not():
    volume = build.ct_case().result.study.volume
    assert display.window_of(volume) == (-20.0, 100.0)
    for header in volume.source:
        header.WindowCenter, header.WindowWidth = "30000", "10"
    low, high = display.window_of(volume)
    assert -1000 <= low < high <= 900


def test_of_several_windows_the_one_the_model_saw_is_shown():
    """A soft-tissue window first and a lung window second: a lung model's picture uses the second."""
    volume = build.ct_case().result.study.volume
    volume.source[len(volume.source) // 2].WindowCenter = [50, -600]
    volume.source[len(volume.source) // 2].WindowWidth = [350, 1200]
    assert display.window_of(volume) == (-125.0, 225.0)
    assert display.window_of(volume, (-1000.0, 400.0)) == (-1200.0, 0.0)
    assert display.window_of(replace(volume, source=()), (-1000.0, 400.0)) == (-1000.0, 400.0)
