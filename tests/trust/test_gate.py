"""The gate: forwards it may use, verdicts and their reasons, learnt thresholds, and what they do to exports."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom import dcmread
from torch import nn
from typer.testing import CliRunner

from medxai.cli import app
from medxai.errors import BundleError, TrustError
from medxai.explain.study_map import ExplainOptions, explain_study
from medxai.export.registry import export_all, skipped
from medxai.prepare.prepare import prepare
from medxai.settings import ExportOptions
from medxai.study import Result, TrustReport
from medxai.trust.gate.assess import assess_study
from medxai.trust.gate.broken import burn_marker, features_before, last_linear, permuted, shuffled, with_new_head
from medxai.trust.gate.collect import Item, collect
from medxai.trust.gate.figures import NAMES
from medxai.trust.gate.fit import GENUINE, Case, _held_out, calibrate
from medxai.trust.gate.verdict import Calibration, describe, judge, read_calibration
from tests.explain.nets import Pooled, fingerprint
from tests.explain.test_study_map import BRIGHT, volume_study
from tests.export.build import ct_case
from tests.test_geometry_proof import Spotter, bundle

GOOD = {
    "drop": 4.0, "drop_second": 4.0, "deletion": 3.0, "deletion_centre": 2.0, "deletion_second": 3.0, "insertion": 2.0,
    "specificity": 0.9, "stability": 0.95, "outside": 0.02,
}  # fmt: skip
BAD = {
    "drop": 0.5, "drop_second": 0.5, "deletion": 0.0, "deletion_centre": 0.0, "deletion_second": 0.0, "insertion": 0.0,
    "specificity": 0.1, "stability": 0.3, "outside": 0.6,
}  # fmt: skip


def drawn(count: int = 60, noise: float = 0.15) -> list[Case]:
    """Genuine cases near GOOD; two kinds of broken ones near BAD, one that differs in a single figure."""
    source = np.random.default_rng(0)
    cases = []
    for number in range(count):
        for kind, centre in (
            (GENUINE, GOOD),
            ("shuffled map", BAD),
            ("shortcut marker", GOOD | {"outside": 0.5}),
        ):
            figures = {k: v + noise * source.normal() * (0.3 if k == "outside" else 1) for k, v in centre.items()}
            cases.append(Case(kind, f"p{number // 2}", figures, "lesion"))
    return cases


@pytest.fixture(scope="module")
def learnt() -> Calibration:
    return calibrate(drawn(), bundle="tiny", method="gradcam", masking=("blur", "mean"))


def test_thresholds_are_learnt(learnt: Calibration) -> None:
    again = calibrate(drawn(), bundle="tiny", method="gradcam", masking=("blur", "mean"))
    assert again == learnt
    gate = learnt.classes["lesion"]
    assert gate.table["shuffled map"]["withheld"] == 1
    assert gate.table["shortcut marker"]["withheld"] > 0.95
    assert gate.table["all broken"]["n"] == 120
    assert gate.withheld_below < gate.limited_below
    assert gate.weights["outside"].weight < 0
    assert all(weight.weight >= 0 for name, weight in gate.weights.items() if name != "outside")
    assert (gate.cases, gate.patients) == (60, 30)


def test_false_alarms_are_measured_on_cases_the_threshold_was_not_taken_from() -> None:
    """Three standard errors of a share of 0.05 and of 0.2 in 600 cases; by construction it would be exact."""
    gate = calibrate(drawn(600), bundle="tiny", method="gradcam", masking=("blur", "mean")).classes["lesion"]
    assert gate.table[GENUINE]["withheld"] == pytest.approx(0.05, abs=0.027)
    assert gate.table[GENUINE]["limited_or_withheld"] == pytest.approx(0.2, abs=0.05)
    index, real = np.arange(10.0), np.ones(10, bool)
    flags = _held_out(index, real, np.array([0] * 5 + [1] * 5), 0.5)
    assert flags.tolist() == [True] * 5 + [False] * 5  # each half against the median of the other


def test_a_figure_that_separates_the_wrong_way_gets_no_weight() -> None:
    turned = [
        replace(c, figures=c.figures | {"stability": 1.0 - c.figures["stability"]})
        for c in drawn()
        if c.kind != "shortcut marker"  # it differs in another figure alone
    ]
    found = calibrate(turned, bundle="tiny", method="gradcam", masking=("blur", "mean"))
    assert found.classes["lesion"].weights["stability"].weight == 0


def test_figures_that_are_never_defined_do_no_harm() -> None:
    blind = [replace(c, figures=c.figures | {"specificity": math.nan, "outside": math.nan}) for c in drawn()]
    found = calibrate(blind, bundle="tiny", method="gradcam", masking=("blur", "mean"))
    assert found.classes["lesion"].weights["specificity"].weight == 0
    assert found.classes["lesion"].table["shuffled map"]["withheld"] == 1
    assert found.classes["lesion"].table["shortcut marker"]["withheld"] < 0.5  # only the missing figure could tell


@pytest.mark.parametrize(
    ("cases", "shares", "said"),
    [
        (drawn(5), (0.05, 0.2), "5 genuine explanations"),
        ([c for c in drawn() if c.kind == GENUINE], (0.05, 0.2), "0 kinds"),
        (drawn(), (0.3, 0.2), "false alarms < limited"),
    ],
)
def test_what_cannot_be_learnt_is_said(cases: list[Case], shares: tuple[float, float], said: str) -> None:
    with pytest.raises(TrustError, match=said):
        calibrate(cases, bundle="t", method="gradcam", masking=("blur", "mean"), false_alarm=shares[0],
                  limited=shares[1])  # fmt: skip


def test_verdicts_and_reasons(learnt: Calibration) -> None:
    good = judge(GOOD, learnt, method="gradcam", label="lesion")
    assert (good.verdict, good.reasons) == ("supported", ())
    assert good.index > good.limited_below > good.withheld_below
    bad = judge(BAD, learnt, method="gradcam", label="lesion")
    assert bad.verdict == "withheld"
    assert len(bad.reasons) == 3
    marker = judge(GOOD | {"outside": 0.6}, learnt, method="gradcam", label="lesion")
    assert marker.verdict == "withheld"
    assert "outside the body" in marker.reasons[0]
    nothing = learnt.classes["lesion"].index({n: math.nan for n in NAMES})
    assert judge({}, learnt, method="gradcam", label="lesion").index == pytest.approx(nothing)


def test_what_limits_a_good_map(learnt: Calibration) -> None:
    assert judge(GOOD, learnt, method="layercam", label="lesion").verdict == "limited"
    assert "learnt for gradcam" in judge(GOOD, learnt, method="layercam", label="lesion").reasons[0]
    assert (
        judge(GOOD, learnt, method="gradcam", label="lesion", flags=frozenset({"class_agnostic"})).verdict == "limited"
    )
    assert judge(GOOD, learnt, method="gradcam", label="lesion", flags=frozenset({"unstable"})).verdict == "limited"
    other = judge(GOOD, learnt, method="gradcam", label="clean")
    assert other.verdict == "limited"
    assert "without enough maps of clean" in other.reasons[0]
    blunt = calibrate(drawn(noise=9.0), bundle="tiny", method="gradcam", masking=("blur", "mean"))
    assert blunt.classes["lesion"].caught < 0.5
    weak = judge({name: 50.0 if name != "outside" else 0.0 for name in GOOD}, blunt, method="gradcam", label="lesion")
    assert weak.verdict == "limited"
    assert "the gate catches only" in weak.reasons[0]
    empty = judge({}, learnt, method="gradcam", label="lesion", flags=frozenset({"empty"}))
    assert empty.verdict == "withheld"
    assert "nothing in the image speaks" in empty.reasons[0]
    alone = judge(GOOD, None, method="gradcam", label="lesion")
    assert alone.verdict == "limited"
    assert "no calibrated thresholds" in alone.reasons[0]
    assert len(judge(BAD, None, method="gradcam", label="lesion").reasons) == 4


def test_calibration_on_disk(learnt: Calibration, tmp_path: Path) -> None:
    assert read_calibration(tmp_path) is None
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "trust.json"
    path.write_text(learnt.model_dump_json())
    found = read_calibration(tmp_path)
    assert found == learnt
    assert found is not None
    assert found.sha256 == learnt.sha256
    for wrong in ("{", '{"format": 9}', '{"format": 1}', "[]"):
        path.write_text(wrong)
        with pytest.raises(BundleError, match="calibrate again"):
            read_calibration(tmp_path)


class _Counted(Spotter):
    """Notes how many images it sees."""

    seen: list[int] = []  # noqa: RUF012

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize("shape", [(16, 32, 32), (24, 40, 36)])
def test_at_most_ten_forwards(shape: tuple[int, int, int]) -> None:
    study, model = volume_study(shape), bundle((16, 32, 32))
    network = _Counted().eval()
    prepared = prepare(study.volume, model.spec.preparation)
    prediction, explanations = explain_study(model, network, study, prepared, BRIGHT)
    before = fingerprint(network)
    _Counted.seen.clear()
    reports = assess_study(model, network, study, prepared, prediction, explanations, BRIGHT, None)
    assert [report.forwards for report in reports] == [9, 3]
    assert sum(_Counted.seen) == 12
    assert fingerprint(network) == before
    for report in reports:
        assert set(report.figures) == set(NAMES)
        assert all(np.isfinite(report.figures[name]) for name in NAMES if name != "outside")
        assert report.masking == ("blur", "mean")
    again = assess_study(model, network, study, prepared, prediction, explanations, BRIGHT, None)
    assert repr(again) == repr(reports)


def test_methods_that_run_again_have_fewer_figures() -> None:
    study, model = volume_study(), bundle((16, 32, 32))
    network, options = Spotter().eval(), ExplainOptions(methods=("occlusion",), class_label="bright")
    prepared = prepare(study.volume, model.spec.preparation)
    prediction, explanations = explain_study(model, network, study, prepared, options)
    (report,) = assess_study(model, network, study, prepared, prediction, explanations, options, None)
    assert np.isnan(report.figures["specificity"])
    assert np.isfinite(report.figures["deletion"])
    assert report.forwards <= 10


def test_an_empty_map_has_no_figures() -> None:
    study, model = volume_study(), bundle((16, 32, 32))
    network, options = Spotter().eval(), replace(BRIGHT, class_label="dark")
    prepared = prepare(study.volume, model.spec.preparation)
    prediction, explanations = explain_study(model, network, study, prepared, options)
    for report in assess_study(model, network, study, prepared, prediction, explanations, options, None):
        assert report.verdict == "withheld"
        assert all(np.isnan(value) for value in report.figures.values())
        described = describe(report)
        assert described is not None
        assert json.loads(json.dumps(described))["figures"]["deletion"] is None


def _planted(count: int) -> list[Item]:
    """Images with a bright blob somewhere; the class is its side."""
    source = torch.Generator().manual_seed(0)
    items = []
    for number in range(count):
        x = 0.3 * torch.rand(1, 1, 32, 32, generator=source)
        row, column = (int(torch.randint(4, 20, (), generator=source)) for _ in range(2))
        x[..., row : row + 6, column : column + 6] += 2
        items.append(Item(f"p{number}", x, number % 2, torch.ones(32, 32, dtype=torch.bool)))
    return items


def test_broken_explanations_are_made_and_measured() -> None:
    torch.manual_seed(0)
    network = Pooled(2).eval()
    before = fingerprint(network)
    items = _planted(8)
    cases, missing = collect(network, items, method="gradcam", layer="act")
    assert not missing
    assert fingerprint(network) == before
    kinds = {case.kind for case in cases}
    assert kinds == {GENUINE, "randomised weights", "shuffled map", "wrong class", "another patient",
                     "permuted labels", "shortcut marker"}  # fmt: skip
    assert sum(case.kind == GENUINE for case in cases) == 8
    with pytest.raises(TrustError, match="at least two"):
        collect(network, items[:1], method="gradcam", layer="act")
    same = [replace(item, index=0) for item in items]
    cases, missing = collect(network, same, method="gradcam", layer="act")
    assert "labels cannot be permuted" in missing["permuted labels"]


def test_a_new_head_learns_the_labels_it_is_given() -> None:
    network = Pooled(2, classes=4, channels=12).eval()
    items = _planted(24)
    layer = last_linear(network)
    features = features_before(network, layer, [item.x for item in items])
    assert features.shape == (24, 12)
    labels = [1 if float(row[0]) > float(features[:, 0].median()) else 3 for row in features]
    made = with_new_head(network, layer, features, labels)
    with torch.no_grad():
        got = [int(made(item.x).argmax()) for item in items]
    assert np.mean(np.array(got) == np.array(labels)) > 0.9
    with pytest.raises(TrustError, match="no linear layer"):
        last_linear(nn.Conv2d(1, 2, 3))
    assert sorted(permuted(labels)) == sorted(labels)


def test_a_map_in_random_order_keeps_its_values() -> None:
    values = torch.rand(3, 4, 5)
    found = shuffled(values, 1)
    assert torch.equal(found.flatten().sort().values, values.flatten().sort().values)
    assert not torch.equal(found, values)


@pytest.mark.parametrize("shape", [(1, 3, 40, 60), (1, 1, 5, 40, 60)])
def test_the_marker_is_in_every_slice(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    made = burn_marker(x)
    changed = (made != x).any(1)[0]
    assert 0.005 < float(changed.float().mean()) < 0.05
    assert bool(changed.flatten(-2).any(-1).all())
    assert float(made.max()) == float(x.max())


def _judged(verdicts: tuple[str, str]) -> Result:
    trust = tuple(TrustReport(v, ("a reason",) if v != "supported" else (), {"deletion": 1.0}) for v in verdicts)  # type: ignore[arg-type]
    return replace(ct_case().result, trust=trust)


def _roles(result: Result, folder: Path, **given: object) -> list[str]:
    options = ExportOptions(formats=("parametric_map", "segmentation", "secondary_capture", "picture", "page"), **given)  # type: ignore[arg-type]
    outputs = export_all(result, folder, options)
    return [f"{output.role} {'layercam' if 'layercam' in output.path else 'gradcam'}" for output in outputs]


def test_a_withheld_map_becomes_no_data_object(tmp_path: Path) -> None:
    every = _roles(_judged(("supported", "limited")), tmp_path / "a")
    assert sum(role.startswith("parametric_map") for role in every) == 2
    one = _roles(_judged(("withheld", "limited")), tmp_path / "b")
    assert [role for role in one if role.startswith(("parametric", "segm"))] == [
        "parametric_map layercam", "segmentation layercam",
    ]  # fmt: skip
    none = _judged(("withheld", "withheld"))
    left = _roles(none, tmp_path / "c")
    assert not [role for role in left if role.startswith(("parametric", "segm"))]
    assert any(role.startswith("secondary_capture") for role in left)
    assert "a reason" in skipped(none, ExportOptions())["parametric_map"]
    sent = _roles(none, tmp_path / "d", send_withheld=True)
    assert sum(role.startswith("parametric_map") for role in sent) == 2
    for folder, marked in (("a", False), ("d", True)):
        for path in (tmp_path / folder).glob("[ps]*_*.dcm"):
            if path.name.startswith(("parametric_map", "segmentation")):
                assert str(dcmread(path).SeriesDescription).startswith("WITHHELD BY TRUST GATE, ") == marked


def test_a_withheld_overlay_is_not_burnt_in(tmp_path: Path) -> None:
    from medxai.export.secondary_capture import render

    result = _judged(("withheld", "supported"))
    explanation, options = result.explanations[0], ExportOptions()
    rows, columns = result.study.volume.shape[-2:]
    shown = [p[:rows, :columns] for p in render(replace(result, trust=()), explanation, options)]
    hidden = [p[:rows, :columns] for p in render(result, explanation, options)]
    asked = [p[:rows, :columns] for p in render(result, explanation, ExportOptions(send_withheld=True))]
    coloured = [int((np.ptp(p.astype(int), axis=-1) > 30).sum()) for p in (np.stack(shown), np.stack(hidden))]
    assert coloured[0] > 20
    assert coloured[1] == 0
    assert np.array_equal(np.stack(shown), np.stack(asked))


def test_report_of_a_finished_run(tmp_path: Path) -> None:
    from tests.studies import nifti_study, settings_for
    from tests.test_pipeline import only

    row = only(settings_for(nifti_study(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"))
    assert row.state == "done"
    done = CliRunner().invoke(app, ["trust", "report", row.folder, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    trust = found["explanations"][0]["trust"]
    assert trust["verdict"] in ("supported", "limited", "withheld")
    assert trust["forwards"] <= 10
    assert set(trust["figures"]) == set(NAMES)
    words = CliRunner().invoke(app, ["trust", "report", str(tmp_path / "out")])
    assert trust["verdict"] in words.output
    missing = CliRunner().invoke(app, ["trust", "report", str(tmp_path / "in")])
    assert isinstance(missing.exception, TrustError)


def test_command_calibrates(tmp_path: Path) -> None:
    from medxai.predict.bundle import AllowList, load_bundle
    from tests.predict.build import tiny_bundle
    from tests.studies import nifti_study

    path, _ = tiny_bundle(tmp_path)
    allow = tmp_path / "allow.json"
    allow.write_text(json.dumps(AllowList.of(path).hashes))
    for number in range(22):
        nifti_study(tmp_path / "data" / f"{number}.nii.gz", seed=number)
    given = ["trust", "calibrate", "-b", str(path), "-d", str(tmp_path / "data"), "--allow", str(allow)]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "randomised weights" in done.output
    again = load_bundle(path, AllowList.read(allow))  # the new hash is allowed
    stored = read_calibration(again.path)
    assert stored is not None
    assert sum(gate.cases for gate in stored.classes.values()) == 22
    few = CliRunner().invoke(app, [*given[:4], "-d", str(tmp_path / "data" / "0.nii.gz"), "--allow", str(allow)])
    assert isinstance(few.exception, TrustError)
