"""Segments of an image for LIME and KernelSHAP: compact regions of like intensity, or plain blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor


def supervoxels(
    image: Tensor, count: int, spacing: Sequence[float], *, compactness: float = 0.5, rounds: int = 8
) -> Tensor:
    """Cluster voxels by intensity and position in mm, each with the nearest of the seeds around it.

    k-means with seeds on a regular grid and a search limited to neighbouring seeds, after SLIC (Achanta et al.
    2012). Segments need not be connected.

    Args:
        image: ``[C, *S]``.
        count: about how many segments.
        spacing: edge lengths of the voxels in mm.
        compactness: weight of the distance in seed distances against intensity in standard deviations.
        rounds: iterations.

    Returns:
        labels ``[*S]``, int64, from 0 without gaps.
    """
    spatial = tuple(image.shape[1:])
    seeds, cell = _seed_grid(spatial, count, spacing)
    values = image.detach().float().cpu().flatten(1)
    values = (values - values.mean(1, keepdim=True)) / values.std(1, correction=0, keepdim=True).clamp_min(1e-12)
    axes = [torch.arange(s) * mm / cell for s, mm in zip(spatial, spacing, strict=True)]
    places = torch.stack([p.flatten() for p in torch.meshgrid(*axes, indexing="ij")])
    features = torch.cat((values / len(values) ** 0.5, compactness**0.5 * places))  # [C + dims, P]
    home = _blocks(spatial, seeds)
    offsets = [torch.tensor(o) for o in product((-1, 0, 1), repeat=len(spatial))]
    position = torch.stack(torch.unravel_index(home, seeds))  # [dims, P]
    limit = torch.tensor(seeds)[:, None]
    labels = home
    for _ in range(rounds):
        centres = _means(features, labels, prod(seeds))
        best = torch.full(home.shape, torch.inf)
        found = labels
        for offset in offsets:
            near = position + offset[:, None]
            inside = ((near >= 0) & (near < limit)).all(0)
            index = _flat_index(near.clamp_min(0).minimum(limit - 1), seeds)
            distance = (features - centres[:, index]).square().sum(0)
            better = inside & (distance < best)
            best = torch.where(better, distance, best)
            found = torch.where(better, index, found)
        if torch.equal(found, labels):
            break
        labels = found
    return _without_gaps(labels).view(spatial)


def blocks(spatial: Sequence[int], count: int, spacing: Sequence[float]) -> Tensor:
    """Labels ``[*S]`` of about `count` blocks with edges about equal in mm."""
    return _blocks(spatial, _seed_grid(spatial, count, spacing)[0]).view(tuple(spatial))


def _seed_grid(spatial: Sequence[int], count: int, spacing: Sequence[float]) -> tuple[tuple[int, ...], float]:
    """Seeds along each axis, and the edge of the cube that each stands for in mm."""
    extent = [s * mm for s, mm in zip(spatial, spacing, strict=True)]
    wide = [e for e, s in zip(extent, spatial, strict=True) if s > 1] or [1.0]
    cell = (prod(wide) / count) ** (1 / len(wide))
    return tuple(max(1, min(s, round(e / cell))) for s, e in zip(spatial, extent, strict=True)), cell


def _blocks(spatial: Sequence[int], seeds: Sequence[int]) -> Tensor:
    axes = [torch.arange(s) * n // s for s, n in zip(spatial, seeds, strict=True)]
    return _flat_index(torch.stack([p.flatten() for p in torch.meshgrid(*axes, indexing="ij")]), seeds)


def _flat_index(position: Tensor, seeds: Sequence[int]) -> Tensor:
    index = position[0]
    for axis in range(1, len(seeds)):
        index = index * seeds[axis] + position[axis]
    return index


def _means(features: Tensor, labels: Tensor, count: int) -> Tensor:
    total = torch.zeros(len(features), count).index_add_(1, labels, features)
    size = torch.bincount(labels, minlength=count)
    # An empty segment is put where nothing finds it.
    return torch.where(size > 0, total / size.clamp_min(1), 1e6)


def _without_gaps(labels: Tensor) -> Tensor:
    present = torch.bincount(labels) > 0
    return (present.cumsum(0) - 1)[labels]
