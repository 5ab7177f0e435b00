"""The training flow: its stages on few cases, run twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from flows.train import train_flow
from medxai.learn.chest_ct import bundle
from medxai.networks.covidnet3d import Architecture
from medxai.predict.bundle import AllowList, load_bundle
from tests.tools import require_data


@pytest.mark.longest
def test_the_flow_trains_a_bundle_and_does_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = require_data("ct_chest_nifti", "slice_labels.csv").parent.parent
    monkeypatch.setattr(bundle, "N_PRETRAIN", 12)
    monkeypatch.setattr(bundle, "N_TEST", 6)
    for name in ("PRETRAINING", "RECIPE"):
        monkeypatch.setattr(bundle, name, dataclasses.replace(getattr(bundle, name), epochs=1))
    architecture = tmp_path / "a.json"
    Architecture.uniform("skip").write(architecture)
    made = train_flow(data, tmp_path / "work", tmp_path / "out", architecture)
    said = capsys.readouterr().out
    assert "pretraining: epoch 1/1" in said
    assert "without_P002: epoch 1/1" in said
    loaded = load_bundle(str(made), AllowList.read(tmp_path / "out" / "allow.json"))
    assert loaded.spec.preparation.region == "lungs"
    card = (made / "docs" / "README.md").read_text()
    assert "| 21 | 6 | 320 | skip | - | 0 |" in card
    assert "auroc_pooled" in card
    weights = (made / "models" / "model.safetensors").read_bytes()
    assert train_flow(data, tmp_path / "work", tmp_path / "out", architecture) == made
    assert "epoch" not in capsys.readouterr().out
    assert (made / "models" / "model.safetensors").read_bytes() == weights
