"""Training anew without a network finds the one that holds the class, and nothing where labels are shuffled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medxai.learn.fusion_retraining import FusionRetraining
from medxai.learn.splits import grouped_folds
from medxai.networks.hierarchical_fusion import HierarchicalFusion
from medxai.prepare.brain.subject import SubjectFeatures
from medxai.trust.fusion_ablation import auroc, log_probability, score_rows
from medxai.trust.linear_retraining import LinearRetraining
from medxai.trust.network_ablation import NetworkAblation, knock_out
from medxai.trust.network_removal import Removal
from sample_cases.synthetic_brain import YEO, Planted, simulate, synthetic_carriers

NOTHING = Planted(grid=(4, 6, 5), windows=6, cube=(0, 0, 0, 1), dynamic_windows=(1, 2), size=(0.0, 0.0, 0.0),
                  samples=240, window_samples=40)  # fmt: skip
#: Four regions of each of Yeo's networks, two of each hemisphere.
CHOSEN = np.concatenate([25 * side + sum(list(YEO.values())[:n]) + np.arange(2) for side in (0, 1) for n in range(7)])


def cohort(signal: tuple[str, ...], count: int = 80, strength: float = 0.25, seed: int = 0):
    """Subjects over 28 regions; a patient's edges inside the networks of `signal` are stronger, alike in each."""
    source = np.random.default_rng([seed, 5])
    cases = simulate(synthetic_carriers(8), count, seed, NOTHING)
    found: list[SubjectFeatures] = []
    for case in cases:
        f = case.features
        networks = tuple(f.networks[i] for i in CHOSEN)
        names = tuple(f.regions[i] for i in CHOSEN)
        sfc, dfc, fa = (getattr(f, name)[CHOSEN][:, CHOSEN].copy() for name in ("sfc", "dfc", "fa"))
        shift = strength * (2 * case.label - 1) + 0.3 * strength * source.normal()
        for name in signal:
            own = np.array(networks) == name
            sfc[own[:, None] & own & ~np.eye(len(own), dtype=bool)] += shift
        found.append(replace(f, sfc=sfc, dfc=dfc, fa=fa, regions=names, networks=networks, fa_regions=names))
    return found, [case.label for case in cases], [case.carrier for case in cases]


def linear(signal: tuple[str, ...], *, shuffled: bool = False, **options):
    subjects, truth, carriers = cohort(signal, **options)
    if shuffled:
        truth = np.random.default_rng(2).permutation(truth).tolist()
    score = LinearRetraining(subjects, ("sfc", "fa"), truth, 1, grouped_folds(truth, carriers, 4, 0))
    return score, subjects[0].networks


def knocked(signal: tuple[str, ...], *, shuffled: bool = False):
    """A linear model trained on half of the carriers, asked about the others."""
    subjects, truth, carriers = cohort(signal, 160)
    labels = np.array(truth)
    if shuffled:
        labels = np.random.default_rng(2).permutation(labels)
    matrices = np.stack([s.sfc for s in subjects]).astype(float)
    ends = np.triu_indices(matrices.shape[1], 1)
    learnt = np.isin(carriers, [f"synthetic{n}" for n in range(4)])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(matrices[learnt][:, *ends], labels[learnt])

    def answer(data: np.ndarray) -> np.ndarray:
        return score_rows(model.predict_log_proba(data[:, *ends]), labels[~learnt], 1)

    return knock_out(answer, matrices[~learnt], Removal("mean", "connectivity", matrices[learnt])), subjects[0].networks


@pytest.mark.slow
@pytest.mark.parametrize("make", [linear, knocked])
def test_the_network_that_holds_the_class_is_found_and_no_other(make):
    score, networks = make(("Cont",))
    for metric in (log_probability, auroc):
        effects = {e.network: e for e in NetworkAblation(score, networks, metric).effects(seed=1, resamples=300)}
        assert {name for name, e in effects.items() if e.p_holm < 0.05} == {"Cont"}
        assert effects["Cont"].low > 0
        assert effects["Cont"].effect > 3 * max(abs(e.effect) for name, e in effects.items() if name != "Cont")


@pytest.mark.slow
@pytest.mark.parametrize("make", [linear, knocked])
def test_shuffled_labels_have_no_network(make):
    score, networks = make(("Cont",), shuffled=True)
    for metric in (log_probability, auroc):
        effects = NetworkAblation(score, networks, metric).effects(seed=1, resamples=300)
        assert min(e.p_holm for e in effects) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("make", [linear, knocked])
def test_two_that_stand_in_for_each_other_show_together_and_alone(make):
    score, networks = make(("Cont", "Limbic"))
    ablation = NetworkAblation(score, networks, auroc)
    pair = ablation.networks.index("Cont"), ablation.networks.index("Limbic")
    without = {e.network: e for e in ablation.effects(seed=1, resamples=300)}
    only = {e.network: e for e in ablation.effects("only", seed=1, resamples=300)}
    assert without["Cont"].reference > 0.9
    for name in ("Cont", "Limbic"):
        assert abs(without[name].effect) < 0.08
        assert only[name].metric > 0.85
        assert only[name].p_holm < 0.05
    assert not {name for name, e in only.items() if e.p_holm < 0.05} - {"Cont", "Limbic"}
    synergy = ablation.synergy()
    assert synergy[pair] > 0.2
    assert np.unravel_index(synergy.argmax(), synergy.shape) in (pair, pair[::-1])


def test_a_fit_over_products_is_that_of_scikit_learn_over_edges():
    subjects, truth, carriers = cohort(("Cont",), 24)
    folds = grouped_folds(truth, carriers, 4, 0)
    subjects[3] = replace(subjects[3], dfc=None)
    removed = np.array([name in ("Vis", "Limbic") for name in subjects[0].networks])
    rows = LinearRetraining(subjects, ("sfc", "dfc"), truth, 1, folds, strength=5.0)(removed)
    first, second = np.triu_indices(len(removed), 1)
    there = ~removed[first] & ~removed[second]
    edges = first[there], second[there]
    for fold in range(4):
        learnt, tested = folds != fold, folds == fold
        blocks = []
        for values in (
            [s.sfc[edges] for s in subjects],
            [np.full(there.sum(), np.nan) if s.dfc is None else s.dfc[edges].mean(1) for s in subjects],
            [np.full(there.sum(), np.nan) if s.dfc is None else s.dfc[edges].std(1) for s in subjects],
        ):
            block = np.stack(values).astype(float)
            z = (block - np.nanmean(block[learnt], 0)) / np.nanstd(block[learnt], 0)
            blocks.append(np.nan_to_num(z))
        data = np.concatenate(blocks, 1)
        data /= np.sqrt((data**2).sum(1).mean())
        model = LogisticRegression(C=5.0, tol=1e-8, max_iter=5000).fit(data[learnt], np.array(truth)[learnt])
        known = model.predict_log_proba(data[tested])
        np.testing.assert_allclose(rows[tested, 0], known[np.arange(tested.sum()), np.array(truth)[tested]], atol=2e-4)
    everything = LinearRetraining(subjects, ("sfc", "dfc"), truth, 1, folds)(np.ones(len(removed), bool))
    assert np.array_equal(everything[:, 1], np.zeros(24))  # nothing to tell by: AUROC is 0.5
    assert auroc(everything) == 0.5


def test_a_fusion_network_trained_anew_never_sees_what_is_taken_out():
    subjects, truth, carriers = cohort(("Cont",), 16)
    folds = grouped_folds(truth, carriers, 2, 0)
    networks = np.array(subjects[0].networks)
    gone = networks == "Cont"

    def rows(people: list[SubjectFeatures], removed: np.ndarray) -> np.ndarray:
        def build() -> HierarchicalFusion:
            return HierarchicalFusion(2, ("sfc", "fa"), channels=8, width=16, depth=1, heads=2)

        return FusionRetraining(build, people, ("sfc",), truth, 1, folds, epochs=1)(removed)

    touched = gone[:, None] | gone
    source = np.random.default_rng(0)
    other = [
        replace(s, sfc=np.where(touched, source.normal(size=s.sfc.shape), s.sfc).astype(np.float32)) for s in subjects
    ]
    kept = rows(subjects, gone)
    np.testing.assert_array_equal(kept, rows(other, gone))
    assert np.abs(kept - rows(subjects, networks == "")).max() > 1e-3
    structural = [
        replace(s, fa=np.where(touched, source.random(s.fa.shape), s.fa).astype(np.float32)) for s in subjects
    ]
    assert np.abs(kept - rows(structural, gone)).max() > 1e-3  # FA is not taken from
    np.testing.assert_array_equal(kept[:, 2], truth)
