"""Ablation of functional networks over a fusion network: exact against computing everything anew."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from medxai.brain_ablate import Cohort, _folds
from medxai.brain_settings import AblateSettings
from medxai.errors import MismatchError
from medxai.prepare.brain.scaling import spatial
from medxai.trust.fusion_ablation import FusionAblation, auroc, log_probability
from medxai.trust.network_removal import Removal
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
        touched = torch.from_numpy(removed[:, None] | removed[None])
        for name in ("sfc", "dfc", "fa"):
            changed[name][:, :, touched] = model.reference()[name][:, :, touched]
        with torch.inference_mode():
            anew = model.network()(changed, present).double().log_softmax(1).numpy()
        np.testing.assert_allclose(score(removed)[:, 0], anew[np.arange(6), truth], atol=1e-5)
        assert np.abs(anew - known).max() > 1e-4
    assert spatial("sfc", torch.zeros(1, 2, 2)).shape == (1, 1, 2, 2, 1)


@pytest.mark.parametrize("operator", ["mean", "permute", "noise"])
def test_the_fast_way_gives_the_bits_of_the_slow_one(site, operator):
    _, people, bundle, allow = site
    model = cohort.load(bundle, allow)
    network, scaling = model.network(), model.scaling()
    subjects, truth = [p.features for p in people], np.array([p.label for p in people])
    scaled = [scaling.scaled(subject) for subject in subjects]
    score = FusionAblation(model, subjects, truth.tolist(), operator, batch=4, seed=7)
    for removed in (np.zeros(6, bool), np.array([1, 0, 0, 1, 1, 0], bool), np.ones(6, bool)):
        embeddings = {}
        for name in network.modalities:
            arrays = np.stack([row[name] for row in scaled])
            if name != "alff":
                healthy = model.reference()[name].double().numpy().reshape(arrays.shape[1:])
                spread = arrays.astype(float).std(0)
                removal = Removal(operator, "connectivity", [healthy - spread, healthy + spread], 7)
                arrays = removal(arrays, removed).astype(np.float32)
            parts = [torch.from_numpy(arrays[start : start + 4]) for start in (0, 4)]
            with torch.inference_mode():
                embeddings[name] = torch.cat([network.encode(name, spatial(name, part)) for part in parts])
        with torch.inference_mode():
            known = network.classify(embeddings).double().log_softmax(1).numpy()
        np.testing.assert_array_equal(score(removed)[:, 0], known[np.arange(6), truth])


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
    assert known["retrained"] is None
    assert len((tmp_path / "subjects.tsv").read_text().splitlines()) == 7
    assert "done before" in command(capfd, *arguments).out


@pytest.mark.slow
def test_retraining_is_a_mode_of_the_command(site, capfd, tmp_path):
    folder, people, bundle, allow = site
    features = cohort.write_cohort(folder / "kin", people)
    table = features / "participants.tsv"
    rows = [f"{p.features.subject}\t{'patient' if p.label else 'control'}\tf{n // 2}" for n, p in enumerate(people)]
    table.write_text("\n".join(["participant_id\tgroup\tfamily", *rows]) + "\n")
    arguments = ("brain", "ablate", features, "-b", bundle, "-o", tmp_path, "--allow", allow, "--no-only")
    assert command(capfd, *arguments, "--retrain", "linear").code == 0
    known = json.loads((tmp_path / "ablation.json").read_text())
    again = known["retrained"]
    assert (again["kind"], again["folds"], again["group_by"], again["draws"]) == ("linear", 3, "family", 200)
    effects = again["metrics"]["log_probability"]["effects"]["without"]
    assert [e["network"] for e in effects] == ["Back", "Front"]
    assert all(0 < e["p"] <= e["p_holm"] <= 1 for e in effects)
    assert (tmp_path / "retrained_auroc_without.png").is_file()
    answers = (tmp_path / "answers.safetensors").read_bytes()

    done = command(capfd, *arguments, "--retrain", "network", "--epochs", "1")
    assert done.code == 0
    assert "The trained network, regions taken from its input" not in done.out  # asked before, by the other run
    assert "trained anew in folds: 3 of 3 sets" in done.out
    assert (tmp_path / "answers.safetensors").read_bytes() == answers
    again = json.loads((tmp_path / "ablation.json").read_text())["retrained"]
    for item in again["metrics"].values():
        assert all(e["p"] is e["p_holm"] is e["z"] is e["null_mean"] is None for e in item["effects"]["without"])
        assert item["synergy"] is item["shapley"] is None
    lines = [line.split("\t") for line in (tmp_path / "networks.tsv").read_text().splitlines()]
    place = lines[0].index("p_holm")
    assert {row[place] for row in lines if row[0] == "network"} == {"n/a"}
    page = (tmp_path / "ablation.md").read_text()
    assert "there is no null distribution and no p (n/a)" in page
    assert "(corrected p=n/a: no random sets were drawn)" in page
    wrong = command(capfd, *arguments, "--retrain", "linear", "--group-by", "site")
    assert "participants.tsv has no column 'site'" in wrong.errors[0]


def test_folds_keep_kin_together_and_follow_the_smaller_class(site, tmp_path):
    _, people, _, _ = site
    many = [replace(people[n % 6].features, subject=f"sub-{n}") for n in range(40)]
    settings = AblateSettings(features=tmp_path, output=tmp_path, bundle="x", retrain_folds=5)

    def of(truth, kin=None):
        return _folds(Cohort(tuple(many[: len(truth)]), tuple(truth), {}, ""), kin, settings)

    kin = [f"family{n // 4}" for n in range(40)]
    folds = of([0, 1] * 20, kin)
    assert all(len({int(f) for f, k in zip(folds, kin, strict=True) if k == name}) == 1 for name in set(kin))
    assert {int(f) for f in folds} == set(range(5))
    assert np.bincount(of([0] * 30 + [1] * 4)).size == 4  # as many as the small class allows
    with pytest.raises(MismatchError, match="two of every class"):
        of([0, 0, 0, 1])
