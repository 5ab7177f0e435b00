"""Ablation of functional networks over a fusion network: exact against computing everything anew."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medxai.prepare.brain.scaling import spatial
from medxai.trust.fusion_ablation import FusionAblation, auroc, log_probability
from tests.export.brain import cohort
from tests.studies import command


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    people = cohort.fewer(cohort.people(6), 6)
    bundle, allow = cohort.write_bundle(folder, people)
    return folder, people, bundle, allow


@pytest.mark.parametrize("operator", ["mean", "noise"])
def test_reused_encodings_give_what_all_anew_gives(site, operator):
    _, people, bundle, allow = site
    model = cohort.load(bundle, allow)
    subjects, truth = [p.features for p in people], [p.label for p in people]
    score = FusionAblation(model, subjects, truth, operator, batch=4)
    assert score.matrices == ("sfc", "dfc", "fa")
    inputs, present = model.scaling().inputs(subjects)
    with torch.inference_mode():
        known = model.network()(inputs, present).double().log_softmax(1).numpy()
    rows = score(np.zeros(6, bool))
    np.testing.assert_allclose(rows[:, 0], known[np.arange(6), truth], atol=1e-5)
    np.testing.assert_allclose(rows[:, 1], known[:, 1] - known[:, 0], atol=1e-5)
    assert log_probability(rows) == pytest.approx(known[np.arange(6), truth].mean(), abs=1e-5)
    if operator == "mean":
        removed = np.array([True, False, True, False, False, False])
        changed = {name: value.clone() for name, value in inputs.items()}
        for name in ("sfc", "dfc", "fa"):  # the training mean is 0 in deviations of the training subjects
            changed[name][:, :, removed] = 0
            changed[name][:, :, :, removed] = 0
        with torch.inference_mode():
            anew = model.network()(changed, present).double().log_softmax(1).numpy()
        np.testing.assert_allclose(score(removed)[:, 0], anew[np.arange(6), truth], atol=1e-5)
        assert np.abs(anew - known).max() > 1e-4
    assert spatial("sfc", torch.zeros(1, 2, 2)).shape == (1, 1, 2, 2, 1)


def test_auroc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    random = np.random.default_rng(0)
    rows = np.c_[random.random(40), random.integers(0, 6, 40), random.integers(0, 2, 40)]
    assert auroc(rows) == pytest.approx(roc_auc_score(rows[:, 2], rows[:, 1]))
    assert auroc(rows[rows[:, 2] > 0]) == 0.5


@pytest.mark.slow
def test_ablate_writes_tables_sentences_and_pictures_once(site, capfd, tmp_path):
    folder, people, bundle, allow = site
    features = cohort.write_cohort(folder / "features", people)
    arguments = ("brain", "ablate", features, "-b", bundle, "-o", tmp_path, "--allow", allow, "--no-only")
    assert command(capfd, *arguments).code == 0
    known = json.loads((tmp_path / "ablation.json").read_text())
    item = known["metrics"]["log_probability"]
    assert [e["network"] for e in item["effects"]["without"]] == ["Back", "Front"]
    whole = sum(item["shapley"].values())
    model = cohort.load(bundle, allow)
    score = FusionAblation(model, [p.features for p in people], [p.label for p in people])
    none, everything = score(np.zeros(6, bool)), score(np.ones(6, bool))
    assert whole == pytest.approx(log_probability(none) - log_probability(everything), abs=1e-6)
    assert "Removing the Back network changed" in (tmp_path / "ablation.md").read_text()
    assert len((tmp_path / "subjects.tsv").read_text().splitlines()) == 7
    assert "done before" in command(capfd, *arguments).out
