"""One plain training loop: AdamW, cosine decay, class weights, label smoothing, averaging of weights.

Every epoch seeds its own generators from the recipe's seed and the epoch number, so a run that was
interrupted and resumed from its checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from medxai.files import atomic_path

#: ``sample(indices, generator)`` -> inputs ``[len(indices), C, *S]``, augmented.
Sampler = Callable[[Sequence[int], torch.Generator], torch.Tensor]
#: ``progress(epoch, epochs, mean_loss)`` after every epoch.
Progress = Callable[[int, int, float], None]


@dataclass(frozen=True, eq=False)
class Batch:
    """What a further loss term may know of a step.

    Attributes:
        epoch: from 0.
        positions: ``[B]`` sample indices, as the sampler got them.
        inputs: ``[B, C, *S]``.
        logits: ``[B, K]`` with their graph; two for a network with a single one.
        labels: ``[B]`` class index.
        share: of these samples in the inputs; below 1 they are mixed with others.
    """

    epoch: int
    positions: Sequence[int]
    inputs: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor
    share: float


#: ``extra(batch)`` -> a term that is added to the loss, or None.
Extra = Callable[[Batch], torch.Tensor | None]


@dataclass(frozen=True)
class Recipe:
    """What decides a training run besides data and network.

    Attributes:
        epochs: passes over the samples.
        batch_size: samples per step; a last batch smaller than a quarter of it is dropped.
        learning_rate: peak of the cosine schedule.
        weight_decay: AdamW decay of weight matrices; biases and normalisation are not decayed.
        warmup: share of the steps in which the rate rises linearly.
        label_smoothing: mass that is spread over all classes.
        mixup: parameter of the Beta distribution of mixup (arXiv:1710.09412); 0 switches it off.
        balance: weight classes by inverse frequency.
        average: decay of the exponential moving average of the weights; 0 switches it off.
        seed: of order, augmentation, dropout.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.02
    warmup: float = 0.1
    label_smoothing: float = 0.0
    mixup: float = 0.0
    balance: bool = True
    average: float = 0.0
    seed: int = 0


def fit(
    network: nn.Module,
    sample: Sampler,
    labels: Sequence[int],
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    extra: Extra | None = None,
) -> nn.Module:
    """Train `network` in place and return it in eval mode.

    Parameters with ``requires_grad=False`` stay as they are.

    Args:
        network: maps ``[N, C, *S]`` to logits ``[N, K]``; a single logit ``z`` stands for two classes, 0 and z.
        sample: inputs for a list of sample indices.
        labels: class index per sample.
        recipe: schedule and regularisation.
        checkpoint: file that is written after every epoch and resumed from when it exists.
        progress: called after every epoch.
        extra: a further term of the loss, asked after the forward pass of every step.
    """
    y = torch.as_tensor(list(labels), dtype=torch.long)
    n_classes = int(y.max()) + 1
    counts = torch.bincount(y, minlength=n_classes).clamp(min=1)
    weights = (len(y) / (n_classes * counts)).float() if recipe.balance else None
    optimizer = torch.optim.AdamW(_parameter_groups(network, recipe.weight_decay), lr=recipe.learning_rate)
    batches = _batches_per_epoch(len(y), recipe.batch_size)
    average = {k: v.detach().clone() for k, v in network.state_dict().items()} if recipe.average else {}
    first = 0
    if checkpoint is not None and checkpoint.exists():
        first = _resume(checkpoint, network, optimizer, average)
    for epoch in range(first, recipe.epochs):
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(y), generator=generator)
        network.train()
        total = 0.0
        for number in range(batches):
            step = epoch * batches + number
            for group in optimizer.param_groups:
                group["lr"] = _rate(step, recipe.epochs * batches, recipe)
            chosen = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
            inputs, first_y, second_y, share = _mix(sample(chosen.tolist(), generator), y[chosen], recipe, generator)
            logits = _two_sided(network(inputs))
            loss = share * _loss(logits, first_y, weights, recipe)
            if share < 1:
                loss = loss + (1 - share) * _loss(logits, second_y, weights, recipe)
            if extra is not None:
                term = extra(Batch(epoch, chosen.tolist(), inputs, logits, first_y, share))
                loss = loss if term is None else loss + term
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            _update_average(average, network, recipe.average, step)
            total += float(loss.detach())
        if checkpoint is not None:
            _save(checkpoint, network, optimizer, average, epoch + 1)
        if progress is not None:
            progress(epoch + 1, recipe.epochs, total / batches)
    if average:
        network.load_state_dict(average)
    return network.eval()


def settle_norms(network: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace the running statistics of batch normalisation by those of the final weights on `batches`.

    Running averages lag behind the weights, by far when a network with a small momentum is trained for few
    steps (Wu and Johnson 2021, arXiv:2105.07576, section 3). Dropout is off; the network ends in eval mode.

    Args:
        network: trained; its weights stay as they are.
        batches: inputs as in training.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's cumulative average
        norm.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def settle_on(network: nn.Module, sample: Sampler, n: int, seed: int = 5, *, batch_size: int = 16) -> None:
    """`settle_norms` on all samples in a random order; a rest that fills no batch is left out.

    Args:
        network: trained.
        sample: unchanged inputs for a list of indices.
        n: number of samples.
        seed: of the order.
        batch_size: as in training.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator).tolist()
    starts = range(0, max(1, n - batch_size + 1), batch_size)
    settle_norms(network, (sample(order[i : i + batch_size], generator) for i in starts))


def _parameter_groups(network: nn.Module, decay: float) -> list[dict[str, Any]]:
    trained = [p for p in network.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim > 1]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _batches_per_epoch(n: int, size: int) -> int:
    whole, rest = divmod(n, size)
    return max(1, whole + (rest >= max(2, size // 4)))


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    warm = max(1, int(recipe.warmup * steps))
    if step < warm:
        return recipe.learning_rate * (step + 1) / warm
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _two_sided(logits: torch.Tensor) -> torch.Tensor:
    """Turn a single logit into two whose softmax is its sigmoid."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, recipe: Recipe) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=recipe.label_smoothing)


def _mix(
    inputs: torch.Tensor, labels: torch.Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    if not recipe.mixup:
        return inputs, labels, labels, 1.0
    seed = int(torch.randint(0, 2**31 - 1, (1,), generator=generator))
    share = float(np.random.default_rng(seed).beta(recipe.mixup, recipe.mixup))
    share = max(share, 1 - share)
    other = torch.randperm(len(labels), generator=generator)
    return share * inputs + (1 - share) * inputs[other], labels, labels[other], share


def _update_average(average: dict[str, torch.Tensor], network: nn.Module, decay: float, step: int) -> None:
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in network.state_dict().items():
        if name in average:
            if value.is_floating_point():
                average[name].lerp_(value.detach(), 1 - decay)
            else:
                average[name].copy_(value)


def _save(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, torch.Tensor], epoch: int
) -> None:
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "epoch": epoch}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, torch.Tensor]) -> int:
    state = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    average.update(state["average"])
    return int(state["epoch"])
