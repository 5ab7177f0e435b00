from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydicom import Dataset
from torch import nn

from medxai.errors import MismatchError
from medxai.explain.cine import cine_evidence, decisive_frames, refined_peak
from medxai.explain.store import load_analysis, save_analysis
from medxai.explain.study_map import ExplainOptions, explain_study
from medxai.predict.bundle import Bundle
from medxai.predict.bundle_spec import ConfidenceSpec, MedxaiBlock
from medxai.predict.infer import check_fit
from medxai.prepare.prepare import prepare
from medxai.prepare.spec import PreparationSpec, WindowIntensity
from medxai.study import Study, TrustReport, Volume, image_affine
from medxai.trust.gate.assess import assess_study
from medxai.trust.gate.verdict import cap
from tests.predict.build import CARD

#: A cine of 40 frames; a bright blob in frames 20 to 30 decides the class.
FRAMES, ROWS, COLUMNS = 40, 61, 85
BLOB = (slice(20, 31), slice(30, 44), slice(40, 58))

SPEC = MedxaiBlock(
    labels=("blob", "plain", "nothing"),
    modalities=("US",),
    body_parts=("LUNG",),
    preparation=PreparationSpec(
        axes="HW", window=(48, 48), channels=1, intensity=WindowIntensity(low=0, high=255), fit="crop"
    ),
    target_layer="features",
    activation="softmax",
    fusion="probability",
    reject="nothing",
    colour_flow=False,
    confidence=ConfidenceSpec(passes=4, pictures=5),
    licence="CC0-1.0",
)


class Finder(nn.Module):
    """Sees the blob by its brightness, calls plain grey plain and darkness nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 3, 1))
        self.dropout = nn.Dropout(0.3)
        with torch.no_grad():
            convolution = self.features[1]
            convolution.weight.copy_(torch.tensor([8.0, 0.0, -8.0]).view(3, 1, 1, 1))
            convolution.bias.copy_(torch.tensor([-5.6, 0.5, 0.4]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits from rectified evidence, so that the whole picture does not outvote one place."""
        found = torch.relu(self.features(x))
        return self.dropout(torch.stack([60 * found[:, 0].mean((1, 2)), found[:, 1].mean((1, 2)),
                                         8 * found[:, 2].mean((1, 2))], 1))  # fmt: skip


def made() -> tuple[Bundle, nn.Module]:
    metadata = CARD.metadata(SPEC, task="test")
    return Bundle("finder", "1.0.0", Path("finder"), "d" * 64, metadata), Finder().eval()


def cine(*, blob: bool = True, level: float = 80.0) -> Volume:
    rng = np.random.default_rng(1)
    pixels = np.clip(level + 12 * rng.standard_normal((1, FRAMES, ROWS, COLUMNS)), 0, 255).astype(np.float32)
    if blob:
        pixels[:, *BLOB] = 250
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.04, 0.05
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 4, 6
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = COLUMNS - 1, ROWS - 1
    header = Dataset()
    header.SequenceOfUltrasoundRegions = [region]
    return Volume(
        pixels, "THW", image_affine(0.5, 0.4), "US", calibrated=True, source=(header,),
        frame_numbers=tuple(range(1, FRAMES + 1)), frame_seconds=0.04,
    )  # fmt: skip


def test_the_frames_and_the_place_that_decide_are_found(tmp_path: Path) -> None:
    volume = cine()
    bundle, network = made()
    study = Study("0123456789ab", "dicom", "c" * 64, volume)
    prepared = prepare(volume, SPEC.preparation)
    prediction, (explanation,) = explain_study(bundle, network, study, prepared, ExplainOptions())
    forced = replace(prediction, index=0)
    assert prediction.window_probabilities is not None
    # The mean of the frames' probabilities, as the publication decides.
    assert prediction.probabilities == pytest.approx(prediction.window_probabilities.mean(axis=0), abs=1e-5)
    prediction, (explanation,) = explain_study(bundle, network, study, prepared, ExplainOptions(class_label="blob"))
    evidence = cine_evidence(volume, forced, explanation)
    assert evidence is not None
    assert evidence.decisive == tuple(range(20, 31))
    assert [peak.frame for peak in evidence.peaks] == list(evidence.decisive)
    for peak in evidence.peaks:
        assert BLOB[1].start <= peak.row < BLOB[1].stop
        assert BLOB[2].start <= peak.column < BLOB[2].stop
        assert peak.depth_mm == pytest.approx((peak.row - 6) * 0.5)
        assert peak.across_mm == pytest.approx((peak.column - 4) * 0.4)
    # The frames' share of the evidence follows their share of the probability.
    outside = np.delete(explanation.normalised(), range(20, 31), axis=0)
    assert outside.max() < 0.05
    # Nothing beside the central square that the network sees.
    assert not explanation.map[:, :, : (COLUMNS - ROWS) // 2 - 1].any()
    assert evidence.votes.tolist() == prediction_votes(prediction.window_probabilities)
    assert evidence.declined == 0
    assert evidence.warning() is None
    stored = load_analysis(save_analysis(tmp_path / "a.npz", prediction, (explanation,)), study, bundle)[0]
    assert stored.confidence == prediction.confidence
    assert stored.reject == "nothing"
    assert np.array_equal(stored.window_probabilities, prediction.window_probabilities)


def prediction_votes(probabilities: npt.NDArray[np.float32] | None) -> list[int]:
    assert probabilities is not None
    return np.bincount(probabilities.argmax(axis=1), minlength=3).tolist()


def test_pictures_that_the_model_is_not_for_are_refused(tmp_path: Path) -> None:
    volume = cine(blob=False, level=0.0)
    bundle, network = made()
    study = Study("0123456789ab", "dicom", "c" * 64, volume)
    prepared = prepare(volume, SPEC.preparation)
    with pytest.raises(MismatchError, match="calls 40 of 40 pictures nothing"):
        explain_study(bundle, network, study, prepared, ExplainOptions())
    prediction, _ = explain_study(bundle, network, study, prepared, ExplainOptions(force=True))
    assert prediction.label == "nothing"


def test_colour_doppler_is_refused_by_its_colours_and_by_its_header(tmp_path: Path) -> None:
    bundle, _ = made()
    grey = cine()
    check_fit(bundle, grey)
    colour = np.repeat(grey.pixels, 3, axis=0)
    check_fit(bundle, replace(grey, pixels=colour))
    colour[0, 7, 10:30, 10:30] = 255
    colour[1:, 7, 10:30, 10:30] = 20
    with pytest.raises(MismatchError, match="coloured, as in Doppler"):
        check_fit(bundle, replace(grey, pixels=colour))
    check_fit(bundle, replace(grey, pixels=colour), force=True)
    grey.source[0].SequenceOfUltrasoundRegions[0].RegionDataType = 2
    with pytest.raises(MismatchError, match="region of colour flow"):
        check_fit(bundle, grey)


def test_the_confidence_of_a_network_with_dropout_has_both_kinds(tmp_path: Path) -> None:
    volume = cine()
    bundle, network = made()
    study = Study("0123456789ab", "dicom", "c" * 64, volume)
    prediction, _ = explain_study(bundle, network, study, prepare(volume, SPEC.preparation), ExplainOptions())
    sure = prediction.confidence
    assert sure is not None
    assert (sure.passes, sure.pictures) == (4, 5)
    assert all(0 <= value < 1 for value in (*sure.aleatoric[:2], *sure.epistemic[:2]))
    assert sure.of(0) == pytest.approx((sure.aleatoric[0] + sure.epistemic[0]) / 2)
    again, _ = explain_study(bundle, network, study, prepare(volume, SPEC.preparation), ExplainOptions())
    assert again.confidence == sure


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_decisive_frames_are_the_sure_ones_or_the_best_five(p: list[float]) -> None:
    found = decisive_frames(p)
    above = [i for i, v in enumerate(p) if v > 0.75]
    if above:
        assert list(found) == above
    else:
        assert len(found) == min(5, len(p))
        assert min(p[i] for i in found) >= max((v for i, v in enumerate(p) if i not in found), default=0)
    assert list(found) == sorted(found)


def test_a_peak_is_a_place_and_not_one_bright_pixel() -> None:
    values = np.zeros((40, 50), np.float32)
    values[20:23, 30:33] = 0.9
    values[18, 28] = 1.0  # one pixel, brighter than the place beside it
    assert refined_peak(values) == (21, 31)


@given(row=st.integers(0, 12), column=st.integers(0, 17))
def test_a_peak_at_the_edge_stays_inside(row: int, column: int) -> None:
    values = np.zeros((13, 18), np.float32)
    values[row, column] = 1
    found = refined_peak(values)
    assert abs(found[0] - row) <= 1
    assert abs(found[1] - column) <= 1


def test_stills_and_volumes_have_no_course() -> None:
    volume = cine()
    still = replace(volume, axes="HW", pixels=volume.pixels[:, 0])
    assert cine_evidence(still, None, None) is None  # type: ignore[arg-type]


def test_a_header_without_body_part_keeps_a_map_from_being_supported() -> None:
    """Networks that decline pictures still take a heart for a lung: somebody has to say what was examined."""
    bundle, network = made()
    volume = cine()
    prepared = prepare(volume, SPEC.preparation)
    for body_part, kind, said in (("", "dicom", True), ("LUNG", "dicom", False), ("", "video", False)):
        study = Study("0123456789ab", kind, "c" * 64, replace(volume, body_part=body_part))  # type: ignore[arg-type]
        prediction, explanations = explain_study(bundle, network, study, prepared, ExplainOptions())
        reports = assess_study(bundle, network, study, prepared, prediction, explanations, ExplainOptions(), None)
        assert any("names no body part" in reason for reason in reports[0].reasons) is said


def test_a_doubt_limits_what_was_supported_and_withholds_nothing_more() -> None:
    for before, after in (("supported", "limited"), ("limited", "limited"), ("withheld", "withheld")):
        report = cap(TrustReport(before, ("first",)), "doubt")  # type: ignore[arg-type]
        assert report.verdict == after
        assert report.reasons == ("first", "doubt")


def test_letters_over_a_still_are_said() -> None:
    bundle, network = made()
    rng = np.random.default_rng(2)
    plain = np.clip(80 + 12 * rng.standard_normal((1, 300, 400)), 0, 200).astype(np.float32)
    picture = Image.fromarray(plain[0].astype(np.uint8))
    ImageDraw.Draw(picture).text((120, 40), "DEMO LUNG 12 cm", fill=255, font_size=24)
    lettered = np.asarray(picture, np.float32)[None]
    for pixels, said in ((plain, False), (lettered, True)):
        volume = Volume(pixels, "HW", image_affine(), "US", calibrated=False)
        study = Study("0123456789ab", "picture", "c" * 64, volume)
        prepared = prepare(volume, SPEC.preparation)
        prediction, explanations = explain_study(bundle, network, study, prepared, ExplainOptions(force=True))
        reports = assess_study(bundle, network, study, prepared, prediction, explanations, ExplainOptions(), None)
        assert any("letters or marks cover" in reason for reason in reports[0].reasons) is said
