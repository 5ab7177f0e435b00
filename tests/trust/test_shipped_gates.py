"""What the gates of the shipped bundles may say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medxai.errors import TrustError
from medxai.predict.bundle import SHIPPED
from medxai.trust.gate.fit import calibrate
from medxai.trust.gate.verdict import judge, read_calibration
from tests.trust.test_gate import GOOD, drawn


@pytest.mark.parametrize("name", sorted(path.parent.name for path in SHIPPED.glob("*/configs")))
def test_without_thresholds_no_map_is_supported(name: str) -> None:
    """The best figures there are, for every class; the card says so too."""
    calibration = read_calibration(SHIPPED / name)
    card = (SHIPPED / name / "docs" / "README.md").read_text()
    if calibration is None:
        report = judge(GOOD, None, method="gradcam", label="any")
        assert report.verdict == "limited"
        assert report.reasons[0].startswith("not judged: the bundle has no calibrated thresholds")
        assert "The trust gate has no thresholds for it" in card
    else:
        assert "The trust gate has no thresholds" not in card
        assert calibration.bundle == name


def test_chest_ct_is_without_thresholds() -> None:
    """Its three patients are in the training; thresholds would be refused anyway."""
    assert read_calibration(SHIPPED / "chest_ct") is None
    cases = [replace(case, patient=f"p{number % 3}") for number, case in enumerate(drawn(60))]
    with pytest.raises(TrustError, match="60 genuine explanations of 3 patients"):
        calibrate(cases, bundle="chest_ct", method="gradcam", masking=("blur", "mean"))
