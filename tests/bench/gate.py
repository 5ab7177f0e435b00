"""The trust gate: what it costs, what it catches, what it withholds wrongly."""

from __future__ import annotations

from typing import Literal

from medxai.trust.gate.fit import GENUINE
from medxai.trust.gate.verdict import ALL, Calibration, read_calibration
from tests.bench.entry import Entry, of_runs

BUNDLE = "breast_us"
_STUDIES = 5


def forwards() -> list[Entry]:
    """Images the gate sends through the network for the map of a study, counted at the network."""
    from medxai.explain.study_map import ExplainOptions, explain_study
    from medxai.learn.phantom_ct import as_volume, draw
    from medxai.predict.bundle import load_bundle
    from medxai.prepare.prepare import prepare
    from medxai.study import Study
    from medxai.trust.gate.assess import assess_study

    bundle = load_bundle("phantom_ct")
    network, seen = bundle.network(), []
    network.register_forward_pre_hook(lambda _network, given: seen.append(len(given[0])))
    counts = []
    for number in range(_STUDIES):
        study = Study("0123456789ab", "nifti", "0" * 64, as_volume(draw(950_000 + number, number % 3)))
        prepared, options = prepare(study.volume, bundle.spec.preparation), ExplainOptions()
        prediction, explanations = explain_study(bundle, network, study, prepared, options)
        seen.clear()
        assess_study(bundle, network, study, prepared, prediction, explanations, options, None)
        counts.append(float(sum(seen)))
    return [of_runs("gate_fast_forwards", counts, "forwards", 10, "lower", "one map of a phantom study, any windows")]


def shares() -> list[Entry]:
    """Broken explanations withheld, and genuine ones, on cases that took no part in learning."""
    from medxai.predict.bundle import SHIPPED

    found = read_calibration(SHIPPED / BUNDLE)
    if found is None:
        return []
    return [
        _share("gate_broken_caught_share", found, ALL, "higher", "broken explanations withheld"),
        _share("gate_false_alarm_share", found, GENUINE, "lower", "genuine explanations withheld"),
    ]


def _share(name: str, found: Calibration, row: str, better: Literal["lower", "higher"], words: str) -> Entry:
    """All classes together, weighted by their cases; the interval is the mean of theirs, wider than its own."""
    rows = [gate.table[row] for gate in found.classes.values()]
    total = sum(r["n"] for r in rows)
    value, low, high = (sum(r[key] * r["n"] for r in rows) / total for key in ("withheld", "low", "high"))
    against = f"{words}; {BUNDLE}, {found.method}, out of fold, {', '.join(found.classes)}"
    return Entry(name, value, "1", None, better, int(total), low, high, against)
