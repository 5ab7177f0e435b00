from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medxai.errors import SettingsError
from medxai.learn.lung_us.uncertainty import combined_confidence, correctness_correlation, rejection_curve
from medxai.networks.vgg_us import VggBase, VggCam
from medxai.predict.augment import Augmentation
from medxai.predict.confidence import PASSES, augmented_passes, believe, confidence_of, dropout_passes


@pytest.fixture(scope="module")
def head() -> nn.Module:
    """What stands behind the frozen trunk of vgg_base, batch normalisation and dropout included."""
    torch.manual_seed(0)
    network = VggBase(3)
    return nn.Sequential(network.head, network.classifier).eval()


def test_dropout_is_what_makes_passes_differ(head: nn.Module) -> None:
    features = torch.rand(4, 512, 7, 7)
    passes = dropout_passes(head, features)
    assert passes.shape == (PASSES, 4, 3)
    assert passes.sum(axis=2) == pytest.approx(np.ones((PASSES, 4)), abs=1e-6)
    assert (believe(passes).sd > 0).all()
    assert (believe(passes).confidence < 1).all()
    # The same network at inference says the same every time.
    with torch.inference_mode():
        calm = torch.stack([head(features).softmax(1) for _ in range(PASSES)]).numpy()
    assert (believe(calm).sd == 0).all()
    assert (believe(calm).confidence == 1).all()


def test_passes_leave_the_network_and_the_global_generator_as_they_were(head: nn.Module) -> None:
    features = torch.rand(4, 512, 7, 7)
    statistics = head[0][3].running_mean.clone()
    head.train()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = dropout_passes(head, features, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert all(module.training for module in head.modules())
    head.eval()
    assert torch.equal(head[0][3].running_mean, statistics)
    assert np.array_equal(first, dropout_passes(head, features, seed=1))
    assert not np.array_equal(first, dropout_passes(head, features, seed=2))


def test_a_network_without_dropout_has_no_epistemic_confidence() -> None:
    with pytest.raises(SettingsError, match="no dropout layer"):
        dropout_passes(nn.Linear(4, 3), torch.rand(2, 4))
    with pytest.raises(SettingsError, match="no dropout layer"):
        dropout_passes(nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 3)), torch.rand(2, 4))


def test_augmented_passes_vary_where_the_picture_does() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 12 * 20, 3))
    structured = torch.rand(1, 3, 12, 20)
    inputs = torch.cat([structured, torch.full_like(structured, 0.25)])
    passes = augmented_passes(network, inputs, fill=0.25)
    assert passes.shape == (PASSES, 2, 3)
    sd = believe(passes).sd
    assert sd[0] > 1e-3
    assert sd[1] < 1e-6  # a picture of the filling value cannot be moved, and dropout is off
    assert network.training
    still = augmented_passes(network, inputs, fill=0.25, plan=Augmentation(), passes=3)
    assert (still == still[0]).all()


def test_confidence_has_the_published_scale() -> None:
    assert confidence_of([0, 0.125, 0.25, 0.5, 0.7]).tolist() == [1, 0.75, 0.5, 0, 0]
    half = np.zeros((10, 1, 2))
    half[:5, :, 0] = half[5:, :, 1] = 1
    half += np.array([0.001, -0.001])  # class 0 is ahead
    belief = believe(half)
    assert belief.decided.tolist() == [0]
    assert belief.confidence[0] == pytest.approx(0, abs=1e-9)
    sure = believe(np.tile([[0.2, 0.8]], (4, 1, 1)))
    assert combined_confidence(belief, sure) == pytest.approx([0.5])
    with pytest.raises(SettingsError, match="at least two passes"):
        believe(np.zeros((1, 4, 3)))


@given(seed=st.integers(0, 1000), passes=st.integers(2, 20))
def test_confidence_is_between_nought_and_one_for_the_class_of_the_mean(seed: int, passes: int) -> None:
    p = np.random.default_rng(seed).dirichlet(np.full(3, 0.3), (passes, 7))
    belief = believe(p)
    assert ((belief.confidence >= 0) & (belief.confidence <= 1)).all()
    assert belief.mean.sum(axis=1) == pytest.approx(np.ones(7))
    for i in range(7):
        assert belief.sd[i] == pytest.approx(np.std(p[:, i, belief.mean[i].argmax()]))


def test_rejecting_the_least_confident_follows_a_hand_made_table() -> None:
    curve = rejection_curve([0.9, 0.9, 0.5, 0.1], [True, False, True, False])
    assert curve.kept.tolist() == [0.5, 0.75, 1.0]  # equals go together
    assert curve.accuracy.tolist() == pytest.approx([0.5, 2 / 3, 0.5])
    assert curve.threshold.tolist() == [0.9, 0.5, 0.1]


@given(seed=st.integers(0, 1000))
def test_a_rejection_curve_ends_at_the_plain_accuracy(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence, correct = random.integers(0, 8, 50) / 8, random.random(50) < 0.7
    curve = rejection_curve(confidence, correct)
    assert curve.kept[-1] == 1
    assert curve.accuracy[-1] == pytest.approx(correct.mean())
    for kept, accuracy, threshold in zip(curve.kept, curve.accuracy, curve.threshold, strict=True):
        assert kept == pytest.approx((confidence >= threshold).mean())
        assert accuracy == pytest.approx(correct[confidence >= threshold].mean())


def test_the_correlation_is_pearsons_and_its_interval_over_patients_is_wider() -> None:
    random = np.random.default_rng(0)
    right = np.repeat(random.random(20) < 0.6, 15)
    confidence = np.where(right, 0.7, 0.4) + np.repeat(random.normal(0, 0.15, 20), 15) + random.normal(0, 0.02, 300)
    patients = [f"p{i // 15}" for i in range(300)]
    by_patient = correctness_correlation(confidence, right, patients, resamples=300)
    by_frame = correctness_correlation(confidence, right, [str(i) for i in range(300)], resamples=300)
    assert by_patient.value == pytest.approx(np.corrcoef(confidence, right)[0, 1])
    assert by_patient.low < by_patient.value < by_patient.high
    assert by_patient.high - by_patient.low > 2 * (by_frame.high - by_frame.low)
    assert np.isnan(correctness_correlation([0.5, 0.6], [True, True], ["a", "b"], resamples=10).value)


def test_the_whole_publication_network_can_be_asked() -> None:
    torch.manual_seed(0)
    network = VggCam(3).eval()
    x = torch.rand(1, 3, 32, 32)
    aleatoric = believe(augmented_passes(network, x, fill=0.0, passes=2))
    epistemic = believe(dropout_passes(network, x, passes=2))
    combined = combined_confidence(aleatoric, epistemic)
    assert 0 < combined[0] <= 1
    assert not network.training
