"""How much a map changes with changes of the image that should not matter: smaller is better, or it is more alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from medxai.trust.curves import without_order
from medxai.trust.drops import Explainer
from medxai.trust.likeness import spearman, ssim
from medxai.trust.scores import Scores, scored

#: ``images [B, C, *S]`` -> decided class ``[B]``.
Decide = Callable[[Tensor], Tensor]


def max_sensitivity(
    explain: Explainer,
    x: Tensor,
    *,
    radius: float = 0.02,
    samples: int = 20,
    decide: Decide | None = None,
    mean: bool = False,
    seed: int = 0,
) -> Scores:
    """Largest ``|R(x + e) - R(x)| / |R(x)|`` over uniform noise (Yeh et al. 2019).

    Args:
        explain: the explanation, without rectification.
        x: ``[B, C, *S]``.
        radius: of the noise, as a share of each image's range.
        samples: draws.
        decide: where given, draws that change the decision are left out.
        mean: the mean over the draws in place of the largest.
        seed: of the draws.
    """
    base = explain(x).flatten(1).double()
    span = (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, *[1] * (x.ndim - 1))

    def distance(noisy: Tensor) -> Tensor:
        change: Tensor = (explain(noisy).flatten(1).double() - base).norm(dim=1)
        size: Tensor = base.norm(dim=1).clamp_min(1e-300)
        return change / size

    def draw(source: torch.Generator) -> Tensor:
        return x + (2 * torch.rand(x.shape, generator=source) - 1).to(x) * radius * span

    name = "avg_sensitivity" if mean else "max_sensitivity"
    return _over_noise(name, x, base, draw, distance, samples, decide, mean, seed)


def local_lipschitz(
    explain: Explainer, x: Tensor, *, deviation: float = 0.1, samples: int = 20, seed: int = 0
) -> Scores:
    """Largest ``|R(x) - R(x')| / |x - x'|`` over Gaussian noise (Alvarez-Melis and Jaakkola 2018).

    Args:
        explain: the explanation.
        x: ``[B, C, *S]``.
        deviation: of the noise.
        samples: draws.
        seed: of the draws.
    """
    base = explain(x).flatten(1).double()

    def distance(noisy: Tensor) -> Tensor:
        moved: Tensor = (noisy - x).flatten(1).double().norm(dim=1).clamp_min(1e-300)
        change: Tensor = (explain(noisy).flatten(1).double() - base).norm(dim=1)
        return change / moved

    def draw(source: torch.Generator) -> Tensor:
        return x + torch.randn(x.shape, generator=source).to(x) * deviation

    return _over_noise("local_lipschitz", x, base, draw, distance, samples, None, False, seed)


def _over_noise(
    name: str,
    x: Tensor,
    base: Tensor,
    draw: Callable[[torch.Generator], Tensor],
    distance: Callable[[Tensor], Tensor],
    samples: int,
    decide: Decide | None,
    mean: bool,
    seed: int,
) -> Scores:
    source = torch.Generator().manual_seed(seed)
    same: Decide = decide or (lambda images: torch.zeros(len(images)))
    before = same(x)
    found = []
    for _ in range(samples):
        noisy = draw(source)
        found.append(torch.where(same(noisy) == before, distance(noisy), torch.nan))
    values = torch.stack(found)
    kept = ~torch.isnan(values)
    total = values.nan_to_num(0).sum(0) / kept.sum(0) if mean else values.nan_to_num(-1).amax(0)
    reasons = tuple(
        reason or ("every draw changed the decision" if not some else "")
        for reason, some in zip(without_order(base), kept.any(0).tolist(), strict=True)
    )
    return scored(name, total.numpy(), reasons, "lower")


def consistency(explain: Explainer, x: Tensor, *, degrees: float = 5.0, shift: float = 0.04) -> dict[str, Scores]:
    """Likeness of the map with those of transformed images, mapped back; 1 when it follows the image.

    A mirror image along the last axis, a shift along the last two and a rotation in their plane. Only positions
    that both maps have count.

    Args:
        explain: the explanation.
        x: ``[B, C, *S]`` with at least two axes.
        degrees: of the rotation.
        shift: as a share of the axis.

    Returns:
        ``spearman`` and ``ssim``, means over the transformations.
    """
    base = explain(x)
    height, width = x.shape[-2:]
    moves = (max(1, round(shift * height)), -max(1, round(shift * width)))
    inside = tuple(slice(max(0, -m), min(s, s - m)) for m, s in zip(moves, (height, width), strict=True))
    border = max(round(0.15 * height), 1), max(round(0.15 * width), 1)
    middle = (slice(border[0], height - border[0]), slice(border[1], width - border[1]))
    shifted = explain(x.roll(moves, (-2, -1))).roll([-m for m in moves], (-2, -1))
    turned = rotate(explain(rotate(x, degrees)), -degrees)
    pairs = [
        (base, explain(x.flip(-1)).flip(-1)),
        (base[..., inside[0], inside[1]], shifted[..., inside[0], inside[1]]),
        (base[..., middle[0], middle[1]], turned[..., middle[0], middle[1]]),
    ]
    reasons = without_order(base)
    found: dict[str, Scores] = {}
    for name, measure in (("spearman", spearman), ("ssim", ssim)):
        values = torch.stack([measure(a.float(), b.float()) for a, b in pairs]).nanmean(0)
        found[name] = scored(f"consistency_{name}", values.numpy(), reasons)
    return found


def rotate(values: Tensor, degrees: float) -> Tensor:
    """Rotate ``[B, ..., H, W]`` about the centre of the last two axes, linearly, border values repeated."""
    flat = values.reshape(len(values), -1, *values.shape[-2:]).float()
    height, width = flat.shape[-2:]
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrix = torch.stack([torch.stack([cos, -sin * height / width]), torch.stack([sin * width / height, cos])])
    theta = torch.cat([matrix, torch.zeros(2, 1)], 1).expand(len(flat), -1, -1).to(flat)
    grid = functional.affine_grid(theta, list(flat.shape), align_corners=False)
    turned = functional.grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return turned.view(values.shape).to(values.dtype)


def families(maps: dict[str, Tensor], grid: Sequence[int]) -> Tensor:
    """Mean Spearman correlation ``[B]`` between all pairs of maps of different method families, on a coarse grid.

    Args:
        maps: ``[B, *S]`` of each family.
        grid: positions along each axis to compare on.
    """
    pools: dict[int, Callable[..., Tensor]] = {
        1: functional.adaptive_avg_pool1d, 2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d,
    }  # fmt: skip
    coarse = [pools[m.ndim - 1](m[:, None].float(), list(grid))[:, 0] for m in maps.values()]
    pairs = [spearman(coarse[i], coarse[j]) for i in range(len(coarse)) for j in range(i)]
    return torch.stack(pairs).nanmean(0) if pairs else torch.full((len(coarse[0]),), torch.nan)
