from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from medxai.errors import SettingsError
from medxai.explain.engine import explain
from medxai.learn import breast_us, phantom_ct
from medxai.learn.chest_ct import slabs as chest_slabs
from medxai.learn.peak import peak_mm
from medxai.networks.densenet3d import STRIDE, TARGET_LAYER
from medxai.networks.efficientnet_lite import EfficientNetLite0
from medxai.predict.bundle import load_bundle
from medxai.predict.infer import check_fit, fuse_logits, predict
from medxai.prepare.prepare import prepare
from tests.tools import require_data


@pytest.mark.parametrize(("seed", "n_lesions"), [(95_001, 1), (95_002, 2), (95_003, 0)])
def test_the_shipped_phantom_model_decides_and_points_on_unseen_phantoms(seed: int, n_lesions: int) -> None:
    bundle = load_bundle("phantom_ct")
    network = bundle.network()
    drawn = phantom_ct.draw(seed, n_lesions)
    volume = phantom_ct.as_volume(drawn)
    check_fit(bundle, volume)
    prepared = prepare(volume, bundle.spec.preparation)
    found = predict(bundle, network, prepared)
    assert found.label == drawn.label
    if not n_lesions:
        return
    assert found.window_logits is not None
    _, weights = fuse_logits(found.window_logits, bundle.spec)
    peak = peak_mm(network, TARGET_LAYER, prepared, bundle.spec.preparation, weights[:, 1])
    cell = STRIDE * 3.0
    assert min(np.linalg.norm(peak - a.centre_mm) - a.radius_mm for a in drawn.lesions) < cell


def test_a_training_window_holds_a_lesion_in_full() -> None:
    drawn = phantom_ct.draw(phantom_ct.TRAIN_SEED, 1)
    prepared = prepare(phantom_ct.as_volume(drawn), phantom_ct.SPEC)
    back = np.linalg.inv(prepared.grid.affine)
    centre = (back @ [*drawn.lesions[0].centre_mm, 1])[:3]
    radius = drawn.lesions[0].radius_mm / 3
    case = phantom_ct.TrainingPhantom(prepared.pixels.astype(np.float16), centre[None], np.array([radius]))
    with_lesion = [phantom_ct.crop(case, torch.Generator().manual_seed(s)) for s in range(10)]
    assert all(c.shape == (1, *phantom_ct.SPEC.window) for c in with_lesion)
    assert len({c.tobytes() for c in with_lesion}) > 1


def test_gradcam_finds_the_cells_that_speak_for_the_class() -> None:
    class Probe(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).mean(dim=(2, 3)) @ torch.tensor([[1.0], [-1.0]])

    x = np.zeros((1, 2, 3, 4), np.float32)
    x[0, 0, 1, 2], x[0, 1, 2, 3] = 5, 5
    cells = explain(Probe(), torch.from_numpy(x), classes=1, layers="layer")[0].raw[0].numpy()
    assert np.unravel_index(cells.argmax(), cells.shape) == (1, 2)
    assert cells[2, 3] < 0


def test_the_tail_continues_where_the_frozen_stages_end() -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0(3).eval()
    x = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        early = breast_us._head_stages(network, x)
        assert early.shape == (2, 40, 28, 28)
        assert torch.allclose(breast_us.Tail(network).eval()(early), network(x), atol=1e-4)


def test_absent_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="us_breast_busi"):
        breast_us.read_cases(tmp_path)
    with pytest.raises(SettingsError, match="ct_chest_nifti"):
        chest_slabs.read_patients(tmp_path)


def test_breast_results_come_from_the_table_alone(tmp_path: Path) -> None:
    table = tmp_path / "out_of_fold.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "duplicate_group", "label", "fold", *(f"logit_{n}" for n in breast_us.LABELS)])
        for i in range(60):
            logits = np.full(3, -1.0)
            logits[i % 3 if i % 5 else (i + 1) % 3] = 2.0
            writer.writerow([f"{i}.png", str(i // 2), breast_us.LABELS[i % 3], i % 5, *logits])
    found = breast_us.results(table)
    assert found["balanced_accuracy"].value == pytest.approx(0.8)  # type: ignore[union-attr]
    assert {"auroc_malignant", "recall_normal"} <= set(found)


def test_chest_slabs_are_labelled_by_their_share_of_infected_slices() -> None:
    root = require_data("ct_chest_nifti", "slice_labels.csv").parent.parent
    patients = chest_slabs.read_patients(root)
    labels = {p.name: [p.label(s.start) for s in chest_slabs.slabs([p])] for p in patients}
    assert sum(labels["normal002"]) == 0
    assert 0 < sum(labels["cap002"]) < len(labels["cap002"])
    assert sum(labels["P002"]) == len(labels["P002"])  # 80 mm of these lungs are nowhere clean
    assert all(p.pixels.min() >= 0 and p.pixels.max() <= 1 for p in patients)
