"""Synthetic slabs, what maps find in them, and the bundle's steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medxai.learn.chest_ct import synthetic
from medxai.learn.chest_ct.bundle import for_patients, results
from medxai.learn.chest_ct.localise import _measured
from medxai.learn.search.score import score
from medxai.networks.covidnet3d import Architecture, CovidNet3d

WINDOW, SPACING = (8, 40, 32), (10.0, 8.0, 10.0)


@pytest.fixture(scope="module")
def drawn() -> synthetic.Slabs:
    return synthetic.draw(9, 300, WINDOW, SPACING)


def test_every_slab_shows_what_its_label_says(drawn: synthetic.Slabs) -> None:
    assert np.bincount(drawn.labels).tolist() == [3, 3, 3]
    ml = np.prod(SPACING) / 1000
    for label, truth in zip(drawn.labels, drawn.truth, strict=True):
        shown = np.bincount(truth.ravel(), minlength=4) * ml
        if label == 0:
            assert shown[1] == shown[2] == 0
        else:
            assert shown[label] >= synthetic.LEAST_ML
    assert drawn.pixels.shape == (9, 1, *WINDOW)
    assert 0 <= drawn.pixels.min() < drawn.pixels.max() <= 1


def test_only_the_lungs_are_shown(drawn: synthetic.Slabs) -> None:
    shown = drawn.pixels[:, 0] > 0
    assert (shown & drawn.lungs).sum() > 0.9 * shown.sum()
    found = shown & (drawn.truth == 1)
    assert found.sum() > 0.85 * (drawn.truth == 1).sum()


def test_a_stored_set_comes_back_and_another_one_is_not_taken_for_it(tmp_path: Path) -> None:
    first = synthetic.slabs(3, 300, WINDOW, SPACING, tmp_path)
    again = synthetic.slabs(3, 300, WINDOW, SPACING, tmp_path)
    assert np.array_equal(first.pixels, again.pixels)
    assert len(list(tmp_path.glob("*.npz"))) == 1
    synthetic.slabs(3, 303, WINDOW, SPACING, tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_smaller_input_is_the_mean_of_blocks(drawn: synthetic.Slabs) -> None:
    sample = drawn.sampler(changed=False, shape=(4, 20, 16))
    small = sample([1, 4], torch.Generator()).numpy()
    whole = drawn.pixels[[1, 4]].astype(np.float32).reshape(2, 1, 4, 2, 20, 2, 16, 2).mean((3, 5, 7))
    assert np.allclose(small, whole, atol=1e-5)


def test_changes_follow_the_generator(drawn: synthetic.Slabs) -> None:
    sample = drawn.sampler(changed=True)
    first = sample([0, 5], torch.Generator().manual_seed(4))
    assert torch.equal(first, sample([0, 5], torch.Generator().manual_seed(4)))
    assert not torch.equal(first, sample([0, 5], torch.Generator().manual_seed(5)))


def test_figures_of_known_answers() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    logits = np.full((6, 3), -5.0, np.float32)
    logits[range(6), [0, 1, 1, 1, 2, 0]] = 5.0
    found = score(logits, labels)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["sensitivity"] == pytest.approx(3 / 4)
    assert found["specificity"] == pytest.approx(1 / 2)
    assert found["f1"] == pytest.approx(np.mean([2 * 1 / 4, 2 * 2 / 5, 2 * 1 / 3]))
    perfect = np.eye(3, dtype=np.float32)[labels] * 9
    assert score(perfect, labels)["auroc"] == 1


def test_places_of_known_maps() -> None:
    """A ball in one half of the lungs: a map on it is near, one without depth is not."""
    d, h, w = np.ogrid[:16, :24, :20]
    masks, maps, flat = [], [], []
    for z, y, x in ((4, 8, 6), (11, 14, 12), (7, 12, 9), (5, 9, 13)):
        ball = (d - z) ** 2 + (h - y) ** 2 + (w - x) ** 2
        masks.append(ball <= 9)
        maps.append(np.exp(-ball / 9).astype(np.float32))
        flat.append(np.broadcast_to(np.exp(-((h - y) ** 2 + (w - x) ** 2) / 9), (16, 24, 20)).astype(np.float32))
    good = _measured("good", np.stack(maps), np.stack(masks), (16, 24, 20), (5.0, 5.0, 5.0))
    bad = _measured("flat", np.stack(flat), np.stack(masks), (1, 24, 20), (5.0, 5.0, 5.0))
    assert good.centre_mm.max() == 0
    assert good.dice.min() > 0.9
    assert good.sensitivity == 1
    assert good.lift.min() > 10
    assert bad.centre_mm.mean() > 15
    assert bad.dice.max() < 0.6
    assert bad.lift.max() < good.lift.min()
    assert bad.cell_mm == (80.0, 5.0, 5.0)


def test_one_logit_stands_for_any_finding() -> None:
    torch.manual_seed(0)
    network = CovidNet3d.of(Architecture.uniform("k3e3"), 3).eval()
    torch.nn.init.normal_(network.classifier.bias)
    single = for_patients(network)
    x = torch.rand(2, 1, *(16, 32, 48))
    with torch.inference_mode():
        three, one = network(x), single(x)
    assert torch.allclose(one[:, 0], three[:, 1:].mean(1) - three[:, 0], atol=1e-5)


def test_results_come_from_the_table_alone(tmp_path: Path) -> None:
    lines = ["patient,start,label,logit,logit_pretrained"]
    for i in range(30):
        infected = i % 2 == 0 and i < 20
        lines.append(f"{'abc'[i // 10]},{4 * (i % 10)},{'infected' if infected else 'clean'},{1.5 * infected - 1},0.0")
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    found = results(path)
    assert found["auroc_pooled"].value == 1  # type: ignore[union-attr]
    assert found["called_infected_c"].startswith("0 of 10")  # type: ignore[union-attr]
    assert results(path, "logit_pretrained")["auroc_pooled"].value == 0.5  # type: ignore[union-attr]
