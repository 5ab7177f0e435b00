from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from medxai.learn.loop import Recipe, fit, settle_norms
from medxai.predict.augment import Augmentation, augment

RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=0.02, average=0.8, mixup=0.2, label_smoothing=0.05, seed=5)
POINTS = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
LABELS = (POINTS[:, 0] + POINTS[:, 1] > 0).long().tolist()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost more than they save on batches this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(outputs: int = 2) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, outputs))


def noisy(indices: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    chosen = POINTS[list(indices)]
    return chosen + 0.1 * torch.randn(chosen.shape, generator=generator)


@pytest.mark.parametrize("outputs", [1, 2])
def test_it_learns_with_one_logit_or_two(outputs: int) -> None:
    trained = fit(network(outputs), noisy, LABELS, replace(RECIPE, epochs=15))
    with torch.inference_mode():
        logits = trained(POINTS)
    decided = (logits[:, 0] > 0).long() if outputs == 1 else logits.argmax(dim=1)
    assert (decided == torch.tensor(LABELS)).float().mean() > 0.9
    assert not trained.training


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (
        fit(network(), noisy, LABELS, recipe) for recipe in (RECIPE, RECIPE, replace(RECIPE, seed=6))
    )
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = fit(network(), noisy, LABELS, RECIPE)

    def stop(epoch: int, epochs: int, loss: float) -> None:
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network(), noisy, LABELS, RECIPE, checkpoint=tmp_path / "run.ckpt", progress=stop)
    resumed = fit(network(), noisy, LABELS, RECIPE, checkpoint=tmp_path / "run.ckpt")
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    fit(model, noisy, LABELS, RECIPE)
    assert torch.equal(model[0].weight, before)


def test_augmentation_keeps_the_fill_and_repeats_with_the_generator() -> None:
    plan = Augmentation(flip_axes=(0, 1), rotate_degrees=20, scale=0.2, shift=0.1, gain=0.3, offset=0.2)
    images = torch.full((6, 2, 20, 24), -1.0)
    images[:, :, 6:12, 8:16] = 2.0

    def run(seed: int) -> torch.Tensor:
        return augment(images, plan, torch.Generator().manual_seed(seed), fill=-1.0)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    corners = run(1)[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.allclose(corners, torch.tensor(-1.0))


@pytest.mark.parametrize("shape", [(4, 1, 6, 7), (4, 1, 5, 6, 7)])
def test_without_changes_augmentation_is_the_identity(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    generator = torch.Generator().manual_seed(0)
    assert torch.allclose(augment(images, Augmentation(), generator, fill=0.5), images, atol=1e-6)
    nearly = Augmentation(rotate_degrees=1e-6)
    assert torch.allclose(augment(images, nearly, generator, fill=0.0), images, atol=1e-4)


def test_a_flip_is_exact_along_its_axis() -> None:
    images = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 1, 3, 4, 5)
    flipped = augment(images, Augmentation(flip_axes=(2,)), torch.Generator().manual_seed(3), fill=0.0)
    for before, after in zip(images, flipped, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(3))


def test_settled_norms_are_those_of_the_data() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6, momentum=0.01), nn.Dropout(0.5), nn.Linear(6, 2))
    weight = model[2].weight.clone()
    settle_norms(model, [POINTS[:32], POINTS[32:]])
    assert torch.allclose(model[0].running_mean, POINTS.mean(dim=0), atol=1e-6)
    assert model[0].momentum == 0.01
    assert torch.equal(model[2].weight, weight)
    assert not any(module.training for module in model.modules())
