"""Agreement between method families: what it is, what it costs, and where it is reported."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medxai.explain import explain
from medxai.explain.engine import load_methods
from medxai.explain.split import Forward
from medxai.explain.study_map import ExplainOptions, explain_study
from medxai.prepare.prepare import prepare
from medxai.study import Result, TrustReport
from medxai.trust.gate import look as looks
from medxai.trust.gate.assess import assess_study
from medxai.trust.gate.consensus import WORDS, consensus
from medxai.trust.gate.look import FAMILIES, Look
from medxai.trust.gate.verdict import describe
from tests.explain.nets import Pooled, fingerprint
from tests.explain.test_study_map import BRIGHT, volume_study
from tests.export.build import ct_case
from tests.test_geometry_proof import Spotter, bundle


class _Counted(Spotter):
    """Notes how many images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return super().forward(x)


def reports_of(options: ExplainOptions) -> tuple[TrustReport, ...]:
    """Reports of a study; forwards are counted at the network."""
    study, model, network = volume_study(), bundle((16, 32, 32)), _Counted().eval()
    prepared = prepare(study.volume, model.spec.preparation)
    prediction, explanations = explain_study(model, network, study, prepared, options)
    before, network.seen = fingerprint(network), 0
    reports = assess_study(model, network, study, prepared, prediction, explanations, options, None)
    assert sum(report.forwards for report in reports) == network.seen
    assert fingerprint(network) == before
    return reports


def test_closed_forms() -> None:
    source = torch.Generator().manual_seed(0)
    own = torch.rand(6, 7, generator=source)
    found = consensus(own, "gradient_cam", {"gradient_cam": own, "gradient": own * 3, "relevance": 1 - own}, (6, 7))
    assert set(found) == {"gradient", "relevance"}  # its own family says nothing independent
    assert found["gradient"] == pytest.approx(1)
    assert found["relevance"] == pytest.approx(-1)
    assert math.isnan(consensus(own, "a", {"b": torch.zeros(6, 7)}, (6, 7))["b"])
    negative = torch.where(own > 0.5, own, -own)  # evidence against the class is not evidence for it
    assert consensus(negative, "a", {"b": own.clamp_min(0) * (own > 0.5)}, (6, 7))["b"] == pytest.approx(1)
    enlarged = own.repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert consensus(own, "a", {"b": enlarged}, (6, 7))["b"] == pytest.approx(1)


def test_a_volume_of_one_slice_is_an_image() -> None:
    a, b = torch.rand(5, 6), torch.rand(5, 6)
    assert consensus(a, "a", {"b": b}, (5, 6)) == consensus(a[None], "a", {"b": b[None]}, (1, 5, 6))


def test_maps_of_the_families_are_those_of_the_engine_in_one_forward() -> None:
    network, x = Pooled(2).eval(), torch.randn(1, 1, 24, 20)
    look = Look(Forward(network), x, "act", families=True)
    found = look.family_maps(1)
    assert look.forwards == 1
    assert set(found) == set(FAMILIES) <= set(WORDS)
    wanted = explain(network, x, methods=list(FAMILIES.values()), classes=1, layers="act")
    for family, reference in zip(FAMILIES, wanted, strict=True):
        torch.testing.assert_close(found[family], reference.raw[0])


@pytest.mark.parametrize("families", [True, False])
def test_a_look_that_no_method_was_announced_to(families: bool) -> None:
    network, x = Pooled(2).eval(), torch.randn(1, 1, 24, 20)
    look = Look(Forward(network), x, "act", families=families)
    method, options = load_methods(["gradcam"])[0]
    clean, noisy = (look.map(method, options, 1, noisy=n) for n in (False, True))
    assert look.forwards == 2
    torch.testing.assert_close(clean, explain(network, x, classes=1, layers="act")[0].raw[0])
    assert 0 < float((clean - noisy).abs().max()) < float(clean.abs().max())


def test_families_within_the_budget() -> None:
    first, second = reports_of(BRIGHT)
    assert (first.forwards, second.forwards) == (9, 3)
    assert set(first.agreement) == {"activation_cam", "gradient"}
    assert all(-1 <= value <= 1 for value in first.agreement.values())
    assert first.consensus == pytest.approx(np.mean(list(first.agreement.values())))
    described = describe(first)
    assert described is not None
    assert described["consensus"] == first.consensus


def test_a_map_of_another_kind_is_asked_for() -> None:
    """Occlusion that was asked for joins; it is compared with three families in turn."""
    options = ExplainOptions(methods=("gradcam", "occlusion"), class_label="bright")
    gradient, occlusion = reports_of(options)
    assert set(gradient.agreement) == {"activation_cam", "gradient", "perturbation"}
    assert set(occlusion.agreement) == {"gradient_cam", "activation_cam", "gradient"}
    assert occlusion.agreement["gradient_cam"] == pytest.approx(gradient.agreement["perturbation"])
    assert gradient.forwards + occlusion.forwards <= 13
    (alone,) = reports_of(replace(options, methods=("occlusion",)))
    assert alone.forwards <= 10


def test_a_graph_too_large_leaves_the_input_gradient_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reports_of(BRIGHT)
    monkeypatch.setattr(looks, "GRAPH_BYTES", 1000)
    small = reports_of(BRIGHT)
    assert small[0].forwards == 10  # the one that was broken off counts
    assert set(small[0].agreement) == {"activation_cam"}
    assert small[0].figures == pytest.approx(whole[0].figures, nan_ok=True)


def test_lower_precision_stays_within_the_budget() -> None:
    first = reports_of(replace(BRIGHT, autocast=torch.bfloat16))[0]
    assert first.forwards == 10
    assert np.isfinite(first.figures["deletion"])


def test_without_a_layer_only_the_image_is_read() -> None:
    network, x = Pooled(2).eval(), torch.randn(1, 1, 24, 20)
    look = Look(Forward(network), x, None, families=True)
    assert set(look.family_maps(0)) == {"gradient"}
    assert look.grid == (8, 8)
    assert look.rival(0) in (1, 2)
    method, options = load_methods(["inputxgradient"])[0]
    torch.testing.assert_close(
        look.family_maps(2)["gradient"], explain(network, x, methods=method.INFO.name, classes=2)[0].raw[0]
    )
    assert options == method.Options()


def test_an_empty_map_agrees_with_nothing() -> None:
    for report in reports_of(replace(BRIGHT, class_label="dark")):
        assert report.agreement == {}
        assert math.isnan(report.consensus)
        assert report.forwards == 0


def _result(agreement: dict[str, float]) -> Result:
    result = ct_case().result
    return replace(result, trust=tuple(TrustReport("supported", agreement=agreement) for _ in result.explanations))


def test_consensus_on_the_page_and_in_the_structured_report() -> None:
    from medxai.export.inlined import template
    from medxai.export.page import context
    from medxai.export.structured_report import AGREEMENT, MEANINGS, build
    from medxai.settings import ExportOptions

    assert set(AGREEMENT) == set(WORDS)
    assert all(len(code) <= 16 and code in MEANINGS for code in AGREEMENT.values())
    assert all(len(meaning) <= 64 for meaning in MEANINGS.values())
    result = _result({"gradient": 0.25, "activation_cam": 0.75, "perturbation": math.nan})
    text = template("case.html.j2").render(**context(result, ExportOptions(), []))
    assert "Agreement with maps of other method families: 0.5" in text
    assert "Gradients of the class at the image" in text
    assert "not defined" in text
    stored = {
        item.ConceptNameCodeSequence[0].CodeValue: float(item.MeasuredValueSequence[0].NumericValue)
        for group in build(result, ExportOptions()).ContentSequence[-1].ContentSequence
        for item in group.ContentSequence
        if item.ValueType == "NUM"
    }
    assert stored["consensus"] == 0.5
    assert stored["agree_gradient"] == 0.25
    assert "agree_masking" not in stored


def test_consensus_in_the_report_of_a_run(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from medxai.cli import app
    from tests.studies import nifti_study, settings_for
    from tests.test_pipeline import only

    only(settings_for(nifti_study(tmp_path / "in" / "a.nii.gz"), tmp_path / "out"))
    words = CliRunner().invoke(app, ["trust", "report", str(tmp_path / "out")])
    assert words.exit_code == 0, words.output
    assert "consensus of method families" in words.output
    assert "activations of the layer" in words.output
