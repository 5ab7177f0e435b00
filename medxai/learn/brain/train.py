"""Train a fusion network: Adam, the rate lowered when validation stalls, the best epoch kept; resumable.

Shen et al. 2024 (arXiv:2401.06780): rate 1e-4, decay 1e-5, a fifth of the rate after 10 epochs without progress. The
alignment contrasts the subjects of a batch, so that batches are larger than the published two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medxai.files import atomic_path
from medxai.learn.brain.losses import FusionLoss
from medxai.networks.hierarchical_fusion import HierarchicalFusion

#: ``progress(epoch, epochs, training loss, validation loss)``, the latter NaN without validation.
Progress = Callable[[int, int, float, float], None]


@dataclass(frozen=True)
class FusionRecipe:
    """What decides a training besides data and network.

    Attributes:
        epochs: at most.
        batch_size: subjects a step.
        rate: of Adam.
        decay: of it.
        patience: epochs without a better validation loss before the rate is lowered to a fifth.
        weights: of cross-entropy, functional-structural and dynamic-static alignment.
        missing: probability with which a training subject's modality is withheld, so that the network learns to do
            without; never the last one.
        noise: added to inputs in training, in standard deviations between subjects.
        seed: of weights, order and noise.
    """

    epochs: int = 20
    batch_size: int = 16
    rate: float = 1e-3
    decay: float = 1e-5
    patience: int = 4
    weights: tuple[float, float, float] = (0.8, 0.1, 0.1)
    missing: float = 0.1
    noise: float = 0.3
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Cases:
    """Subjects as tensors.

    Attributes:
        inputs: ``[N, 1, ...]`` by modality.
        present: ``[N, 4]`` bool.
        labels: ``[N]`` class index.
    """

    inputs: Mapping[str, Tensor]
    present: Tensor
    labels: Tensor

    def some(self, rows: Sequence[int] | Tensor) -> Cases:
        """A part of them."""
        chosen = torch.as_tensor(rows)
        kept = {name: array[chosen] for name, array in self.inputs.items()}
        return Cases(kept, self.present[chosen], self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)


def fit_fusion(
    network: HierarchicalFusion,
    train: Cases,
    validation: Cases | None,
    recipe: FusionRecipe,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> HierarchicalFusion:
    """Train in place and return the network of the best epoch, in eval mode.

    Args:
        network: with random weights.
        train: subjects that are learnt from.
        validation: others, which choose the epoch and the rate; without them the last epoch counts and the rate
            falls to zero along a cosine.
        recipe: schedule.
        checkpoint: written after every epoch, resumed from when it exists.
        progress: told after every epoch.
    """
    classes = int(network.classifier.out_features)
    counts = torch.bincount(train.labels, minlength=classes).clamp_min(1)
    balance = tuple((len(train) / (classes * counts)).tolist())
    torch.manual_seed(recipe.seed)
    loss = FusionLoss(class_weights=balance, weights=recipe.weights)
    everything = [*network.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(everything, lr=recipe.rate, weight_decay=recipe.decay)
    schedule: torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau
    if validation is None:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    else:
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.2, patience=recipe.patience)
    state: dict[str, Any] = {"epoch": 0, "least": float("inf"), "best": None}
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        loss.load_state_dict(state["loss"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    for epoch in range(state["epoch"], recipe.epochs):
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        network.train()
        order = torch.randperm(len(train))
        total, steps = 0.0, 0
        for start in range(0, len(order), recipe.batch_size):
            chosen = order[start : start + recipe.batch_size]
            if len(chosen) < 2:
                continue  # nothing to contrast, no batch statistics
            part = _changed(train.some(chosen), recipe, network.modalities)
            logits, embeddings = network.outputs(part.inputs, part.present)
            parts = loss(logits, part.labels, embeddings, part.present)
            optimizer.zero_grad(set_to_none=True)
            parts.total.backward()
            nn.utils.clip_grad_norm_(everything, 5.0)
            optimizer.step()
            total, steps = total + float(parts.total.detach()), steps + 1
        held = float("nan")
        if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            assert validation is not None  # noqa: S101
            known = torch.from_numpy(predict(network, validation))
            held = float(nn.functional.cross_entropy(known, validation.labels, weight=torch.tensor(balance)))
            schedule.step(held)
            if held < state["least"]:
                state["least"], state["best"] = held, {k: v.detach().clone() for k, v in network.state_dict().items()}
        else:
            schedule.step()
        state |= {
            "epoch": epoch + 1,
            "network": network.state_dict(),
            "loss": loss.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
        }
        if checkpoint is not None:
            with atomic_path(checkpoint) as temporary:
                torch.save(state, temporary)
        if progress is not None:
            progress(epoch + 1, recipe.epochs, total / max(1, steps), held)
    if state["best"] is not None:
        network.load_state_dict(state["best"])
    return network.eval()


def predict(network: HierarchicalFusion, cases: Cases, batch_size: int = 16) -> npt.NDArray[np.float32]:
    """Logits ``[N, classes]`` in eval mode; the network comes back in the mode it had."""
    mode = network.training
    network.eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(cases), batch_size):
            part = cases.some(range(start, min(start + batch_size, len(cases))))
            found.append(network(_of(part.inputs, network.modalities), part.present).numpy())
    network.train(mode)
    logits: npt.NDArray[np.float32] = np.concatenate(found)
    return logits


def _of(inputs: Mapping[str, Tensor], modalities: Sequence[str]) -> dict[str, Tensor]:
    return {name: array for name, array in inputs.items() if name in modalities}


def _changed(cases: Cases, recipe: FusionRecipe, modalities: Sequence[str]) -> Cases:
    """Inputs with noise, some modalities withheld."""
    from medxai.prepare.brain.subject import MODALITIES

    inputs = {
        name: array + recipe.noise * torch.randn_like(array) if recipe.noise else array
        for name, array in _of(cases.inputs, modalities).items()
    }
    mine = torch.tensor([name in modalities for name in MODALITIES])
    withheld = torch.rand(cases.present.shape) < recipe.missing
    left = cases.present & ~withheld & mine
    alone = ~left.any(dim=1)
    left[alone] = cases.present[alone] & mine
    return Cases(inputs, left, cases.labels)
