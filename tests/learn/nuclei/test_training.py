"""Training: it learns, repeats, resumes, shares its warm-up, and never needs a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medxai.learn.nuclei.data import PointField
from medxai.learn.nuclei.labels import Labels, make_labels
from medxai.learn.nuclei.settings import NucleiSettings
from medxai.learn.nuclei.train import Plan, Training, augmented, begin, fit
from medxai.networks.nuclei_unet import NucleiUNet
from sample_cases.synthetic_nuclei import fields

SETTINGS = NucleiSettings.model_validate(
    {
        "output": "unused",
        "network": {"width": 0.125, "radius": 8.0, "tile": 64},
        "selection": {"warmup": 2, "every": 2, "guard": 0.0},
        "training": {"epochs": 5, "batch_size": 2, "crop": 64, "rate": 0.002},
    }
)
FULL = Plan(5, selects=True, contrasts=True, detects=True)


class Stopped(Exception):
    """Stands for the kill of a process."""


@pytest.fixture(scope="module")
def learnt() -> tuple[list[PointField], list[Labels]]:
    drawn = [PointField(str(n), f.pixels, f.points) for n, f in enumerate(fields(4, 1, 64, radius=8.0))]
    return drawn, [make_labels(one.pixels, one.points, 8.0) for one in drawn]


def start(labels: list[Labels], seed: int = 0) -> Training:
    torch.manual_seed(seed)
    return begin(NucleiUNet(0.125, radius=8.0, tile=64), labels, SETTINGS)


def same(first: NucleiUNet, second: NucleiUNet) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def test_the_loss_falls_and_labels_are_chosen_anew(learnt: tuple[list[PointField], list[Labels]]) -> None:
    training, told = start(learnt[1]), []
    network = fit(training, *learnt, FULL, SETTINGS, 0, progress=lambda epoch, epochs, loss: told.append(loss))
    assert not network.training
    assert told[1] < told[0]  # the warm-up; then labels change
    assert [row["epoch"] for row in training.history] == [2, 4]
    for row in training.history:
        assert sum(row["blocks"]) + row["capped"] >= len(learnt[0])
        assert len(row["alpha"]) == 4
    assert any(not np.array_equal(c.label, m.main) for c, m in zip(training.choices, learnt[1], strict=True))


def test_it_repeats_and_resumes(learnt: tuple[list[PointField], list[Labels]], tmp_path: Path) -> None:
    def stop(epoch: int, *_: object) -> None:
        if epoch == 5:
            raise Stopped

    whole = fit(start(learnt[1]), *learnt, FULL, SETTINGS, 0)
    assert not same(whole, fit(start(learnt[1]), *learnt, FULL, SETTINGS, 1))
    first, file = start(learnt[1]), tmp_path / "state.ckpt"
    shorter = Plan(4, selects=True, contrasts=True, detects=True)
    fit(first, *learnt, shorter, SETTINGS, 0, checkpoint=file)
    again = start(learnt[1], seed=9)  # what it is made of does not matter
    assert same(whole, fit(again, *learnt, FULL, SETTINGS, 0, checkpoint=file))
    assert [row["epoch"] for row in again.history] == [2, 4]
    with pytest.raises(Stopped):
        fit(start(learnt[1]), *learnt, FULL, SETTINGS, 0, progress=stop)


def test_a_shared_warm_up_is_the_same_as_ones_own(
    learnt: tuple[list[PointField], list[Labels]], tmp_path: Path
) -> None:
    warm = start(learnt[1])
    fit(warm, *learnt, Plan(2), SETTINGS, 0)
    warm.save(tmp_path / "warm.ckpt")
    plan = Plan(4, selects=True)
    shared = start(learnt[1], seed=5)
    shared.load(tmp_path / "warm.ckpt")
    assert same(fit(start(learnt[1]), *learnt, plan, SETTINGS, 0), fit(shared, *learnt, plan, SETTINGS, 0))


def test_changes_of_a_sample_keep_labels_on_their_pixels() -> None:
    """Colours of a plane that equals the label still follow it after every turn and cut."""
    label = (torch.rand(80, 112, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    sample = torch.stack([label, label, label, label, -label, label, label])
    generator, seen = torch.Generator().manual_seed(1), set()
    for _ in range(30):
        cut = augmented(sample, 64, generator)
        assert cut.shape == (7, 64, 64)
        assert torch.equal(cut[0] > 0.5, cut[3] > 0.5)
        assert torch.equal(cut[4], -cut[3])
        assert float(cut[:3].max()) <= 1
        seen.add(tuple(cut[3, 0, :20].tolist()))
    assert len(seen) > 20
