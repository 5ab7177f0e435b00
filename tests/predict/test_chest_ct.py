"""Chest CT that a model was not made for is refused with figures, unless forced; the rest of a batch is done."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from pydantic import ValidationError
from pydicom import Dataset

from medxai.errors import MismatchError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.predict.bundle_spec import ChestSpec, MedxaiBlock
from medxai.predict.chest_ct import SHARE, enhanced_share, misfits
from medxai.predict.infer import check_fit
from medxai.prepare.lungs import lungs
from medxai.study import Volume
from medxai.trust.metal import metal
from sample_cases.synthetic_ct import SyntheticCt, synthetic_ct
from tests.predict.build import BLOCK
from tests.test_geometry_proof import PlainBundle
from tests.tools import require_data

SPEC = ChestSpec(thickest_mm=8.0, least_mm=160.0)
CHEST = BLOCK.model_copy(update={"chest": SPEC, "organ": "lungs"})


@cache
def drawn(contrast_hu: float = 0.0, metallic: bool = False) -> SyntheticCt:
    """A chest with a consolidation."""
    return synthetic_ct(1, (24, 84, 96), (8.0, 4.0, 4.0), "consolidation", contrast_hu=contrast_hu, metal=metallic)


def volume(case: SyntheticCt) -> Volume:
    """Its volume."""
    return Volume(case.hu[None], "DHW", case.affine, "CT")


def test_a_chest_passes_with_its_consolidation() -> None:
    assert list(misfits(SPEC, volume(drawn()))) == []


def test_too_little_and_too_thick_are_refused_with_figures() -> None:
    few = replace(volume(drawn()), pixels=drawn().hu[None, 8:14])
    assert list(misfits(SPEC, few)) == ["needs 160 mm along the slices, the study has 6 slices over 48 mm"]
    affine = drawn().affine.copy()
    affine[:3, 0] *= 1.5
    thick = replace(volume(drawn()), affine=affine)
    assert list(misfits(SPEC, thick)) == ["needs slices at most 8 mm apart, those of the study are 12 mm apart"]


@pytest.mark.parametrize("contrast_hu", [150.0, 300.0])
def test_contrast_medium_is_seen_in_the_pixels(contrast_hu: float) -> None:
    enhanced = volume(drawn(contrast_hu))
    (words,) = misfits(SPEC, enhanced)
    assert "of the mediastinum is brighter than 100 HU" in words
    assert list(misfits(SPEC.model_copy(update={"contrast": True}), enhanced)) == []


def test_contrast_medium_is_read_in_the_header_without_quoting_it() -> None:
    header = Dataset()
    header.ContrastBolusAgent = "Agent of Mr Secret"
    (words,) = misfits(SPEC, replace(volume(drawn()), source=(header,)))
    assert words == "was made for CT without contrast medium, the header names a contrast medium (ContrastBolusAgent)"


def test_metal_is_no_contrast_and_refuses_nothing() -> None:
    pacemaker = volume(drawn(metallic=True))
    assert list(misfits(SPEC, pacemaker)) == []
    assert "metal in the body" in (metal(pacemaker) or "")


def test_check_fit_refuses_and_can_be_forced() -> None:
    bundle = PlainBundle(CHEST, name="tiny")
    enhanced = volume(drawn(300.0))
    with pytest.raises(MismatchError, match=r"^tiny was made for CT without contrast medium.*; --force goes on$"):
        check_fit(bundle, enhanced)
    check_fit(bundle, enhanced, force=True)
    check_fit(bundle, volume(drawn()))


def test_the_fields_are_for_ct_volumes() -> None:
    with pytest.raises(ValidationError, match="organ and chest speak of CT volumes"):
        MedxaiBlock.model_validate({**CHEST.model_dump(), "modalities": ("MR",)})
    assert MedxaiBlock.model_validate(BLOCK.model_dump(exclude={"organ", "chest"})).chest is None


@pytest.mark.parametrize("name", ["P002", "cap002", "normal002"])
def test_real_chests_without_contrast_pass(name: str) -> None:
    source = require_data("ct_chest_nifti", f"{name}_half.nii.gz")
    real = read_study(discover([source], source.parent).sources[0], "CT", None).volume
    assert enhanced_share(real, lungs(real)) < 0.6 * SHARE


def test_a_head_is_no_chest() -> None:
    folder = require_data("ct_head_dicom")
    head = read_study(discover([folder], folder).sources[0], "CT", None).volume
    (words,) = misfits(SPEC.model_copy(update={"least_mm": 100.0}), head)
    assert words.startswith("is for the chest, no lungs were found in the study")
    (words,) = misfits(SPEC, head)
    assert words == "needs 160 mm along the slices, the study has 28 slices over 140 mm and shows no lungs"
