"""Random changes of images for training and for asking again: affine maps, flips, grey values, one generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; each is drawn uniformly and per image.

    Attributes:
        flip_axes: spatial axes (0 is the first after the channel) that are mirrored half of the time.
        rotate_degrees: rotation in the plane of the last two axes, plus or minus.
        scale: relative change of size, plus or minus; one factor for all axes.
        shift: translation as a fraction of the size, plus or minus, per axis.
        gain: relative change of contrast, plus or minus.
        offset: added brightness, plus or minus, in units of the prepared input.
        noise: standard deviation of added Gaussian noise, drawn between 0 and this.
    """

    flip_axes: tuple[int, ...] = ()
    rotate_degrees: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    gain: float = 0.0
    offset: float = 0.0
    noise: float = 0.0


def augment(images: torch.Tensor, plan: Augmentation, generator: torch.Generator, *, fill: float) -> torch.Tensor:
    """Return a randomly changed copy of `images` ``[N, C, *S]`` with two or three spatial axes.

    Args:
        images: prepared inputs.
        plan: ranges.
        generator: source of all randomness.
        fill: prepared value of what comes in from outside; grey-value changes keep it fixed.
    """
    n, dims = images.shape[0], images.ndim - 2
    moved = _move(images - fill, plan, generator)
    ones = (n,) + (1,) * (dims + 1)

    def draw() -> torch.Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1).view(ones)

    inside = moved != 0
    moved = moved * (1 + draw() * plan.gain) + inside * (draw() * plan.offset)
    if plan.noise:
        moved = moved + draw().abs() * plan.noise * torch.randn(moved.shape, generator=generator)
    return moved + fill


def _move(images: torch.Tensor, plan: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """Affine maps and flips with zero outside; flips alone are exact and skip the interpolation."""
    n, dims = images.shape[0], images.ndim - 2
    if not (plan.rotate_degrees or plan.scale or plan.shift):
        moved = images.clone()
        for axis in plan.flip_axes:
            chosen = torch.rand(n, generator=generator) < 0.5
            moved[chosen] = moved[chosen].flip(2 + axis)
        return moved

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * 2 - 1

    angle = torch.deg2rad(draw() * plan.rotate_degrees)
    size = 1 + draw() * plan.scale
    # grid_sample orders coordinates (w, h[, d]); rotation is in the plane of the first two of them.
    theta = torch.zeros(n, dims, dims + 1)
    for axis in range(dims):
        theta[:, axis, axis] = 1
    aspect = images.shape[-2] / images.shape[-1]
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle)
    theta[:, 0, 1] = -torch.sin(angle) * aspect
    theta[:, 1, 0] = torch.sin(angle) / aspect
    theta = theta / size[:, None, None]
    theta[:, :, dims] = 2 * draw(dims) * plan.shift
    for axis in plan.flip_axes:
        theta[:, :, dims - 1 - axis] *= torch.sign(draw())[:, None]
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
