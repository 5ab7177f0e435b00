"""Smooth Grad-CAM++."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medxai.errors import ExplainError
from medxai.explain.channels import mean_over_positions, weighted_sum
from medxai.explain.method import MethodInfo
from medxai.explain.second_order_weights import second_order_weights

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="smoothgradcampp",
    title="Smooth Grad-CAM++",
    family="gradient_cam",
    reference="Omeiza et al. 2019",
    passes="N(F+B)+1F+1B",
    repeats=True,
    caveat="random by design; the same seed gives the same map",
)


@dataclass(frozen=True)
class Options:
    """Options of Smooth Grad-CAM++.

    Attributes:
        samples: noisy copies.
        noise: standard deviation as a share of the sample's range.
        channels: restrict to that many channels; 0 keeps all.
        rank: ``weight`` keeps the channels with the largest weights, ``activation`` those that are most active.
        only: indices of the only channels to use, in place of `channels`.
        region: per axis of the layer's grid ``[first, end)``; positions outside take no part.
        least_activation: activations below it take no part.
    """

    samples: int = 16
    noise: float = 0.15
    channels: int = 0
    rank: str = "weight"
    only: tuple[int, ...] = ()
    region: tuple[tuple[int, int], ...] = ()
    least_activation: float | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.samples < 1 or self.noise < 0 or self.channels < 0:
            raise ValueError("samples must be at least 1, noise and channels not negative")
        if self.rank not in ("weight", "activation"):
            raise ValueError("rank is weight or activation")


def attribute(run: Run, options: Options) -> Tensor:
    """Grad-CAM++ with the powers of the gradient averaged over noisy copies; activations of the clean image."""
    activation = run.activation
    mask = _mask(run, activation, options)
    first, second, third = (torch.zeros_like(activation) for _ in range(3))
    spread = run.x.flatten(1).amax(1) - run.x.flatten(1).amin(1)
    spread = spread.view(-1, *[1] * (run.x.ndim - 1))
    run.expect(options.samples * len(run.x))
    if options.noise == 0:
        first, second, third = (run.gradient**power for power in (1, 2, 3))
    else:
        for draw in run.noise(options.samples):
            noisy = run.x + options.noise * spread * draw
            for piece, rows in run.chunks(noisy, torch.arange(len(noisy), device=noisy.device)):
                captured, score = run.capture(piece, rows)
                gradient = captured.gradients(score, [run.layer])[run.layer]
                for power, total in enumerate((first, second, third), start=1):
                    total[rows] += gradient**power / options.samples
    if mask is not None:
        activation, first = activation * mask, first * mask
    weights = second_order_weights(first, second, third, activation)
    weights = weights * _selected(weights, activation, options)
    return weighted_sum(weights, activation)


def _mask(run: Run, activation: Tensor, options: Options) -> Tensor | None:
    if not options.region and options.least_activation is None:
        return None
    mask = torch.ones_like(activation)
    if options.region:
        if len(options.region) != activation.ndim - 2:
            msg = f"region needs [first, end) for each of the {activation.ndim - 2} axes of layer {run.layer!r}"
            raise ExplainError(msg)
        inside = torch.zeros_like(activation)
        inside[(slice(None), slice(None), *(slice(int(first), int(end)) for first, end in options.region))] = 1
        mask = mask * inside
    if options.least_activation is not None:
        mask = mask * (activation >= options.least_activation)
    return mask


def _selected(weights: Tensor, activation: Tensor, options: Options) -> Tensor:
    chosen = torch.ones_like(weights)
    if options.only:
        if max(options.only) >= weights.shape[1] or min(options.only) < 0:
            msg = f"the layer has {weights.shape[1]} channels; only={list(options.only)} names others"
            raise ExplainError(msg)
        chosen = torch.zeros_like(weights)
        chosen[:, list(options.only)] = 1
    elif options.channels:
        ranked = weights if options.rank == "weight" else mean_over_positions(activation)
        best = ranked.topk(min(options.channels, weights.shape[1]), dim=1).indices
        chosen = torch.zeros_like(weights).scatter(1, best, 1.0)
    return chosen
