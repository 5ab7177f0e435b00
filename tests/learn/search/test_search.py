"""The search: gradients that reach the architecture weights, the planted best operation, equal results after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from medxai.learn.search.cost import macs, table
from medxai.learn.search.gumbel import draw, entropy, temperature
from medxai.learn.search.log import Epoch
from medxai.learn.search.search import SearchRecipe, architecture_step, best_of_random, search, split
from medxai.learn.search.supernet import Supernet3d, indices
from medxai.networks.covidnet3d import BOTTLENECKS, CELLS, OPERATIONS, SKIP, Architecture, CovidNet3d, parameters

N_CELLS = sum(CELLS)
SHAPE = (8, 32, 32)
RECIPE = SearchRecipe(epochs=3, batch_size=4, architecture_rate=0.05, seed=5)


def cases(n: int = 16) -> tuple[Tensor, list[int]]:
    generator = torch.Generator().manual_seed(1)
    labels = [i % 2 for i in range(n)]
    x = torch.rand(n, 1, *SHAPE, generator=generator) + torch.tensor(labels)[:, None, None, None, None]
    return x, labels


def sampler(x: Tensor):
    def sample(chosen: Sequence[int], generator: torch.Generator) -> Tensor:
        return x[list(chosen)] + 0.01 * torch.randn(1, generator=generator)

    return sample


def supernet(seed: int = 0) -> Supernet3d:
    torch.manual_seed(seed)
    return Supernet3d(2)


def test_the_gates_are_exactly_one_and_carry_a_gradient() -> None:
    weights = torch.randn(N_CELLS, len(OPERATIONS), requires_grad=True)
    drawn = draw(weights, 0.7, torch.Generator().manual_seed(0))
    assert set(drawn.gates.unique().tolist()) == {0.0, 1.0}
    assert drawn.gates.argmax(1).tolist() == list(drawn.choice)
    (gradient,) = torch.autograd.grad((drawn.gates * torch.arange(8.0)).sum(), [weights])
    assert gradient.abs().sum(1).min() > 0


def test_draws_follow_the_softmax_of_the_weights() -> None:
    weights = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(20_000, 1)
    drawn = draw(weights, 3.0, torch.Generator().manual_seed(2))
    share = torch.bincount(torch.tensor(drawn.choice), minlength=4) / 20_000
    assert torch.allclose(share, torch.softmax(weights[0], 0), atol=0.015)


@given(st.integers(1, 40), st.floats(0.6, 9), st.floats(0.05, 0.5))
def test_the_temperature_falls_exponentially(epochs: int, first: float, last: float) -> None:
    found = [temperature(e, epochs, first, last) for e in range(epochs)]
    assert found[0] == pytest.approx(first)
    if epochs > 2:
        assert found[-1] == pytest.approx(last)
        ratios = np.array(found[1:]) / found[:-1]
        assert np.allclose(ratios, ratios[0])


def test_the_entropy_is_a_share() -> None:
    found = entropy(torch.tensor([[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]]))
    assert found[0] == pytest.approx(1)
    assert found[1] < 1e-6


class Toy(nn.Module):
    """One cell whose operations are zero but for the planted one, which passes the image on."""

    def __init__(self, operations: int, planted: int) -> None:
        super().__init__()
        self.planted = planted
        self.weights = nn.Parameter(1e-3 * torch.randn(1, operations))
        self.classifier = nn.Linear(1, 2)

    def forward(self, x: Tensor, gates: Tensor, choice: int) -> Tensor:
        y = x if choice == self.planted else torch.zeros_like(x)
        logits: Tensor = self.classifier((y * gates[0, choice]).mean((1, 2, 3, 4))[:, None])
        return logits


def planted_probability(*, cut: bool, planted: int, updates: int = 300) -> tuple[float, float]:
    """Probability of the planted operation, and how far the weights moved; `cut` casts the sample to a boolean."""
    torch.manual_seed(planted)
    toy, generator = Toy(4, planted), torch.Generator().manual_seed(planted)
    start = toy.weights.detach().clone()
    own = torch.optim.Adam([toy.weights], lr=0.05, betas=(0.5, 0.999))
    shared = torch.optim.Adam(toy.classifier.parameters(), lr=0.05)
    y = torch.arange(8) % 2
    for step in range(updates):
        x = (y.float() * 4 - 2)[:, None, None, None, None] + torch.rand(8, 1, 2, 3, 4, generator=generator)
        for optimizer in (own, shared):
            drawn = draw(toy.weights, temperature(step, updates, 5, 0.5), generator)
            gates = drawn.gates.bool() if cut else drawn.gates
            loss = functional.cross_entropy(toy(x, gates, drawn.choice[0]), y)
            toy.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    moved = float((toy.weights.detach() - start).abs().max())
    return float(torch.softmax(toy.weights.detach(), 1)[0, planted]), moved


@pytest.mark.parametrize("planted", [0, 2, 3])
def test_the_planted_operation_wins(planted: int) -> None:
    assert planted_probability(cut=False, planted=planted)[0] > 0.8


@pytest.mark.parametrize("planted", [0, 2, 3])
def test_a_boolean_sample_cuts_the_gradient(planted: int) -> None:
    """The published code does this: its architecture weights stay where they were drawn."""
    probability, moved = planted_probability(cut=True, planted=planted)
    assert moved == 0
    assert probability == pytest.approx(0.25, abs=0.01)


def test_an_update_moves_every_cell_and_no_shared_weight() -> None:
    network = supernet().train()
    x, labels = cases(4)
    for module in network.modules():  # a bottleneck that still is zero tells nothing
        if isinstance(module, nn.BatchNorm3d):
            nn.init.ones_(module.weight)
    before = {name: value.clone() for name, value in network.named_parameters()}
    own = torch.optim.Adam([network.architecture_weights], lr=0.01)
    path = draw(network.architecture_weights, 1.0, torch.Generator().manual_seed(0))
    architecture_step(network, path, x, torch.tensor(labels), own, RECIPE)
    moved = {name for name, value in network.named_parameters() if not torch.equal(before[name], value)}
    assert moved == {"architecture_weights"}
    assert (network.architecture_weights - before["architecture_weights"]).abs().amax(1).min() > 0
    assert all(p.grad is None for p in network.parameters())


def test_a_boolean_sample_gives_the_supernet_no_gradient() -> None:
    network = supernet().train()
    path = draw(network.architecture_weights, 1.0, torch.Generator().manual_seed(0))
    loss = network(cases(4)[0], replace(path, gates=path.gates.bool())).square().sum()
    (gradient,) = torch.autograd.grad(loss, [network.architecture_weights], allow_unused=True)
    assert gradient is None


@pytest.mark.parametrize("depth", ["kept", "published"])
@pytest.mark.parametrize("training", [True, False])
def test_a_path_is_the_derived_network_bit_for_bit(depth: str, training: bool) -> None:
    torch.manual_seed(1)
    network = Supernet3d(3, depth=depth, dropout=0.0).train(training)  # type: ignore[arg-type]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    x = torch.rand(2, 1, *SHAPE)
    path = draw(network.architecture_weights, 1.0, torch.Generator().manual_seed(3))
    derived = network.derive(network.architecture(path.choice))
    assert derived.training == training
    assert torch.equal(network(x, path), derived(x))


def test_the_supernet_holds_all_operations() -> None:
    with torch.device("meta"):
        for size, total in (("S", 25_689_763), ("L", 153_832_803)):
            network = Supernet3d(3, size, "published", "published")
            assert sum(p.numel() for p in network.shared()) == total
            assert network.architecture_weights.shape == (21, 8)


def test_the_result_is_the_likeliest_architecture() -> None:
    network = supernet()
    with torch.no_grad():
        network.architecture_weights.zero_()
        network.architecture_weights[:, 5] = 0.1
        network.architecture_weights[3, 2] = 0.2
    found = network.architecture()
    assert found.operations[3] == OPERATIONS[2]
    assert all(name == OPERATIONS[5] for cell, name in enumerate(found.operations) if cell != 3)
    assert indices(found)[3] == 2


def test_halves_share_no_case_and_hold_every_class() -> None:
    labels = [0] * 11 + [1] * 6 + [2] * 5
    first, second = split(labels, 4)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(22))
    for half in (first, second):
        assert {labels[i] for i in half} == {0, 1, 2}


def test_a_killed_search_ends_like_one_that_was_not(tmp_path: Path) -> None:
    x, labels = cases()
    whole = search(supernet(), sampler(x), labels, RECIPE, tmp_path / "whole")

    class Killed(Exception):
        pass

    def kill(epoch: int, epochs: int, row: Epoch) -> None:
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        search(supernet(), sampler(x), labels, RECIPE, tmp_path / "killed", progress=kill)
    resumed = search(supernet(99), sampler(x), labels, RECIPE, tmp_path / "killed")
    assert np.array_equal(whole.history, resumed.history)
    for name in ("architecture.json", "search.csv", "weights.npy"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert len(whole.rows) == 3
    assert np.abs(whole.history[-1] - whole.history[0]).max() > 0.01


def test_uniform_draws_leave_the_weights_alone(tmp_path: Path) -> None:
    x, labels = cases()
    network = supernet()
    before = network.architecture_weights.detach().clone()
    found = search(network, sampler(x), labels, replace(RECIPE, draws="uniform", epochs=2), tmp_path)
    assert torch.equal(network.architecture_weights, before)
    best, loss = best_of_random(found, sampler(x), labels, 3, 4, 0)
    assert len(best.operations) == N_CELLS
    assert np.isfinite(loss)


@pytest.mark.parametrize("kind", ["macs", "parameters"])
def test_costs_add_up_to_those_of_the_network(kind: str) -> None:
    shape = (16, 48, 32)
    random = np.random.default_rng(0)
    names = tuple(OPERATIONS[i] for i in random.integers(8, size=N_CELLS))
    architecture = Architecture("S", names)
    network = CovidNet3d.of(architecture, 3)
    costs = table(kind, Architecture.uniform(SKIP), shape, 3)  # type: ignore[arg-type]
    wanted = macs(network, shape) if kind == "macs" else parameters(network)
    assert costs.of(indices(architecture)) == pytest.approx(wanted, rel=1e-5)
    peaked = torch.full((N_CELLS, 8), -40.0)
    peaked[range(N_CELLS), list(indices(architecture))] = 40.0
    assert float(costs.expected(peaked)) * costs.whole == pytest.approx(wanted, rel=1e-4)


def test_multiply_accumulates_of_a_convolution() -> None:
    assert macs(nn.Sequential(nn.Conv3d(2, 6, 3, padding=1, groups=2)), (3, 4, 5), 2) == 60 * 6 * 27
    assert macs(nn.Sequential(nn.Flatten(), nn.Linear(60, 7)), (3, 4, 5)) == 420


def test_a_cost_term_prefers_what_is_cheap(tmp_path: Path) -> None:
    x, labels = cases()
    costs = table("macs", Architecture.uniform(SKIP), SHAPE, 2)
    recipe = replace(RECIPE, epochs=8, cost=200.0)
    found = search(supernet(), sampler(x), labels, recipe, tmp_path, cost=costs)
    assert found.rows[-1].cost < found.rows[0].cost
    assert costs.of(indices(found.architecture)) < costs.of([list(BOTTLENECKS).index("k7e4")] * N_CELLS) / 2


def test_latency_is_measured_for_every_operation() -> None:
    costs = table("latency", Architecture.uniform(SKIP), (8, 32, 32), 2, repeats=1)
    assert costs.cells[:, : len(BOTTLENECKS)].min() > 0
    assert costs.cells[:, OPERATIONS.index(SKIP)].abs().max() == 0
    assert 0 < costs.fixed < 1
