from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression, Ridge

from medxai.export.ablation_chart import effect_chart, synergy_picture
from medxai.trust.identification import n_way
from medxai.trust.network_ablation import NetworkAblation, holm, knock_out, random_sets, retrained
from medxai.trust.network_removal import Removal

YEO = ("Visual", "Somatomotor", "DorsalAttn", "VentralAttn", "Limbic", "Frontoparietal", "Default")
YEO_PLACE = {name: place for place, name in enumerate(sorted(YEO))}
NETWORKS = [name for name, size in zip(YEO, (12, 10, 8, 8, 6, 9, 11), strict=True) for _ in range(size)] + [""] * 6


def cohort(
    signal: tuple[str, ...], seed: int = 0, subjects: int = 400, strength: float = 0.35
) -> tuple[np.ndarray, np.ndarray]:
    """Series ``[S, 4, P]``: a sign of the class in the networks of `signal`, the same draw in each of them."""
    source = np.random.default_rng(seed)
    labels = source.integers(0, 2, subjects)
    series = source.normal(size=(subjects, 4, len(NETWORKS)))
    for name in signal:
        series[:, :, np.array(NETWORKS) == name] += strength * (2 * labels[:, None, None] - 1)
    return series, labels


class Decoder:
    """Logistic regression on the mean over time, trained on the first half, asked about the second."""

    def __init__(self, series: np.ndarray, labels: np.ndarray) -> None:
        half = len(labels) // 2
        self.training, self.test = series[:half], series[half:]
        self._training_labels, self._labels = labels[:half], labels[half:]
        self._model = self._fit(self.training)

    def _fit(self, series: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=0.1, max_iter=200).fit(series.mean(1), self._training_labels)

    def answer(self, series: np.ndarray) -> np.ndarray:
        return self._model.predict(series.mean(1)) == self._labels

    def log_probability(self, series: np.ndarray) -> np.ndarray:
        return self._model.predict_log_proba(series.mean(1))[np.arange(len(self._labels)), self._labels]

    def fit_and_answer(self, training: np.ndarray, test: np.ndarray) -> np.ndarray:
        return self._fit(training).predict(test.mean(1)) == self._labels

    def knocked(self, operator: str = "zero") -> NetworkAblation:
        removal = Removal(operator, "series", self.training)  # type: ignore[arg-type]
        return NetworkAblation(knock_out(self.answer, self.test, removal), NETWORKS)


@pytest.mark.parametrize("operator", ["zero", "mean", "permute", "noise"])
def test_what_is_zero_already_counts_nothing_and_without_all_it_is_chance(operator: str) -> None:
    series, labels = cohort(("Default",))
    series[:, :, np.array(NETWORKS) == "Limbic"] = 0
    ablation = Decoder(series, labels).knocked(operator)
    full = ablation.value(ablation.members())
    assert full > 0.9
    assert ablation.value(ablation.members("Limbic")) == full
    assert abs(ablation.value(ablation.members(*YEO)) - 0.5) < 0.15


def test_the_order_of_regions_does_not_matter() -> None:
    series, labels = cohort(("Default",))
    order = np.random.default_rng(3).permutation(len(NETWORKS))
    own = Decoder(series, labels).knocked()
    decoder = Decoder(series[:, :, order], labels)
    removal = Removal("zero", "series")
    shuffled = NetworkAblation(knock_out(decoder.answer, decoder.test, removal), [NETWORKS[place] for place in order])
    for name in YEO:
        assert own.value(own.members(name)) == shuffled.value(shuffled.members(name))


@pytest.mark.parametrize("operator", ["zero", "permute"])
def test_one_network_that_holds_the_signal_is_found(operator: str) -> None:
    effects = {item.network: item for item in Decoder(*cohort(("Default",))).knocked(operator).effects()}
    found = effects.pop("Default")
    assert found.p_holm < 0.05
    assert found.effect == pytest.approx(found.reference - found.metric)
    assert found.low <= found.effect <= found.high
    assert found.low > 0.2
    assert found.z > 3
    assert f"from {found.reference:.3f} to {found.metric:.3f}" in found.sentence()
    for item in effects.values():
        assert item.p_holm > 0.05
        assert item.effect <= np.percentile(item.null, 97.5)


def test_a_redundant_copy_hides_from_knock_out_and_not_from_only() -> None:
    decoder = Decoder(*cohort(("Default", "Visual")))
    ablation = decoder.knocked()
    drop = {item.network: item.effect for item in ablation.effects()}
    assert max(abs(drop["Default"]), abs(drop["Visual"])) < 0.05
    synergy = ablation.synergy()
    pair = YEO_PLACE["Default"], YEO_PLACE["Visual"]
    assert synergy[pair] > 0.3
    assert np.array_equal(synergy, synergy.T)
    assert np.unravel_index(synergy.argmax(), synergy.shape) in (pair, pair[::-1])
    alone = {item.network: item for item in ablation.effects("only")}
    for name in ("Default", "Visual"):
        assert alone[name].metric > 0.9
        assert alone[name].low > 0.3
    assert alone["Limbic"].effect < 0.2
    # Accuracy near its ceiling tells little from random sets; the probability of the truth does.
    removal = Removal("zero", "series")
    sure = NetworkAblation(knock_out(decoder.log_probability, decoder.test, removal), NETWORKS).effects("only")
    assert {item.network for item in sure if item.p_holm < 0.05} == {"Default", "Visual"}
    # Without either the model trained anew is as good: nothing is found there alone.
    again = NetworkAblation(retrained(decoder.fit_and_answer, decoder.training, decoder.test, removal), NETWORKS)
    assert again.value(again.members("Default")) > 0.9
    assert again.value(again.members("Default", "Visual")) < 0.65


def test_shapley_values_sum_to_full_less_empty() -> None:
    ablation = Decoder(*cohort(("Default", "Visual"))).knocked()
    values = ablation.shapley()
    assert ablation.asked == 2**7
    full, empty = ablation.value(ablation.members()), ablation.value(ablation.members(*YEO))
    assert sum(values.values()) == pytest.approx(full - empty, abs=1e-9)
    assert values["Default"] == pytest.approx(values["Visual"], abs=0.05)
    assert min(values["Default"], values["Visual"]) > 0.1


def test_p_values_are_uniform_under_shuffled_labels() -> None:
    source = np.random.default_rng(5)
    found = []
    for number in range(60):
        series = source.normal(size=(40, 1, len(NETWORKS)))
        labels = source.permutation(np.repeat([-1.0, 1.0], 20))
        model = Ridge(1.0).fit(series[:20, 0], labels[:20])

        def margin(x: np.ndarray, model: Ridge = model, labels: np.ndarray = labels) -> np.ndarray:
            return labels[20:] * model.predict(x[:, 0])

        removal = Removal("zero", "series")
        name = YEO[number % 7]
        ablation = NetworkAblation(knock_out(margin, series[20:], removal), [n if n == name else "" for n in NETWORKS])
        found.append(ablation.effects(seed=number, resamples=10)[0].p)
    assert kstest(found, "uniform").pvalue > 0.01


def test_the_interval_covers_the_drop_of_other_subjects() -> None:
    alone = [name if name == "Default" else "" for name in NETWORKS]
    model = LogisticRegression(C=0.1).fit(cohort(("Default",), 99)[0].mean(1), cohort(("Default",), 99)[1])
    inside = 0
    for seed in range(12):
        series, labels = cohort(("Default",), seed, 1000)
        series[:, :, np.array(NETWORKS) == "Visual"] += 0.15 * (2 * labels[:, None, None] - 1)

        def answer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            return model.predict(x.mean(1)) == y

        removal, gone = Removal("zero", "series"), np.array(NETWORKS) == "Default"
        few, many = (series[:100], labels[:100]), (series[100:], labels[100:])
        ablation = NetworkAblation(knock_out(lambda x, y=few[1]: answer(x, y), few[0], removal), alone)
        (effect,) = ablation.effects(resamples=500)
        truth = answer(*many).mean() - answer(removal(many[0], gone), many[1]).mean()
        inside += effect.low <= truth <= effect.high
    assert inside >= 9  # of 12, 95 % of which is 11.4


@pytest.mark.parametrize("shape", [(5, 7, 7), (5, 7, 7, 3)])
@pytest.mark.parametrize("operator", ["zero", "mean", "permute", "noise"])
def test_rows_and_columns_of_matrices(shape: tuple[int, ...], operator: str) -> None:
    source = np.random.default_rng(0)
    data = source.normal(size=shape)
    data = data + np.swapaxes(data, 1, 2)
    training = source.normal(2, 1, size=shape)
    training = training + np.swapaxes(training, 1, 2)
    removed = np.isin(np.arange(7), [1, 4])
    found = Removal(operator, "connectivity", training, 2)(data, removed)  # type: ignore[arg-type]
    kept = np.flatnonzero(~removed)
    assert np.array_equal(found[:, kept][:, :, kept], data[:, kept][:, :, kept])
    assert np.allclose(found, np.swapaxes(found, 1, 2))
    rows = found[:, removed]
    assert np.array_equal(found, Removal(operator, "connectivity", training, 2)(data, removed))  # type: ignore[arg-type]
    if operator == "zero":
        assert not rows.any()
    elif operator == "mean":
        assert np.allclose(rows, training.mean(0)[removed])
    elif operator == "permute":
        partner = [next(i for i in range(5) if np.array_equal(rows[s], data[i, removed])) for s in range(5)]
        assert sorted(partner) == list(range(5))
        assert all(s != i for s, i in enumerate(partner))
    else:
        assert not np.isclose(rows, data[:, removed]).any()
        assert np.std((rows - training.mean(0)[removed]) / training.std(0)[removed]) == pytest.approx(1, abs=0.25)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="training subjects"):
        Removal("mean", "series")
    with pytest.raises(ValueError, match="another subject"):
        Removal("permute", "series")(np.zeros((1, 2, 3)), np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="3 regions"):
        Removal("zero", "series")(np.zeros((1, 2, 3)), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="too few"):
        NetworkAblation(lambda removed: [1.0], ["a"]).effects(draws=10)
    with pytest.raises(ValueError, match="no region"):
        NetworkAblation(lambda removed: [1.0], [""])


def test_random_sets_are_as_large_and_contiguous_where_asked() -> None:
    source = np.random.default_rng(0)
    assert {int(chosen.sum()) for chosen in random_sets(20, 6, 50, source)} == {6}
    line = np.c_[np.arange(20), np.zeros((20, 2))]
    for chosen in random_sets(20, 6, 50, source, line):
        assert np.ptp(np.flatnonzero(chosen)) == 5


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]


def test_fifty_ways() -> None:
    source = np.random.default_rng(0)
    truth = source.integers(0, 200, 4000)
    random = source.normal(size=(4000, 200))
    assert n_way(random, truth).mean() == pytest.approx(0.02, abs=0.006)
    assert n_way(np.eye(200)[truth], truth).tolist() == [1] * 4000
    assert n_way(np.zeros((3, 200)), truth[:3]) == pytest.approx(1 / 50)
    # Against draws as published.
    scores, truth = random[:40] + 2 * np.eye(200)[truth[:40]], truth[:40]
    others = np.array([source.permutation(np.delete(np.arange(200), t))[:49] for t in truth for _ in range(500)])
    rows = np.repeat(np.arange(40), 500)
    won = scores[rows, truth[rows]] > scores[rows[:, None], others].max(1)
    assert n_way(scores, truth).mean() == pytest.approx(won.mean(), abs=0.01)
    with pytest.raises(ValueError, match="cannot compete"):
        n_way(random[:, :20], truth)


def test_pictures(tmp_path: Path) -> None:
    decoder = Decoder(*cohort(("Default", "Visual")))
    ablation = decoder.knocked()
    effect_chart(decoder.knocked("permute").effects(), tmp_path / "effects.png")
    synergy_picture(ablation.synergy(), ablation.networks, tmp_path / "synergy.png")
    for name, colour in (("effects", (59, 111, 182)), ("synergy", (103, 0, 31))):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).reshape(-1, 3).astype(int)
        assert (np.abs(pixels - colour).max(1) < 12).sum() > 50, name
