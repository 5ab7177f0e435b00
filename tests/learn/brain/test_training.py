"""Scaling, training and the comparison of fusion networks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from medxai.cli import app
from medxai.errors import BundleError, MedxaiError, SettingsError
from medxai.learn.brain.comparison import cohort, shuffled
from medxai.learn.brain.settings import load_brain
from medxai.learn.brain.train import Cases, FusionRecipe, fit_fusion, predict
from medxai.networks.hierarchical_fusion import HierarchicalFusion
from medxai.predict.bundle import AllowList, load_bundle
from medxai.predict.check import inspect_bundle, verify_bundle
from medxai.predict.fusion_bundle import load_fusion
from medxai.prepare.brain.scaling import Scaling
from medxai.prepare.brain.subject import SubjectFeatures
from sample_cases.synthetic_brain import simulate, synthetic_carriers

SMALL = {"channels": 8, "width": 16, "depth": 1, "heads": 2, "strides": [2, 2, 2]}


def subjects(n: int = 12) -> list[SubjectFeatures]:
    return [case.features for case in simulate(synthetic_carriers(3), n, 0)]


def test_scaling_is_that_of_the_training_subjects() -> None:
    cohort_ = subjects()
    scaling = Scaling.fit(cohort_)
    batch, present = scaling.inputs(cohort_)
    assert present.all()
    assert {name: tuple(array.shape) for name, array in batch.items()} == {
        "alff": (12, 1, 20, 24, 20),
        "dfc": (12, 1, 50, 50, 24),
        "sfc": (12, 1, 50, 50, 1),
        "fa": (12, 1, 50, 50, 1),
    }
    sfc = batch["sfc"][:, 0, ..., 0]
    off = ~torch.eye(50, dtype=torch.bool)
    torch.testing.assert_close(sfc.mean(0)[off], torch.zeros(50 * 49), atol=1e-4, rtol=0)
    wide = scaling.sd["sfc"] > 0.11 * np.median(scaling.sd["sfc"][scaling.sd["sfc"] > 0])
    torch.testing.assert_close(sfc.std(0, correction=0)[wide], torch.ones(int(wide.sum())), atol=1e-3, rtol=0)
    assert scaling.mean["dfc"].shape == (50, 50, 1)


def test_one_scale_for_an_array() -> None:
    cohort_ = subjects()
    scaling = Scaling.fit(cohort_, by="array")
    values = np.stack([s.fa for s in cohort_ if s.fa is not None])
    assert scaling.mean["fa"].item() == pytest.approx(values.mean(), rel=1e-5)
    assert scaling.sd["fa"].item() == pytest.approx(values.std(), rel=1e-5)


def test_scaling_is_kept(tmp_path: Path) -> None:
    cohort_ = subjects(4)
    scaling = Scaling.fit(cohort_)
    scaling.write(tmp_path / "scaling.safetensors")
    again = Scaling.read(tmp_path / "scaling.safetensors")
    assert again.shapes == scaling.shapes
    for name in scaling.mean:
        np.testing.assert_array_equal(again.mean[name], scaling.mean[name])
        np.testing.assert_array_equal(again.sd[name], scaling.sd[name])


def test_missing_modalities_and_other_shapes() -> None:
    cohort_ = subjects(6)
    scaling = Scaling.fit(cohort_)
    batch, present = scaling.inputs([replace(cohort_[0], fa=None), cohort_[1]])
    assert present.tolist() == [[True, True, True, False], [True] * 4]
    assert not batch["fa"][0].any()
    assert cohort_[0].sfc is not None
    fewer = replace(cohort_[0], sfc=cohort_[0].sfc[:40, :40], regions=cohort_[0].regions[:40], dfc=None)
    with pytest.raises(MedxaiError, match="sfc has 40 regions and the network was trained on 50"):
        scaling.inputs([fewer])
    nothing = replace(cohort_[0], alff=None, sfc=None, dfc=None, fa=None)
    with pytest.raises(MedxaiError, match="none of the modalities"):
        scaling.inputs([nothing])
    broken = cohort_[0].sfc.copy()
    broken[3, 4] = np.nan
    with pytest.raises(MedxaiError, match="sfc is not finite"):
        replace(cohort_[0], sfc=broken)


def cases(n: int = 16) -> Cases:
    """Subjects whose class is the sign of a static block, plainly."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    sfc = torch.randn(n, 1, 24, 24, 1, generator=generator)
    sfc[:, :, 4:12, 12:20] += 3 * (2 * labels - 1).view(-1, 1, 1, 1, 1)
    fa = torch.randn(n, 1, 20, 20, 1, generator=generator)
    return Cases({"sfc": sfc, "fa": fa}, torch.tensor([[False, False, True, True]] * n), labels)


def small() -> HierarchicalFusion:
    torch.manual_seed(3)
    return HierarchicalFusion(2, ("sfc", "fa"), channels=8, width=16, depth=1, heads=2)


def test_a_plain_effect_is_learnt() -> None:
    everybody = cases(40)
    recipe = FusionRecipe(epochs=10, batch_size=6, rate=2e-3, noise=0.1, missing=0.0)
    network = fit_fusion(small(), everybody.some(range(24)), None, recipe)
    other = everybody.some(range(24, 40))
    assert (predict(network, other).argmax(1) == other.labels.numpy()).mean() >= 0.9
    assert not network.training


@pytest.mark.parametrize("validated", [True, False])
def test_a_training_that_was_stopped_ends_the_same(tmp_path: Path, validated: bool) -> None:
    held = cases(24).some(range(16, 24)) if validated else None
    recipe = FusionRecipe(epochs=3, batch_size=6)
    whole = fit_fusion(small(), cases(), held, recipe, checkpoint=tmp_path / "whole.ckpt")

    class Stopped(Exception):
        pass

    def stop(epoch: int, *_: object) -> None:
        if epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit_fusion(small(), cases(), held, recipe, checkpoint=tmp_path / "c.ckpt", progress=stop)
    again = fit_fusion(small(), cases(), held, recipe, checkpoint=tmp_path / "c.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def config(path: Path, **changes: object) -> Path:
    content = {
        "output": str(path / "work"),
        "cohort": {"subjects": 28},
        "network": SMALL,
        "training": {"epochs": 1, "batch_size": 8},
        "maps": {"subjects": 1, "encoder": "layer2", "chunk": 32},
        "arms": ["full", "without_fa", "shuffled"],
        "seeds": [0],
    }
    file = path / "brain.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


def test_nobody_is_in_two_parts_and_seeds_test_other_carriers(tmp_path: Path) -> None:
    settings = load_brain(config(tmp_path))
    tested = []
    for seed in (0, 1, 2):
        drawn = cohort(settings, seed)
        carriers = {part: {drawn.subjects[i].carrier for i in rows} for part, rows in drawn.rows.items()}
        assert not carriers["train"] & (carriers["validation"] | carriers["test"])
        assert not carriers["validation"] & carriers["test"]
        assert sum(len(rows) for rows in drawn.rows.values()) == len(drawn.subjects)
        tested.append(carriers["test"])
        train = [drawn.subjects[i].features for i in drawn.rows["train"]]
        expected = Scaling.fit(train, by="array").mean["sfc"]
        np.testing.assert_array_equal(drawn.scaling.mean["sfc"], expected)
    assert not tested[0] & tested[1]
    with pytest.raises(SettingsError, match="4 carriers are too few"):
        cohort(load_brain(config(tmp_path, cohort={"synthetic": 4})), 0)
    with pytest.raises(SettingsError, match="arms"):
        load_brain(config(tmp_path, arms=["with_everything"]))


def test_shuffled_labels_say_nothing_of_the_true_ones(tmp_path: Path) -> None:
    drawn = cohort(load_brain(config(tmp_path, cohort={"subjects": 56})), 0)
    labels = shuffled(drawn, 0)
    for rows in drawn.rows.values():
        for label in (0, 1):
            mine = rows[drawn.labels[rows] == label]
            assert labels[mine].mean() == 0.5
    assert not np.array_equal(labels, shuffled(drawn, 1))


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """Comparison, page and bundle; a second call does nothing again, and the bundle is what the page speaks of."""
    file = config(tmp_path)
    command = ["brain", "train", "-c", str(file), "--report", str(tmp_path / "docs"), "-o", str(tmp_path / "bundles")]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert first.output.count(": done") == 5  # three networks, and evidence of the two that are explained
    page = (tmp_path / "docs" / "brain_fusion_results.md").read_text()
    found = json.loads((tmp_path / "docs" / "evidence" / "brain_fusion.json").read_text())
    assert f"{found['arms']['shuffled']['auroc']['mean']:.3f}" in page
    assert set(found["maps"]["full"]) == {"published", "added", "inserted"}
    for rows in found["maps"]["full"].values():
        assert set(rows) <= {"alff", "dfc", "sfc"}
    assert (tmp_path / "docs" / "images" / "brain_fusion_maps.png").stat().st_size > 10_000
    folder = tmp_path / "bundles" / "brain_fusion"
    assert verify_bundle(folder) == []
    stored = (folder / "models" / "model.safetensors").read_bytes()
    second = CliRunner().invoke(app, command)
    assert second.exit_code == 0
    assert "begins" not in second.output
    assert (folder / "models" / "model.safetensors").read_bytes() == stored
    bundle = load_fusion(folder, AllowList.of(folder))
    features = subjects(1)
    batch, present = bundle.scaling().inputs(features)
    logits = bundle.network()(batch, present)
    assert logits.shape == (1, 2)
    assert inspect_bundle(folder)["shapes"]["sfc"] == [50, 50]
    assert set(bundle.baseline()) == {"alff", "dfc", "sfc", "fa"}
    healthy = bundle.reference()
    assert {name: tuple(array.shape) for name, array in healthy.items()} == {
        name: tuple(array.shape) for name, array in batch.items()
    }
    assert bundle.marking == {"marker": "insert", "gamma": 1.0, "weights": "single"}
    with pytest.raises(BundleError, match="medxai brain explain"):
        load_bundle(folder, AllowList.of(folder))
    with pytest.raises(BundleError, match="not one of brain features"):
        load_fusion("phantom_ct")
    (folder / "models" / "scaling.safetensors").unlink()
    assert verify_bundle(folder) == ["bundle brain_fusion has no models/scaling.safetensors"]
