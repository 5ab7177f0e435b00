"""A network that sees the lungs alone, in our preparation and in MONAI's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medxai.errors import MismatchError
from medxai.predict.bundle_spec import MedxaiBlock
from medxai.predict.write import inference_config
from medxai.prepare.monai_lungs import LungsAloned
from medxai.prepare.prepare import lungs_alone, prepare
from medxai.prepare.spec import PreparationSpec, WindowIntensity
from medxai.study import Volume
from sample_cases.synthetic_ct import synthetic_ct

SPEC = PreparationSpec(
    axes="DHW",
    window=(16, 40, 48),
    spacing_mm=(6.0, 7.0, 7.0),
    intensity=WindowIntensity(low=-1000, high=200),
    fill=-1024.0,
    region="lungs",
)


def chest(tilt: float = 0.0) -> tuple[Volume, np.ndarray]:
    case = synthetic_ct(11, (26, 66, 60), (6.0, 5.0, 5.5), "normal", tilt_degrees=tilt)
    return Volume(case.hu[None], "DHW", case.affine, "CT"), case.lungs


@pytest.mark.parametrize("tilt", [0.0, 12.0])
def test_outside_the_lungs_there_is_nothing(tilt: float) -> None:
    volume, truth = chest(tilt)
    alone = lungs_alone(volume, SPEC.fill).pixels[0]
    shown = alone > SPEC.fill
    assert np.array_equal(alone[shown], volume.pixels[0][shown])
    assert 2 * (shown & truth).sum() / (shown.sum() + truth.sum()) > 0.9
    prepared = prepare(volume, SPEC).pixels
    assert prepared.shape[1] >= 16
    whole = prepare(volume, SPEC.model_copy(update={"region": None})).pixels
    assert (prepared == 0).mean() > 0.5
    assert prepared.max() <= 1
    assert (whole > 0.5).mean() > 3 * (prepared > 0.5).mean()


def test_without_lungs_it_is_refused() -> None:
    block = np.full((1, 20, 40, 36), 40, np.float32)
    with pytest.raises(MismatchError, match="no lungs"):
        prepare(Volume(block, "DHW", np.diag([5.0, 5, 5, 1]), "CT"), SPEC)


def test_planes_have_no_lungs() -> None:
    with pytest.raises(ValueError, match="DHW"):
        PreparationSpec(axes="HW", window=(8, 8), intensity=WindowIntensity(low=0, high=1), region="lungs")


def test_monai_blanks_the_same_voxels() -> None:
    volume, _ = chest()
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    image = MetaTensor(torch.from_numpy(volume.pixels), affine=torch.from_numpy(ras))
    found = LungsAloned(keys="image", fill=SPEC.fill)({"image": image, "other": 1})
    assert np.array_equal(np.asarray(found["image"]), lungs_alone(volume, SPEC.fill).pixels)
    assert found["other"] == 1
    assert torch.equal(found["image"].affine, image.affine)
    assert np.array_equal(np.asarray(image), volume.pixels)


def test_the_bundle_tells_monai() -> None:
    block = MedxaiBlock(
        labels=("a", "b"),
        modalities=("CT",),
        body_parts=("CHEST",),
        preparation=SPEC,
        activation="softmax",
        licence="x",
    )
    steps = inference_config({"_target_": "x"}, block)["preprocessing"]["transforms"]
    names = [step["_target_"] for step in steps]
    assert names.index("medxai.prepare.monai_lungs.LungsAloned") < names.index("Spacingd")
