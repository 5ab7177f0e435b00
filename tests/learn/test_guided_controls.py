from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medxai.learn.agreement import difference, suspicions
from medxai.learn.guided_controls import (
    SEEDS,
    WEIGHT,
    Control,
    Found,
    SmallNetwork,
    all_controls,
    kept_control,
    make_pictures,
)
from medxai.learn.guided_page import PAGE, PICTURE, TABLE, write_evidence


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    work, lines = tmp_path_factory.mktemp("work"), []
    controls = [
        Control(None, 0.0, "right", 1),
        Control("attention", WEIGHT, "right", 1),
        Control("cam", WEIGHT, "mirrored", 1),
    ]
    found = [kept_control(control, work, lines.append) for control in controls]
    assert len(lines) == 3
    again = [kept_control(control, work, lines.append) for control in controls]
    assert len(lines) == 3  # what is there is not trained again
    for first, second in zip(found, again, strict=True):
        assert np.array_equal(first.deletion, second.deletion)
        assert first.parameters == second.parameters
    return found


def test_the_marker_agrees_as_often_as_asked_and_lies_away_from_lesions_and_priors() -> None:
    training, test = make_pictures(2000, 0.95, 0), make_pictures(2000, 0.5, 1)
    assert (training.labels == training.marked).float().mean() == pytest.approx(0.95, abs=0.02)
    assert (test.labels == test.marked).float().mean() == pytest.approx(0.5, abs=0.04)
    corner = training.images[:, 0, 2:6, -6:-2].mean((1, 2))
    assert float(corner[training.marked].mean() - corner[~training.marked].mean()) == pytest.approx(1.5, abs=0.05)
    assert not training.priors[:, 2:6, -6:-2].any()
    assert not training.mirrored()[:, :, :14].any()  # lesions end before
    assert not training.mirrored()[:, 2:6, -6:-2].any()
    # The lesion decides: its stripes are all that differs between classes without a marker.
    plain = test.images[:, 0] * test.priors
    energy = [
        float(
            (plain.diff(dim=axis) ** 2)[test.labels == 1].mean() - (plain.diff(dim=axis) ** 2)[test.labels == 0].mean()
        )
        for axis in (1, 2)
    ]
    assert energy[0] < 0 < energy[1]


@pytest.mark.longest
def test_the_right_prior_keeps_the_shortcut_from_being_learnt(runs: list[Found]) -> None:
    plain, guided, _ = runs
    assert difference(guided.correct, plain.correct).low > 0
    assert difference(guided.inside, plain.inside).low > 0
    assert guided.follows_marker.mean() < plain.follows_marker.mean()
    assert suspicions(plain.outcome(), guided.outcome()) == ()
    assert plain.parameters == guided.parameters == sum(p.numel() for p in SmallNetwork().parameters())


@pytest.mark.longest
def test_a_wrong_prior_is_agreed_with_and_flagged(runs: list[Found]) -> None:
    plain, _, wrong = runs
    assert difference(wrong.cosine_mirrored, plain.cosine_mirrored).low > 0.1
    assert difference(wrong.correct, plain.correct).low < 0
    assert difference(wrong.deletion, plain.deletion).low > 0
    said = suspicions(plain.outcome(mirrored=True), wrong.outcome(mirrored=True))
    assert any("deletion" in line for line in said)


@pytest.mark.longest
def test_the_page_shows_every_run_and_flags_the_wrong_prior(runs: list[Found], tmp_path: Path) -> None:
    write_evidence(runs, [], {"covid": (3, 4, 2)}, tmp_path)
    page = (tmp_path / PAGE).read_text()
    assert f"{runs[0].correct.mean():.3f} (" in page
    (flagged,) = (line for line in page.splitlines() if line.startswith("- `cam`, mirrored"))
    assert "**flagged**" in flagged
    (fine,) = (line for line in page.splitlines() if line.startswith("- `attention`, right"))
    assert "not flagged" in fine
    assert "| covid | 3 (75%) | 4 | 2 |" in page
    assert "guided folds" not in page
    table = list(csv.DictReader(io.StringIO((tmp_path / TABLE).read_text())))
    assert [row["mode"] for row in table] == ["none", "attention", "cam"]
    assert float(table[1]["correct"]) == pytest.approx(runs[1].correct.mean(), abs=1e-4)
    with Image.open(tmp_path / PICTURE) as picture:
        assert picture.size[0] > 1000


def test_every_seed_has_every_kind_once() -> None:
    controls = all_controls()
    assert len(set(controls)) == len(controls)
    assert {control.seed for control in controls} == set(SEEDS)
    assert all(sum(c.seed == seed for c in controls) == len(controls) / len(SEEDS) for seed in SEEDS)
