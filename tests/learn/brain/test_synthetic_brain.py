"""The simulated cohort: what is planted is there, and nothing else tells patients from controls."""

from __future__ import annotations

import numpy as np
import pytest

from medxai.prepare.brain.subject import MODALITIES
from sample_cases.synthetic_brain import Planted, hcp_carriers, main, simulate, synthetic_carriers
from tests.tools import require_data

PLANTED = Planted(expressed=1.0)


def test_effects_are_where_the_truth_says_and_nowhere_else() -> None:
    carriers = synthetic_carriers(3)
    cohort = simulate(carriers, 12, 5, PLANTED)
    without = simulate(carriers, 12, 5, Planted(expressed=1.0, size=(0.0, 0.0, 0.0)))
    truth = PLANTED.truth(len(carriers[0].regions))
    assert all(case.features.alff[truth["alff"]].all() for case in without)  # the cube lies within the brain
    for case, plain in zip(cohort, without, strict=True):
        assert case.shown == (("alff", "sfc", "dfc") if case.label else ())
        for name, size in zip(("alff", "sfc", "dfc", "fa"), (*PLANTED.size, 0.0), strict=True):
            gain = getattr(case.features, name) - getattr(plain.features, name)
            expected = size * truth[name] * case.label
            np.testing.assert_allclose(gain, expected, atol=1e-5)


def test_a_subject_does_not_depend_on_how_many_there_are() -> None:
    carriers = synthetic_carriers(3)
    few, many = simulate(carriers, 6, 1), simulate(carriers, 12, 1)
    for a, b in zip(few, many, strict=False):
        for name in MODALITIES:
            np.testing.assert_array_equal(getattr(a.features, name), getattr(b.features, name))
    assert not np.array_equal(many[0].features.sfc, simulate(carriers, 1, 2)[0].features.sfc)


def test_carriers_and_classes_are_balanced() -> None:
    cohort = simulate(synthetic_carriers(4), 16, 0)
    pairs = {(case.carrier, case.label) for case in cohort}
    assert len(pairs) == 8
    assert all(sum((c.carrier, c.label) == pair for c in cohort) == 2 for pair in pairs)


def test_a_block_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit beside the diagonal of 20 regions"):
        PLANTED.truth(20)


def test_command(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert main(["--n", "4", "--out", str(tmp_path)]) == 0
    rows = (tmp_path / "participants.tsv").read_text().splitlines()
    assert len(rows) == 5
    with np.load(tmp_path / "sub-0x0001.npz") as stored, np.load(tmp_path / "truth.npz") as truth:
        assert set(stored.files) == {"alff", "dfc", "sfc", "fa", "affine"}
        assert stored["sfc"].shape == truth["sfc"].shape


def test_real_recordings_carry_it() -> None:
    carriers = hcp_carriers(require_data("connectome_hcp"))
    assert len(carriers) == 7
    assert {carrier.bold.shape for carrier in carriers} == {(47, 1200)}
    assert all((carrier.structure == carrier.structure.T).all() for carrier in carriers)
    features = simulate(carriers, 2, 0)[1].features
    assert features.dfc is not None
    assert features.dfc.shape == (47, 47, 24)
    assert len(set(features.networks)) == 7
