"""Maps that know nothing of the network: a measure a method does not beat them at says nothing for the method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medxai.explain.resize import resize

NAMES = ("random", "centred_gaussian", "edges")


def random_map(batch: int, spatial: Sequence[int], grid: Sequence[int], seed: int = 0) -> Tensor:
    """Uniform noise ``[batch, *spatial]`` on a layer's `grid`, enlarged as a map would be."""
    source = torch.Generator().manual_seed(seed)
    return resize(torch.rand(batch, *grid, generator=source), spatial)


def centred_gaussian(batch: int, spatial: Sequence[int], width: float = 0.5) -> Tensor:
    """Gaussian ``[batch, *spatial]`` about the centre; `width` is its standard deviation in half axes."""
    found = torch.ones(1)
    for axis, size in enumerate(spatial):
        place = (torch.arange(size) + 0.5) / size * 2 - 1
        line = torch.exp(-(place**2) / (2 * width**2))
        found = found.unsqueeze(-1) * line if axis else line
    return found.expand(batch, *spatial).clone()


def edges(x: Tensor) -> Tensor:
    """Sobel magnitude ``[B, *S]`` of images ``[B, C, *S]``, summed over channels."""
    dims = x.ndim - 2
    total = torch.zeros(len(x), *x.shape[2:])
    values = x.detach().float().cpu()
    for axis in range(dims):
        if values.shape[axis + 2] < 2:
            continue
        part = values
        for other in range(dims):
            taps = (-1.0, 0.0, 1.0) if other == axis else (1.0, 2.0, 1.0)
            part = _filter(part, taps, other + 2)
        total += part.square().sum(1)
    return total.sqrt()


def _filter(values: Tensor, taps: tuple[float, float, float], axis: int) -> Tensor:
    """Three taps along an axis; the border value is repeated."""
    size = values.shape[axis]
    if size == 1:
        return values
    first, last = values.narrow(axis, 0, 1), values.narrow(axis, size - 1, 1)
    padded = torch.cat([first, values, last], axis)
    return sum(tap * padded.narrow(axis, shift, size) for shift, tap in enumerate(taps))  # type: ignore[return-value]


def all_controls(x: Tensor, grid: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """The three controls ``[B, *S]`` of images ``[B, C, *S]`` by name."""
    spatial = tuple(x.shape[2:])
    return {
        "random": random_map(len(x), spatial, grid, seed),
        "centred_gaussian": centred_gaussian(len(x), spatial),
        "edges": edges(x),
    }
