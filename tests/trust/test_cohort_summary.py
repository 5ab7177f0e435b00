"""What follows from measured cases: intervals, agreement, winners and defaults of results whose order is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medxai.trust.cohort.choose import choose_default
from medxai.trust.cohort.columns import Columns
from medxai.trust.cohort.intervals import Estimate, Patients
from medxai.trust.cohort.leaderboard import make_leaderboard
from medxai.trust.cohort.measures import FAITH, PLACE
from medxai.trust.cohort.page import make_page
from medxai.trust.cohort.plan import Plan
from medxai.trust.cohort.relations import agreements, over_cases, within_cases
from medxai.trust.ranks import rank_correlation
from tests.trust.planted import made_up, without

#: Both ways of removing agree, and faithful maps lie on the lesion.
AGREED = {
    "gradcam": (0.2, 0.25, 0.3),
    "layercam": (0.5, 0.6, 0.7),
    "eigencam": (0.6, 0.7, 0.9),
    "saliency": (0.1, 0.1, 0.1),
}
#: The order by one is that by the other turned round.
TURNED = {"gradcam": (0.1, 0.4, 0.3), "layercam": (0.2, 0.3, 0.7), "saliency": (0.3, 0.2, 0.1), "lrp": (0.4, 0.1, 0.2)}
PLAN = Plan(methods=tuple(AGREED))


def test_intervals_are_over_patients() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    grouped = Patients([f"p{i // 10}" for i in range(200)]).mean(values)
    loose = Patients([str(i) for i in range(200)]).mean(values)
    assert grouped.value == pytest.approx(values.mean())
    assert (grouped.n, grouped.patients, loose.patients) == (200, 20, 200)
    assert grouped.high - grouped.low > 2 * (loose.high - loose.low)
    error = values[::10].std() / math.sqrt(20)
    assert grouped.high - grouped.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert Patients([f"p{i // 10}" for i in range(200)]).mean(values) == grouped


def test_what_has_no_value_takes_no_part() -> None:
    patients = Patients(["a", "a", "b", "c"])
    found = patients.mean(np.array([1.0, math.nan, 3.0, math.nan]))
    assert (found.value, found.n, found.patients) == (2.0, 2, 2)
    nothing = patients.mean(np.full(4, math.nan))
    assert math.isnan(nothing.value)
    assert (nothing.n, str(nothing), nothing.as_dict()["value"]) == (0, "-", None)
    one = Patients(["a", "a"]).mean(np.array([1.0, 2.0]))
    assert (one.value, math.isnan(one.low), str(one)) == (1.5, True, "1.50")  # one patient has no spread


def test_rank_correlation_is_scipys() -> None:
    from scipy.stats import spearmanr

    source = np.random.default_rng(0)
    for _ in range(20):
        a, b = source.integers(0, 5, (2, 12)).astype(float)
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert math.isnan(rank_correlation(np.ones(5), np.arange(5.0)))
    assert math.isnan(rank_correlation(np.arange(2.0), np.arange(2.0)))


def test_a_winner_is_named_where_ways_of_removing_agree() -> None:
    board = make_leaderboard(made_up(AGREED, 10), PLAN, "gradcam")
    (item,) = board.agreements
    assert item.tau.value == pytest.approx(1)
    assert board.agreed
    assert board.winner(FAITH) == board.winner(PLACE) == "eigencam"
    assert [line.name for line in board.lines][:3] == ["eigencam", "layercam", "gradcam"]
    assert board.within.value > 0.8
    assert board.within.low > 0.5
    assert board.lines[0].class_agnostic
    lead = board.lead(PLACE)
    assert lead is not None
    assert lead[0] == "layercam"
    assert lead[1].low > 0
    page = make_page(board, "T", {})
    assert "**eigencam**; ahead of layercam by" in page
    assert "not clearly the first" not in page


def test_no_winner_is_named_where_they_disagree() -> None:
    plan = Plan(methods=tuple(TURNED))
    board = make_leaderboard(made_up(TURNED, 10), plan, "gradcam")
    assert board.agreements[0].tau.value < 0
    assert not board.agreed
    assert board.winner(FAITH) == ""
    assert board.winner(PLACE) == "layercam"
    assert "no method is called the most faithful" in make_page(board, "T", {})
    assert board.choices[0].by == (PLACE,)
    assert board.choices[0].method == "layercam"


def test_one_that_beats_no_control_wins_nothing() -> None:
    board = make_leaderboard(made_up({"gradcam": (0, 0, 0.05), "layercam": (-0.1, -0.1, 0.04)}, 10), PLAN, "gradcam")
    assert board.winner(FAITH) == board.winner(PLACE) == ""
    assert "none beats every control" in make_page(board, "T", {})


def test_a_default_is_chosen_on_one_half_and_reported_on_the_other() -> None:
    results = made_up(AGREED, 12)
    choice = choose_default(Columns(tuple(results)), PLAN.masking, "gradcam")
    assert choice.method == "layercam"  # eigencam is the same for every class
    assert (choice.by, choice.validation) == ((FAITH, PLACE), 6)
    assert choice.faithfulness is not None
    assert (choice.faithfulness.patients, choice.faithfulness.n) == (6, 12)
    assert choice.faithfulness_gain is not None
    assert choice.faithfulness_gain.value == pytest.approx(0.325, abs=0.03)
    assert choice.clearly_better
    same = choose_default(Columns(tuple(results)), PLAN.masking, "layercam")
    assert not same.clearly_better
    halved = {case.patient for case in results}
    assert len(halved) == 12


def test_who_reports_had_no_part_in_the_choice() -> None:
    """Values of the reporting half cannot change what is chosen."""
    results = made_up(AGREED, 12)
    chosen = choose_default(Columns(tuple(results)), PLAN.masking, "gradcam")
    order = np.random.default_rng(0).permutation(12)
    names = sorted({case.patient for case in results})
    learning = {names[i] for i in order[:6]}
    for case in results:
        if case.patient not in learning:
            for measure in (FAITH, f"{FAITH}_blur", f"{FAITH}_mean", PLACE):
                case.rows["gradcam"].values[measure], case.rows["layercam"].values[measure] = (
                    case.rows["layercam"].values[measure],
                    case.rows["gradcam"].values[measure],
                )
    turned = choose_default(Columns(tuple(results)), PLAN.masking, "gradcam")
    assert turned.method == chosen.method
    assert turned.place_gain is not None
    assert turned.place_gain.high < 0
    assert not turned.clearly_better


def test_few_maps_or_patients_are_no_basis() -> None:
    results = made_up(AGREED, 12)
    for case in results[::2]:
        without(case, "layercam", (FAITH, f"{FAITH}_blur", f"{FAITH}_mean", PLACE), "the map is zero everywhere")
    assert choose_default(Columns(tuple(results)), PLAN.masking, "gradcam").method == "gradcam"
    few = choose_default(Columns(tuple(made_up(AGREED, 4))), PLAN.masking, "gradcam")
    assert (few.method, few.clearly_better) == ("", False)
    assert "cannot be halved" in few.reason


def test_each_class_has_a_default() -> None:
    other = {**AGREED, "gradcam": (0.9, 0.9, 0.9)}
    results = made_up(AGREED, 10) + [case for case in made_up(other, 20, label="dark") if int(case.patient[1:]) >= 10]
    board = make_leaderboard(results, PLAN, "gradcam")
    assert [(choice.label, choice.method) for choice in board.choices][1:] == [
        ("bright", "layercam"),
        ("dark", "gradcam"),
    ]


def test_relations_over_cases_and_within() -> None:
    results = made_up(AGREED, 10, noise=0.0)
    for number, case in enumerate(results):
        case.rows["gradcam"].values[FAITH] = case.rows["gradcam"].values[PLACE] = number / 100
    columns = Columns(tuple(results))
    assert over_cases(columns, "gradcam").value == pytest.approx(1)
    mean, each = within_cases(columns)
    assert mean.n == len(each) == 20
    assert isinstance(agreements(columns, PLAN.masking)[0].tau, Estimate)
    assert math.isnan(over_cases(columns, "layercam").value)  # no spread


def test_few_patients_name_no_winner() -> None:
    board = make_leaderboard(made_up(AGREED, 7), PLAN, "gradcam")
    assert board.agreed
    assert board.winner(FAITH) == board.winner(PLACE) == ""
    assert "Fewer than 8 patients" in make_page(board, "T", {})
