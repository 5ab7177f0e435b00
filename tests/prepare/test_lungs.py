"""The lungs of a chest CT against known truth, on grids of all kinds, and no lungs where there are none."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.prepare.blocks import block_means, enlarged
from medxai.prepare.lungs import lungs
from medxai.study import Volume
from sample_cases.synthetic_ct import SyntheticCt, synthetic_ct
from tests.tools import require_data

SHAPE, SPACING = (36, 120, 130), (8.0, 3.0, 2.6)


@cache
def drawn(seed: int, label: str, tilt: float = 0.0) -> SyntheticCt:
    """A synthetic chest."""
    return synthetic_ct(seed, SHAPE, SPACING, label, tilt_degrees=tilt)


def volume(case: SyntheticCt) -> Volume:
    """Its volume."""
    return Volume(case.hu[None], "DHW", case.affine, "CT")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two masks."""
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_lungs_agree_with_the_truth(seed: int) -> None:
    case = drawn(seed, "normal")
    found = lungs(volume(case))
    assert found is not None
    assert dice(found, case.lungs) > 0.93


def test_a_tilted_grid_changes_nothing() -> None:
    case = drawn(3, "ground_glass", 20.0)
    found = lungs(volume(case))
    assert found is not None
    assert dice(found, case.lungs) > 0.93


@pytest.mark.parametrize("seed", [0, 1])
def test_findings_are_inside_or_within_the_margin_of_the_alarm(seed: int) -> None:
    """Ground glass is inside; of consolidation at the wall nothing shows where it ends, but it is near."""
    glass = drawn(seed, "ground_glass")
    found = lungs(volume(glass))
    assert found is not None
    assert found[glass.truth > 0].mean() > 0.9
    dense = drawn(seed, "consolidation")
    found = lungs(volume(dense))
    assert found is not None
    near = ndimage.distance_transform_edt(~found, sampling=SPACING) <= 20.0
    assert near[dense.truth > 0].mean() > 0.98


def test_slices_along_another_axis_give_the_same_lungs() -> None:
    """A coronal stack of the same patient: the axes change places, with their columns of the affine."""
    case = drawn(0, "normal")
    axial = lungs(volume(case))
    order = [1, 0, 2, 3]
    turned = Volume(np.swapaxes(case.hu, 0, 1)[None], "DHW", case.affine[:, order], "CT")
    coronal = lungs(turned)
    assert axial is not None
    assert coronal is not None
    assert np.array_equal(np.swapaxes(coronal, 0, 1), axial)


def test_few_slices_are_enough_and_air_is_not() -> None:
    case = drawn(0, "normal")
    middle = replace(volume(case), pixels=case.hu[None, 17:19])
    found = lungs(middle)
    assert found is not None
    assert dice(found, case.lungs[17:19]) > 0.9
    assert lungs(replace(middle, pixels=np.full_like(middle.pixels, -1000.0))) is None
    assert lungs(replace(middle, pixels=np.full_like(middle.pixels, 40.0))) is None


def test_gas_foam_and_small_cavities_are_no_lungs() -> None:
    """A body with a litre of pure gas, another with foam around it, a third with mastoids of 5 ml."""
    d, h, w = np.meshgrid(np.arange(40), np.arange(80), np.arange(90), indexing="ij")
    far = np.hypot((h - 40) * 4.0, (w - 45) * 4.0)
    body = np.where(far < 140, 40.0, -1000.0).astype(np.float32)
    affine = np.zeros((4, 4))
    affine[2, 0] = affine[1, 1] = affine[0, 2] = 4.0
    affine[3, 3] = 1.0
    ball = np.sqrt(((d - 20) * 4.0) ** 2 + far**2)
    gas = np.where(ball < 65, -1000.0, body)
    foam = np.where((far >= 140) & (far < 155), -950.0, body)
    small = np.where(ball < 10, -850.0, body)
    for hu in (gas, foam, small):
        assert lungs(Volume(hu[None].astype(np.float32), "DHW", affine, "CT")) is None
    aerated = np.where(ball < 65, -850.0, body).astype(np.float32)
    found = lungs(Volume(aerated[None], "DHW", affine, "CT"))
    assert found is not None
    assert dice(found, ball < 65) > 0.95


def test_blocks_are_means_and_come_back() -> None:
    values = np.arange(5 * 6 * 7, dtype=np.float32).reshape(5, 6, 7)
    blocks = block_means(values, (5.0, 1.0, 2.0), 4.0)
    assert blocks.factors == (1, 4, 2)
    assert blocks.spacing == (5.0, 4.0, 4.0)
    assert blocks.values[2, 0, 1] == values[2, :4, 2:4].mean()
    assert blocks.ml == pytest.approx(0.08)
    big = enlarged(blocks.values > 100, blocks.factors, values.shape)
    assert big.shape == values.shape
    assert big[4].all()
    assert not big[0].any()


@pytest.mark.parametrize(("name", "litres"), [("P002", 4.0), ("cap002", 4.0), ("normal002", 4.7)])
def test_real_chests_have_plausible_volumes(name: str, litres: float) -> None:
    """Nine tenths of it holds air: heart, liver and bowel are not swallowed. Looked at, slice by slice."""
    source = require_data("ct_chest_nifti", f"{name}_half.nii.gz")
    real = read_study(discover([source], source.parent).sources[0], "CT", None).volume
    found = lungs(real)
    assert found is not None
    assert found.sum() * np.prod(real.spacing) / 1e6 == pytest.approx(litres, rel=0.1)
    assert (real.pixels[0][found] < -400).mean() > 0.88


@pytest.mark.parametrize("name", ["ct_head_dicom", "ct_nifti"])
def test_heads_have_no_lungs(name: str) -> None:
    folder = require_data(name)
    sources = discover([folder], folder).sources
    assert sources
    for source in sources:
        assert lungs(read_study(source, "CT", None).volume) is None
