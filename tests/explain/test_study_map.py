"""Maps of whole studies: flags with their reasons, windows, cines, and what is stored between stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medxai.errors import ExplainError
from medxai.explain.store import load_analysis, save_analysis
from medxai.explain.study_map import ExplainOptions, explain_study
from medxai.prepare.prepare import Prepared, prepare
from medxai.prepare.spec import AffineIntensity, PreparationSpec
from medxai.study import Study, TrustReport, Volume, image_affine
from tests.test_geometry_proof import PlainBundle, Spotter, bundle

BRIGHT = ExplainOptions(methods=("gradcam", "hirescam"), class_label="bright")


def volume_study(shape: tuple[int, int, int] = (16, 32, 32), seed: int = 0) -> Study:
    """A study whose grid equals the network's (3, 2, 2 mm), with noise."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 2.0], [0, 2.0, 0], [3.0, 0, 0]])
    pixels = np.random.default_rng(seed).random((1, *shape)).astype(np.float32)
    return Study("0123456789ab", "nifti", "0" * 64, Volume(pixels, "DHW", affine, "CT"))


def prepared_of(study: Study, model: PlainBundle) -> Prepared:
    """Prepared input of a study."""
    return prepare(study.volume, model.spec.preparation)


class Weighted(Spotter):
    """Spotter with other weights of its head."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor(weights)[:, None])


class Chaotic(Spotter):
    """Its features change completely with the slightest noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, 2]``."""
        return super().forward(torch.relu(torch.sin(x * 1e5)) ** 8)


def test_no_evidence_is_a_result_with_a_reason() -> None:
    """A class that everything speaks against has an all-zero map, flagged and explained, without NaN."""
    study, model = volume_study(), bundle((16, 32, 32))
    options = replace(BRIGHT, class_label="dark")
    _, explanations = explain_study(model, Spotter().eval(), study, prepared_of(study, model), options)
    for item in explanations:
        assert "empty" in item.flags
        assert "no position speaks for this class" in item.reason
        assert not item.map.any()
        assert np.isfinite(item.map).all()
        assert item.raw.min() < 0  # the signed raw map is kept
        assert not item.normalised().any()


def test_same_map_for_every_class_is_flagged() -> None:
    """When the runner-up's map is the same, the map says nothing about the class."""
    study, model = volume_study(), bundle((16, 32, 32))
    _, both = explain_study(model, Weighted([1.0, 2.0]).eval(), study, prepared_of(study, model), BRIGHT)
    assert all("class_agnostic" in item.flags and "runner-up" in item.reason for item in both)
    _, apart = explain_study(model, Weighted([-1.0, 2.0]).eval(), study, prepared_of(study, model), BRIGHT)
    assert not any("class_agnostic" in item.flags for item in apart)


def test_maps_that_noise_changes_are_flagged() -> None:
    """The stability check separates a smooth network from a chaotic one, and can be switched off."""
    study, model = volume_study(), bundle((16, 32, 32))
    _, calm = explain_study(model, Spotter().eval(), study, prepared_of(study, model), BRIGHT)
    assert not any("unstable" in item.flags for item in calm)
    _, wild = explain_study(model, Chaotic().eval(), study, prepared_of(study, model), BRIGHT)
    assert all("unstable" in item.flags and "noise" in item.reason for item in wild)
    quiet = replace(BRIGHT, stability=False)
    _, unchecked = explain_study(model, Chaotic().eval(), study, prepared_of(study, model), quiet)
    assert not any("unstable" in item.flags for item in unchecked)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_windows_in_any_batch_give_the_same_bytes(batch: int) -> None:
    """Batching is a matter of memory alone; the study is larger than the window on every axis."""
    study, model = volume_study((20, 40, 44)), bundle((8, 16, 16))
    prepared = prepared_of(study, model)
    first, one = explain_study(model, Spotter().eval(), study, prepared, replace(BRIGHT, batch_size=2))
    again, other = explain_study(model, Spotter().eval(), study, prepared, replace(BRIGHT, batch_size=batch))
    assert first.window_logits is not None
    assert len(first.window_logits) > 8
    assert np.allclose(first.logits, again.logits, atol=1e-6)
    for a, b in zip(one, other, strict=True):
        assert a.map.shape == study.volume.shape
        assert np.allclose(a.map, b.map, atol=1e-8)


def test_a_window_without_finding_does_not_colour_the_map() -> None:
    """With a smooth maximum over windows, evidence elsewhere is weighted away."""
    model = bundle((8, 16, 16))
    spec = model.spec.model_copy(update={"fusion": "lse", "temperature": 0.05})
    model = replace(model, spec=spec)
    study = volume_study((24, 48, 48))
    pixels = np.zeros((1, 24, 48, 48), np.float32)
    pixels[0, 4, 8, 8] = 10_000.0  # a strong finding
    pixels[0, 20, 40, 40] = 5_000.0  # a weak one in another window
    prepared = Prepared(pixels, prepared_of(study, model).grid)
    _, (smooth, _) = explain_study(model, Spotter().eval(), study, prepared, BRIGHT)
    mean = replace(model, spec=spec.model_copy(update={"fusion": "mean"}))
    _, (plain, _) = explain_study(mean, Spotter().eval(), study, prepared, BRIGHT)
    weak = (slice(16, 24), slice(32, 48), slice(32, 48))
    assert np.unravel_index(smooth.map.argmax(), smooth.map.shape)[0] < 8
    assert plain.map[weak].max() > 0.05 * plain.map.max()
    assert smooth.map[weak].max() < 0.01 * smooth.map.max()


class Flat(nn.Module):
    """Two-dimensional counterpart of Spotter."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Sequential(nn.AvgPool2d(4), nn.ReLU())
        self.fc = nn.Linear(1, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-1.0], [1.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, 2]``."""
        return self.fc(self.act(x).flatten(2).mean(-1))


def test_cine_keeps_when_and_where() -> None:
    """A flash in one frame gives a map in that frame alone, at its place."""
    spec = PreparationSpec(axes="HW", window=(16, 24), intensity=AffineIntensity(mean=(0.0,), std=(1.0,)))
    model = replace(bundle((8, 16, 16)), spec=bundle((8, 16, 16)).spec.model_copy(update={"preparation": spec}))
    pixels = np.zeros((1, 5, 32, 48), np.float32)
    pixels[0, 3, 20:22, 10:12] = 50
    study = Study("0123456789ab", "video", "0" * 64, Volume(pixels, "THW", image_affine(), "US", calibrated=False))
    prediction, (item, _) = explain_study(model, Flat().eval(), study, prepared_of(study, model), BRIGHT)
    assert item.map.shape == (5, 32, 48)
    frame, row, column = np.unravel_index(item.map.argmax(), item.map.shape)
    assert frame == 3
    assert abs(row - 20.5) <= 4
    assert abs(column - 10.5) <= 4
    assert not item.map[[0, 1, 2, 4]].any()
    assert item.cell_mm == (0.0, 8.0, 8.0)
    assert prediction.window_logits is not None
    assert prediction.window_logits.shape == (5, 2)


def test_stored_analysis_comes_back(tmp_path: Path) -> None:
    """What is read back equals what was computed, and another model's file is refused."""
    study, model = volume_study((20, 40, 44)), bundle((8, 16, 16))
    prediction, explanations = explain_study(model, Spotter().eval(), study, prepared_of(study, model), BRIGHT)
    trust = (TrustReport("limited", ("one", "two"), {"deletion": 0.5, "outside": float("nan")}, masking=("blur",)),)
    path = save_analysis(tmp_path / "a.npz", prediction, explanations, trust)
    first = path.read_bytes()
    again, loaded, judged = load_analysis(path, study, model)
    assert repr(judged) == repr(trust)  # NaN is not equal to itself
    assert again.labels == prediction.labels
    assert np.array_equal(again.probabilities, prediction.probabilities)
    for a, b in zip(explanations, loaded, strict=True):
        assert np.array_equal(a.map, b.map)
        assert np.array_equal(a.raw, b.raw)
        assert (a.method, a.layer, a.flags, a.reason, a.cell_mm) == (b.method, b.layer, b.flags, b.reason, b.cell_mm)
    assert save_analysis(path, prediction, explanations, trust).read_bytes() == first
    with pytest.raises(ExplainError, match="another model"):
        load_analysis(path, study, replace(model, sha256="0" * 64))
    path.write_bytes(first[:100])
    with pytest.raises(ExplainError, match="cannot be read"):
        load_analysis(path, study, model)


def test_unknown_class_is_named() -> None:
    """The message lists the classes there are."""
    study, model = volume_study(), bundle((16, 32, 32))
    options = replace(BRIGHT, class_label="purple")
    with pytest.raises(ExplainError, match="no class 'purple'; it has dark, bright"):
        explain_study(model, Spotter().eval(), study, prepared_of(study, model), options)
