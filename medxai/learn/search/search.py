"""Bilevel search of first order: architecture weights on one half of the training cases, shared weights on the other.

He et al. 2021 (arXiv:2101.05442), after DARTS (arXiv:1806.09055). The published code casts its sample to a boolean,
which cuts the gradient, so that its architecture weights never move; here the output of the operation is multiplied by
the sample itself. And the result is the likeliest architecture, not one more draw.

Every epoch draws from generators of its own, seeded by the search's seed and the epoch: a search that was killed and
resumed ends with the same architecture as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from medxai.files import atomic_path, write_text
from medxai.learn.loop import Sampler
from medxai.learn.search.cost import CostTable
from medxai.learn.search.gumbel import Draw, draw, entropy, temperature
from medxai.learn.search.log import Epoch, as_csv, describe
from medxai.learn.search.supernet import Supernet3d
from medxai.networks.covidnet3d import OPERATIONS, Architecture

#: ``progress(epoch, epochs, row)`` after every epoch.
Progress = Callable[[int, int, Epoch], None]


@dataclass(frozen=True)
class SearchRecipe:
    """What decides a search besides data and space.

    Attributes:
        epochs: passes over both halves.
        batch_size: cases per update, of either kind.
        rate: of Adam for the shared weights, with a cosine schedule over `rate_epochs`.
        decay: of the shared weights.
        architecture_rate: of Adam for the architecture weights.
        architecture_betas: of it. The second one is a memory of so many updates that a short search, whose gradients
            are largest while nothing is learnt yet, hardly moves with the published 0.999.
        architecture_decay: of them.
        first_temperature: of the Gumbel-softmax in the first epoch.
        last_temperature: in the last, exponentially in between.
        warmup: epochs in which the architecture weights rest while the shared ones begin to mean something.
        cost: weight of the cost term beside the cross-entropy.
        draws: ``weights`` samples by the architecture weights; ``uniform`` ignores and never changes them: random
            search with shared weights (Li and Talwalkar 2019, arXiv:1902.07638), the control.
        seed: of the halves, order, samples and random weights.
    """

    epochs: int = 100
    batch_size: int = 64
    rate: float = 1e-3
    decay: float = 5e-4
    architecture_rate: float = 3e-4
    architecture_betas: tuple[float, float] = (0.5, 0.999)
    architecture_decay: float = 1e-3
    first_temperature: float = 5.0
    last_temperature: float = 0.5
    warmup: int = 0
    cost: float = 0.0
    draws: Literal["weights", "uniform"] = "weights"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Searched:
    """A finished search.

    Attributes:
        supernet: with its weights after the last epoch.
        rows: the log.
        history: ``[epochs, cells, operations]`` architecture weights after each epoch.
        halves: indices of the cases for shared and for architecture weights.
    """

    supernet: Supernet3d
    rows: tuple[Epoch, ...]
    history: npt.NDArray[np.float32]
    halves: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

    @property
    def architecture(self) -> Architecture:
        """The likeliest one."""
        return self.supernet.architecture()


def search(
    supernet: Supernet3d,
    sample: Sampler,
    labels: Sequence[int],
    recipe: SearchRecipe,
    folder: Path,
    *,
    cost: CostTable | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Search; resumable. Each epoch writes ``architecture.json``, ``search.csv`` and ``weights.npy`` to `folder`.

    Args:
        supernet: with random weights; trained in place.
        sample: inputs ``[B, C, D, H, W]`` for a list of case indices.
        labels: class index per case.
        recipe: schedule.
        folder: results and the checkpoint ``search.ckpt``.
        cost: table of the cost term; needed when ``recipe.cost`` is not 0.
        progress: told after every epoch.
    """
    halves = split(labels, recipe.seed)
    y = torch.as_tensor(list(labels))
    shared = torch.optim.Adam(supernet.shared(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(shared, max(1, round(0.8 * recipe.epochs)))
    own = torch.optim.Adam(
        [supernet.architecture_weights],
        lr=recipe.architecture_rate,
        betas=recipe.architecture_betas,
        weight_decay=recipe.architecture_decay,
    )
    rows: list[Epoch] = []
    history: list[npt.NDArray[np.float32]] = []
    checkpoint = folder / "search.ckpt"
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        supernet.load_state_dict(state["supernet"])
        shared.load_state_dict(state["shared"])
        own.load_state_dict(state["own"])
        schedule.load_state_dict(state["schedule"])
        rows = [Epoch(**row) for row in state["rows"]]
        history = list(state["history"].numpy())
    steps = max(1, min(len(half) for half in halves) // recipe.batch_size)
    for number in range(len(rows), recipe.epochs):
        torch.manual_seed(recipe.seed * 100_003 + number)  # of dropout
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + number)
        tau = temperature(number, recipe.epochs, recipe.first_temperature, recipe.last_temperature)
        order = [half[torch.randperm(len(half), generator=generator).numpy()] for half in halves]
        supernet.train()
        sums = np.zeros(3)
        for step in range(steps):
            part = slice(step * recipe.batch_size, (step + 1) * recipe.batch_size)
            chosen = order[1][part].tolist()
            path = next_path(supernet, recipe, tau, generator)
            if recipe.draws == "weights":
                mover = own if number >= recipe.warmup else None
                inputs = sample(chosen, generator)
                loss, right = architecture_step(supernet, path, inputs, y[chosen], mover, recipe, cost)
                sums[1:] += loss, right
            chosen = order[0][part].tolist()
            path = next_path(supernet, recipe, tau, generator)
            sums[0] += weights_step(supernet, path, sample(chosen, generator), y[chosen], shared)
        schedule.step()
        sums /= steps
        control = recipe.draws == "uniform"
        row = Epoch(
            epoch=number + 1,
            temperature=tau,
            train_loss=float(sums[0]),
            validation_loss=float("nan") if control else float(sums[1]),
            accuracy=float("nan") if control else float(sums[2]),
            entropy=float(entropy(supernet.architecture_weights).mean()),
            cost=float("nan") if cost is None else float(cost.expected(supernet.architecture_weights.detach())),
            architecture=describe(supernet.architecture_weights.argmax(1).tolist()),
        )
        rows.append(row)
        history.append(supernet.architecture_weights.detach().numpy().copy())
        state = {
            "supernet": supernet.state_dict(),
            "shared": shared.state_dict(),
            "own": own.state_dict(),
            "schedule": schedule.state_dict(),
            "rows": [vars(r) for r in rows],
            "history": torch.from_numpy(np.stack(history)),
        }
        supernet.architecture().write(folder / "architecture.json")
        write_text(folder / "search.csv", as_csv(rows))
        with atomic_path(checkpoint) as temporary:
            torch.save(state, temporary)
        if progress is not None:
            progress(number + 1, recipe.epochs, row)
    with atomic_path(folder / "weights.npy") as temporary:
        np.save(temporary, np.stack(history))
    return Searched(supernet, tuple(rows), np.stack(history), halves)


def split(labels: Sequence[int], seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cases for shared and for architecture weights: halves of every class, at random."""
    y = np.asarray(labels)
    random = np.random.default_rng([seed, 71])
    first: list[int] = []
    for label in np.unique(y):
        mine = random.permutation(np.flatnonzero(y == label))
        first += mine[: len(mine) // 2].tolist()
    chosen = np.zeros(len(y), dtype=bool)
    chosen[first] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def next_path(supernet: Supernet3d, recipe: SearchRecipe, tau: float, generator: torch.Generator) -> Draw:
    """Sample the path of one update."""
    weights: torch.Tensor = supernet.architecture_weights
    if recipe.draws == "uniform":
        weights = torch.zeros_like(weights)
    return draw(weights, tau, generator)


def architecture_step(
    supernet: Supernet3d,
    path: Draw,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer | None,
    recipe: SearchRecipe,
    cost: CostTable | None = None,
) -> tuple[float, float]:
    """One update of the architecture weights, or none without `optimizer`; returns cross-entropy and accuracy.

    The shared weights get no gradient, which saves a third of a training step.
    """
    weights = supernet.architecture_weights
    with torch.set_grad_enabled(optimizer is not None):
        logits = supernet(inputs, path)
        loss = functional.cross_entropy(logits, labels)
    if optimizer is not None:
        total = loss if cost is None or not recipe.cost else loss + recipe.cost * cost.expected(weights)
        supernet.architecture_weights.grad = torch.autograd.grad(total, [weights])[0]
        optimizer.step()
        supernet.architecture_weights.grad = None
    return float(loss.detach()), float((logits.argmax(1) == labels).float().mean())


def weights_step(
    supernet: Supernet3d,
    path: Draw,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    optimizer: torch.optim.Optimizer,
) -> float:
    """One update of the shared weights of a path; returns the cross-entropy."""
    loss = functional.cross_entropy(supernet(inputs, path.choice), labels)
    optimizer.zero_grad(set_to_none=True)  # what was not drawn has no gradient, and Adam leaves it alone
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([p for p in supernet.shared() if p.grad is not None], 5.0)
    optimizer.step()
    return float(loss.detach())


def best_of_random(
    searched: Searched, sample: Sampler, labels: Sequence[int], paths: int, batch_size: int, seed: int
) -> tuple[Architecture, float]:
    """The best of random paths by shared weights on the second half of the cases: the end of the control.

    Batch normalisation uses the statistics of each batch, since the running ones mix all paths.

    Returns:
        The architecture and its cross-entropy.
    """
    supernet, generator = searched.supernet, torch.Generator().manual_seed(seed * 100_003 + 91)
    y = torch.as_tensor(list(labels))
    supernet.train()
    supernet.dropout.eval()
    best, least = (0,) * len(supernet.cells), float("inf")
    half = searched.halves[1].tolist()
    for _ in range(paths):
        choice = tuple(torch.randint(len(OPERATIONS), (len(supernet.cells),), generator=generator).tolist())
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(half), batch_size):
                chosen = half[start : start + batch_size]
                logits = supernet(sample(chosen, generator), choice)
                total += float(functional.cross_entropy(logits, y[chosen], reduction="sum"))
        if total / len(half) < least:
            best, least = choice, total / len(half)
    return supernet.architecture(best), least
