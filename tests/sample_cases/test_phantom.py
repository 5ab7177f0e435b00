from __future__ import annotations

import time

import numpy as np
import pytest

from sample_cases.phantom import LUNG, phantom

SHAPE, SPACING = (48, 96, 96), (3.0, 3.2, 3.2)


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second = phantom(5, SHAPE, SPACING, 2), phantom(5, SHAPE, SPACING, 2)
    assert first.hu.tobytes() == second.hu.tobytes()
    assert first.lesions == second.lesions
    assert first.hu.tobytes() != phantom(6, SHAPE, SPACING, 2).hu.tobytes()


def test_values_are_whole_hounsfield_units_of_a_chest() -> None:
    hu = phantom(1, SHAPE, SPACING, 0).hu
    assert np.array_equal(hu, np.rint(hu))
    assert hu.min() == -1024
    assert 300 < hu.max() < 700
    lung = (np.abs(hu - LUNG) < 60).mean()
    assert 0.1 < lung < 0.4


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
@pytest.mark.parametrize("tilt", [0.0, 6.0])
def test_lesions_are_where_the_truth_says(seed: int, tilt: float) -> None:
    origin = (11.0, -160.0, 900.0)
    with_lesions = phantom(seed, SHAPE, SPACING, 2, origin_mm=origin, tilt_degrees=tilt, noise_hu=0)
    assert len(with_lesions.lesions) == 2
    for lesion in with_lesions.lesions:
        index = (np.linalg.inv(with_lesions.affine) @ [*lesion.centre_mm, 1])[:3]
        d, h, w = np.rint(index).astype(int)
        assert with_lesions.hu[d, h, w] > (0 if lesion.kind == "solid" else -560)
        grid = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), axis=-1)
        away = np.linalg.norm((grid - index) * SPACING, axis=-1)
        inside = with_lesions.hu[away < 0.6 * lesion.radius_mm]
        around = with_lesions.hu[(away > 1.4 * lesion.radius_mm) & (away < 1.8 * lesion.radius_mm)]
        assert np.median(inside) > np.median(around) + 150


def test_the_affine_is_lps_with_ascending_axes() -> None:
    affine = phantom(1, SHAPE, SPACING, 0, origin_mm=(1, 2, 3)).affine
    middle = affine @ [*(np.array(SHAPE) - 1) / 2, 1]
    assert middle[:3] == pytest.approx([1, 2, 3])
    assert affine[:3, :3] == pytest.approx(np.array([[0, 0, 3.2], [0, 3.2, 0], [3.0, 0, 0]]))


def test_the_same_patient_on_a_finer_grid_has_the_same_lesions() -> None:
    coarse = phantom(8, (40, 80, 80), (4.0, 4.0, 4.0), 1, noise_hu=0)
    fine = phantom(8, (80, 160, 160), (2.0, 2.0, 2.0), 1, noise_hu=0)
    assert np.linalg.norm(np.subtract(coarse.lesions[0].centre_mm, fine.lesions[0].centre_mm)) < 4
    pooled = fine.hu.reshape(40, 2, 80, 2, 80, 2).mean(axis=(1, 3, 5))
    assert np.corrcoef(pooled.ravel(), coarse.hu.ravel())[0, 1] > 0.97


def test_no_lung_in_the_field_of_view_is_an_error() -> None:
    with pytest.raises(ValueError, match="too little lung"):
        phantom(1, (8, 16, 16), (2.0, 2.0, 2.0), 1, offset_mm=(0, 200, 0))


def test_it_is_fast_enough_to_train_on() -> None:
    phantom(0, SHAPE, SPACING, 2)
    took = []
    for seed in range(5):
        started = time.process_time()
        phantom(seed, SHAPE, SPACING, 2)
        took.append(time.process_time() - started)
    assert min(took) < 0.3
