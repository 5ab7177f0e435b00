"""Chest CT, leave one patient out: AUROC of slabs, from the stored predictions."""

from __future__ import annotations

from pathlib import Path

from tests.bench.entry import Entry

PREDICTIONS = Path("docs/evidence/chest_ct_out_of_fold.csv")


def leave_one_out() -> list[Entry]:
    """Pooled AUROC; three patients, so the interval says little."""
    from medxai.learn.chest_ct.bundle import results
    from medxai.learn.metrics import Interval

    if not PREDICTIONS.exists():
        return []
    measured = results(PREDICTIONS)
    name = next(k for k in measured if k.startswith("auroc") and isinstance(measured[k], Interval))
    value = measured[name]
    assert isinstance(value, Interval)
    against = f"slabs of 3 patients, each predicted by the network that never saw the patient ({value.groups} groups)"
    return [Entry("chest_ct_lopo_auroc", value.value, "1", None, "higher", value.n, value.low, value.high, against)]
