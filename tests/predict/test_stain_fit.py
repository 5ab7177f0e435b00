"""Photographs, grey pictures and other stains are no tissue in the stains of a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from medxai.predict.bundle_spec import SlideColours
from medxai.predict.stain_fit import foreign_colours
from medxai.study import Volume, image_affine
from tests import stained
from tests.studies import command
from tests.tools import require_data

HE = SlideColours(
    vectors=stained.unit(stained.HE).T.tolist(), strongest=(1, 1), variances=(1, 1, 1),
    directions=((1, 0, 0), (0, 1, 0), (0, 0, 1)), white=(244, 244, 244),
)  # fmt: skip


def picture(pixels: np.ndarray) -> Volume:
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return Volume(np.ascontiguousarray(planes, np.float32), "HW", image_affine(), "SM", calibrated=False)


def test_tissue_in_the_stains_is_near_and_other_things_are_not() -> None:
    tissue = stained.amounts((120, 160), seed=2)
    assert foreign_colours(picture(stained.colours(tissue)), HE) is None
    assert foreign_colours(picture(stained.colours(tissue, stained.OTHER_HE)), HE) is None
    assert "no mixture of the stains" in (foreign_colours(picture(stained.colours(tissue, stained.HDAB)), HE) or "")
    for photograph in load_sample_images().images:
        assert foreign_colours(picture(photograph), HE) is not None
    grey = np.repeat(np.linspace(0, 255, 120).astype(np.uint8)[:, None], 90, 1)
    assert foreign_colours(picture(grey), HE) == "the picture is grey and not of stained tissue"
    assert foreign_colours(picture(np.stack([grey] * 3, -1)), HE) is not None


def test_glass_alone_is_somebody_elses_to_refuse() -> None:
    assert foreign_colours(picture(np.full((40, 60, 3), 243, np.uint8)), HE) is None


def test_a_photograph_is_put_aside_and_told_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(load_sample_images().images[0]).save(tmp_path / "in" / "holiday.jpg")
    words = ("run", tmp_path / "in", "-b", "histo_tumour", "-o", tmp_path / "out", "--modality", "SM")
    refused = command(capfd, *words)
    assert refused.code == 2
    assert "histo_tumour reads stained tissue" in refused.err
    assert command(capfd, *words, "--force").code == 0


def test_tissue_of_other_laboratories_is_read_by_the_shipped_bundle() -> None:
    """Published stain vectors of H&E that are far from those of its training tiles; H-DAB is not."""
    from medxai.predict.bundle import load_bundle

    spec = load_bundle("histo_tumour").spec.slide
    assert spec is not None
    assert spec.colours is not None
    for seed, vectors in enumerate((stained.HE, stained.OTHER_HE)):
        tissue = stained.amounts((150, 210), seed=seed)
        assert foreign_colours(picture(stained.colours(tissue, vectors)), spec.colours) is None
    assert foreign_colours(picture(stained.colours(tissue, stained.HDAB)), spec.colours) is not None


@pytest.mark.data
def test_no_training_patch_is_foreign() -> None:
    from medxai.predict.bundle import load_bundle

    spec = load_bundle("histo_tumour").spec.slide
    assert spec is not None
    assert spec.colours is not None
    data = require_data("histo_camelyon").parent
    for path in sorted(data.glob("histo_*/*.jpg")):
        if "_mask" not in path.name:
            with Image.open(path) as image:
                assert foreign_colours(picture(np.asarray(image.convert("RGB"))), spec.colours) is None, path.name
