from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from medxai.errors import SettingsError
from medxai.learn.lung_us.calibration import (
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
    tempered,
)


def drawn(n: int, seed: int, sharpen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and classes that were drawn from their probabilities before the logits were multiplied."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (n, 3))
    truth = np.array([random.choice(3, p=p) for p in softmax(logits, axis=1)])
    return logits * sharpen, truth


def test_the_error_of_calibrated_probabilities_tends_to_nought() -> None:
    errors = []
    for n in (200, 2000, 20_000):
        logits, truth = drawn(n, n)
        errors.append(expected_calibration_error(softmax(logits, axis=1), truth))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01
    logits, truth = drawn(20_000, 1, sharpen=3)
    assert expected_calibration_error(softmax(logits, axis=1), truth) > 0.1


def test_the_error_of_a_hand_made_table() -> None:
    # Four samples of confidence 0.9, of which two are right; one of 0.6 that is right.
    p = [[0.9, 0.1]] * 4 + [[0.4, 0.6]]
    truth = [0, 0, 1, 1, 1]
    assert expected_calibration_error(p, truth, bins=10) == pytest.approx(0.8 * 0.4 + 0.2 * 0.4)
    bars = reliability(p, truth, bins=10)
    assert [bar.n for bar in bars] == [0, 0, 0, 0, 0, 1, 0, 0, 4, 0]  # edges belong to the bin below
    assert (bars[8].confidence, bars[8].accuracy) == (pytest.approx(0.9), 0.5)
    assert np.isnan(bars[0].accuracy)


@given(seed=st.integers(0, 1000), bins=st.integers(2, 20))
def test_bins_are_those_of_scikit_learn_and_lose_nobody(seed: int, bins: int) -> None:
    logits, truth = drawn(150, seed)
    p = softmax(logits, axis=1)
    bars = reliability(p, truth, bins)
    assert sum(bar.n for bar in bars) == 150
    full = [bar for bar in bars if bar.n]
    accuracy, confidence = calibration_curve(p.argmax(1) == truth, p.max(1), n_bins=bins)
    assert [bar.accuracy for bar in full] == pytest.approx(accuracy.tolist())
    assert [bar.confidence for bar in full] == pytest.approx(confidence.tolist())


@given(seed=st.integers(0, 1000), sharpen=st.floats(0.05, 30))
def test_a_temperature_never_makes_the_likelihood_worse_or_another_decision(seed: int, sharpen: float) -> None:
    logits, truth = drawn(40, seed, sharpen)
    temperature = fit_temperature(logits, truth)
    assert 0.02 <= temperature <= 50
    before = negative_log_likelihood(logits, truth)
    assert negative_log_likelihood(logits, truth, temperature) <= before
    if sharpen < 2:  # beyond, scikit-learn's cuts probabilities off at the precision of a number
        assert before == pytest.approx(log_loss(truth, softmax(logits, axis=1), labels=[0, 1, 2]), rel=1e-6)
    p = tempered(logits, temperature)
    assert p.sum(axis=1) == pytest.approx(np.ones(40))
    assert np.array_equal(p.argmax(axis=1), logits.argmax(axis=1))


@pytest.mark.parametrize("sharpen", [0.25, 1.0, 4.0])
def test_the_temperature_that_was_put_in_is_found(sharpen: float) -> None:
    logits, truth = drawn(20_000, 3, sharpen)
    assert fit_temperature(logits, truth) == pytest.approx(sharpen, rel=0.06)


def test_logits_that_are_always_right_are_sharpened_to_the_limit_only() -> None:
    logits = np.eye(3)[[0, 1, 2]] * 2
    sharp = fit_temperature(logits, [0, 1, 2])
    assert 0.02 <= sharp < 0.06  # from there on the likelihood is 1 to the precision of a number
    assert negative_log_likelihood(logits, [0, 1, 2], sharp) < 1e-12
    assert fit_temperature(logits, [1, 2, 0]) == pytest.approx(50, rel=0.05)


def test_nothing_to_judge_is_said() -> None:
    with pytest.raises(SettingsError, match="finite logits"):
        fit_temperature(np.zeros((0, 3)), [])
    with pytest.raises(SettingsError, match="finite logits"):
        fit_temperature([[np.inf, 0.0]], [0])
    with pytest.raises(SettingsError, match=r"got \(1, 2\) and \(2,\)"):
        reliability([[0.5, 0.5]], [0, 1])
