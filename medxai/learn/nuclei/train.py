"""Training of a network of nuclei: the warm-up on labels from points, then labels that are chosen anew.

Every epoch has generators of its own, so that a run that was interrupted ends as one that was not, and arms that agree
up to the end of the warm-up share it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medxai.files import write_bytes
from medxai.learn.nuclei.data import PointField
from medxai.learn.nuclei.labels import Labels
from medxai.learn.nuclei.losses import contrastive_loss, cross_entropy, detection_loss, segmentation_loss
from medxai.learn.nuclei.pseudo import Choice, field_cams, refresh
from medxai.learn.nuclei.settings import NucleiSettings
from medxai.networks.nuclei_unet import NucleiOutput, NucleiUNet

#: ``progress(epoch, epochs, loss)``.
Progress = Callable[[int, int, float], None]
#: Channels of a sample behind its colours.
_LABEL, _VORONOI, _HEAT, _CAM = 3, 4, 5, 6
_CLEAR, _SURE = 0.1, 0.7


@dataclass(frozen=True)
class Plan:
    """What an arm does.

    Attributes:
        epochs: where it ends; the rate falls over `NucleiSettings.training.epochs` all the same.
        selects: whether labels are chosen anew after the warm-up.
        contrasts: whether the contrastive term is used after the warm-up.
        detects: whether the detection branch is trained.
        fixed_block: index of the block that is taken for all fields, or None for the best of each.
        cells: whether the label of cells is used; not with masks.
        published: the loss of Qu et al., halves of the cross-entropies on both labels from points, without Dice.
    """

    epochs: int
    selects: bool = False
    contrasts: bool = False
    detects: bool = False
    fixed_block: int | None = None
    cells: bool = True
    published: bool = False


@dataclass(eq=False)
class Training:
    """A network on its way.

    Attributes:
        network: being trained.
        optimizer: Adam.
        choices: of every field.
        epoch: epochs done.
        history: of every refresh: epoch, blocks, mean agreement, labels kept.
    """

    network: NucleiUNet
    optimizer: torch.optim.Adam
    choices: list[Choice]
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write everything, atomically."""
        stream = io.BytesIO()
        choices = [_stored(choice) for choice in self.choices]
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "choices": choices}
        torch.save(state | {"epoch": self.epoch, "history": self.history}, stream)
        write_bytes(path, stream.getvalue())

    def load(self, path: Path) -> None:
        """Go on from a file of `save`."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.choices = [_restored(choice) for choice in state["choices"]]
        self.epoch, self.history = state["epoch"], state["history"]


def begin(network: NucleiUNet, labels: Sequence[Labels], settings: NucleiSettings) -> Training:
    """A training at its start: every field is learnt from its label from points."""
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.training.rate)
    return Training(network, optimizer, [Choice(None, label.main) for label in labels])


def fit(
    training: Training,
    fields: Sequence[PointField],
    labels: Sequence[Labels],
    plan: Plan,
    settings: NucleiSettings,
    seed: int,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> NucleiUNet:
    """Train to the end of the plan; the network in eval mode.

    Args:
        training: from its start, or from a shared warm-up.
        fields: pictures and points.
        labels: from the points, in the same order.
        plan: of the arm.
        settings: of the comparison.
        seed: of order, cuts, turns and colours.
        checkpoint: written after every epoch at which labels may change, and resumed from when it exists.
        progress: told after every epoch.
    """
    how = settings.selection
    if checkpoint is not None and checkpoint.exists():
        training.load(checkpoint)
    while training.epoch < plan.epochs:
        epoch = training.epoch
        if plan.selects and epoch >= how.warmup and (epoch - how.warmup) % how.every == 0:
            _choose(training, fields, labels, plan, settings)
        loss = _epoch(training, fields, labels, plan, settings, seed)
        training.epoch = epoch + 1
        if checkpoint is not None and (training.epoch % how.every == 0 or training.epoch == plan.epochs):
            training.save(checkpoint)
        if progress is not None:
            progress(training.epoch, plan.epochs, loss)
    return training.network.eval()


def _choose(
    training: Training, fields: Sequence[PointField], labels: Sequence[Labels], plan: Plan, settings: NucleiSettings
) -> None:
    training.choices = [
        refresh(choice, field_cams(training.network, one), label, settings.selection, fixed=plan.fixed_block)
        for choice, one, label in zip(training.choices, fields, labels, strict=True)
    ]
    choices = training.choices
    alpha = np.stack([choice.alpha for choice in choices if choice.alpha is not None])
    best = [choice.block for choice in choices if choice.block is not None]
    training.history.append(
        {
            "epoch": training.epoch,
            "blocks": np.bincount(np.array(best, int), minlength=alpha.shape[1]).tolist(),
            "alpha": alpha.mean(0).tolist(),
            "theta": _mean([choice.theta for choice in choices]),
            "chosen_alpha": float(alpha.max(1).mean()),
            "area": float(
                np.mean([(c.label == 1).sum() / (m.main == 1).sum() for c, m in zip(choices, labels, strict=True)])
            ),
            "guarded": sum(choice.kept == "guard" for choice in choices),
            "capped": sum(choice.kept == "cap" for choice in choices),
        }
    )


def _epoch(
    training: Training,
    fields: Sequence[PointField],
    labels: Sequence[Labels],
    plan: Plan,
    settings: NucleiSettings,
    seed: int,
) -> float:
    """One pass over the fields; the mean loss."""
    how, network, optimizer = settings.training, training.network, training.optimizer
    generator = torch.Generator().manual_seed(seed * 100_003 + training.epoch)
    order = torch.randperm(len(fields), generator=generator).tolist()
    groups = [order[i : i + how.batch_size] for i in range(0, len(order), how.batch_size)]
    if len(groups) > 1 and len(groups[-1]) < how.batch_size / 4:
        groups.pop()
    for group in optimizer.param_groups:
        group["lr"] = how.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * training.epoch / how.epochs)))
    contrasts = plan.contrasts and training.epoch >= settings.selection.warmup and how.contrast > 0
    network.train()
    total = 0.0
    for rows in groups:
        batch = torch.stack(
            [augmented(_sample(fields[i], labels[i], training.choices[i]), how.crop, generator) for i in rows]
        )
        out = network.outputs(batch[:, :3])
        voronoi = batch[:, _VORONOI] if plan.cells else None
        if plan.published:
            both = (cross_entropy(out.segmentation, batch[:, plane]) for plane in (_LABEL, _VORONOI))
            loss = sum(both, torch.zeros(())) / 2
        else:
            loss = segmentation_loss(out.segmentation, batch[:, _LABEL], voronoi, settings.selection.voronoi)
        if plan.detects:
            loss = loss + how.detection * detection_loss(out.detection, batch[:, _HEAT])
        if contrasts:
            loss = loss + how.contrast * _contrast(network, out, batch, settings, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach())
    return total / len(groups)


def _sample(field: PointField, labels: Labels, choice: Choice) -> Tensor:
    """Colours in 0..1, P, cells, heat and the chosen map (NaN where none is) as ``[7, H, W]``."""
    cam = np.full(choice.label.shape, np.nan, np.float32) if choice.cam is None else choice.cam
    planes = [
        field.pixels.transpose(2, 0, 1) / np.float32(255),
        np.stack([choice.label, labels.voronoi, labels.heat, cam]),
    ]
    return torch.from_numpy(np.concatenate(planes).astype(np.float32))


def augmented(sample: Tensor, crop: int, generator: torch.Generator) -> Tensor:
    """A cut of ``[7, H, W]``, turned by quarters and mirrored, its colours changed in brightness, contrast and tint."""
    top, left = (int(torch.randint(n - crop + 1, (), generator=generator)) for n in sample.shape[1:])
    cut = sample[:, top : top + crop, left : left + crop]
    cut = torch.rot90(cut, int(torch.randint(4, (), generator=generator)), (1, 2))
    if torch.rand((), generator=generator) < 0.5:
        cut = cut.flip(2)
    cut = cut.clone()
    change = 1 + 0.1 * (2 * torch.rand(5, generator=generator) - 1)
    colours = cut[:3] * change[0] * change[2:, None, None].sqrt()
    middle = colours.mean()
    cut[:3] = ((colours - middle) * change[1] + middle).clamp(0, 1)
    return cut


def _contrast(
    network: NucleiUNet, out: NucleiOutput, batch: Tensor, settings: NucleiSettings, generator: torch.Generator
) -> Tensor:
    """The contrastive term on pixels that the label and the map agree on; 0 where there are too few."""
    label, cam = batch[:, _LABEL], batch[:, _CAM]
    features = out.shared.movedim(1, -1)
    picked = []
    for where in ((label == 1) & (cam > _SURE), (label == 0) & (cam < _CLEAR)):
        mine = features[where]
        if len(mine) < 8:
            return features.sum() * 0
        chosen = torch.randperm(len(mine), generator=generator)[: settings.training.samples]
        picked.append(network.projected(mine[chosen]))
    return contrastive_loss(picked[0], picked[1], settings.training.temperature)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _stored(choice: Choice) -> dict[str, Any]:
    """With tensors in place of arrays, which are read back without running code."""
    values = vars(choice).items()
    return {name: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v for name, v in values}


def _restored(values: dict[str, Any]) -> Choice:
    arrays: dict[str, Any] = {name: v.numpy() if isinstance(v, Tensor) else v for name, v in values.items()}
    return Choice(**arrays)
