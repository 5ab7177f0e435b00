"""Does the map depend on what the network learnt, and on the class? Sanity checks by randomisation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medxai.explain.modes import evaluation
from medxai.trust.curves import without_order
from medxai.trust.drops import Explainer
from medxai.trust.likeness import pearson, spearman, ssim
from medxai.trust.scores import Scores, scored

#: ``network`` -> how it explains the same question.
Maker = Callable[[nn.Module], Explainer]

_BINS = 100
_ALIKE = {"spearman": spearman, "pearson": pearson, "ssim": ssim}


def parametrised(network: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules with parameters of their own and a way to draw them anew, in the order they run."""
    order: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if callable(getattr(module, "reset_parameters", None)) and any(True for _ in module.parameters(recurse=False)):
            hook = _note(name, order)
            handles.append(module.register_forward_pre_hook(hook))
    try:
        with evaluation(network), torch.no_grad():
            network(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(order))


def _note(name: str, order: list[str]) -> Callable[..., None]:
    def hook(_module: nn.Module, _given: object) -> None:
        order.append(name)

    return hook


def randomised(network: nn.Module, names: list[str], x: Tensor, seed: int = 42) -> nn.Module:
    """A copy with modules drawn anew and the statistics of its normalisation taken from `x` again.

    Without new statistics a network with batch normalisation puts out constants.

    Args:
        network: left alone.
        names: modules.
        x: ``[B, C, *S]``.
        seed: of the draw.
    """
    made = copy.deepcopy(network).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            module = made.get_submodule(name)
            module.reset_parameters()  # type: ignore[operator]
            for value in module.parameters(recurse=False):
                if value.ndim == 1:  # scales of one and shifts of zero are not random
                    with torch.no_grad():
                        value.add_(torch.randn_like(value) * 0.1)
    recalibrate(made, x)
    return made


def recalibrate(network: nn.Module, x: Tensor) -> None:
    """Take the statistics of batch normalisation from one batch, layer by layer as the batch passes."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        with torch.no_grad():
            if norms:
                network(x if x[0].numel() > 1 and len(x) > 1 else torch.cat([x, x]))
    finally:
        for norm, momentum in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.eval()


def cascade(network: nn.Module, x: Tensor, steps: int = 0, seed: int = 42) -> Iterator[tuple[str, nn.Module]]:
    """Copies randomised from the top down, one more module each time.

    Args:
        network: left alone.
        x: for statistics.
        steps: at most so many copies, evenly spread and the last one complete; 0 for one for each module.
        seed: of the draw.

    Raises:
        ValueError: no module can be drawn anew.
    """
    names = parametrised(network, x)[::-1]
    if not names:
        msg = "the network has no module with parameters that can be drawn anew"
        raise ValueError(msg)
    ends = range(1, len(names) + 1)
    if 0 < steps < len(names):
        ends = [round((i + 1) * len(names) / steps) for i in range(steps)]  # type: ignore[assignment]
    for end in ends:
        yield names[end - 1], randomised(network, names[:end], x, seed)


def mprt(
    network: nn.Module,
    x: Tensor,
    make: Maker,
    *,
    steps: int = 8,
    noisy: int = 0,
    measure: str = "spearman",
    seed: int = 42,
) -> tuple[Scores, Tensor]:
    """Model parameter randomisation test (Adebayo et al. 2018): likeness with maps of randomised networks.

    Args:
        network: left alone.
        x: ``[B, C, *S]``.
        make: how a network explains.
        steps: randomised copies.
        noisy: average the maps over so many noisy images, which takes out what is common to all gradients
            (smooth MPRT, Hedstroem et al. 2023); 0 for none.
        measure: spearman, pearson or ssim.
        seed: of the draws.

    Returns:
        The mean over the copies, and ``[B, steps]`` the value after each.

    Raises:
        ValueError: no module of the network can be drawn anew.
    """
    base = _smooth(make(network), x, noisy, seed)
    found = [
        _ALIKE[measure](base, _smooth(make(copy_), x, noisy, seed)) for _, copy_ in cascade(network, x, steps, seed)
    ]
    values = torch.stack(found, 1)
    name = "smooth_mprt" if noisy else "mprt"
    return scored(name, values.nanmean(1).numpy(), without_order(base), "lower"), values


def efficient_mprt(network: nn.Module, x: Tensor, make: Maker, *, seed: int = 42) -> Scores:
    """Relative rise of the map's entropy when the whole network is randomised (Hedstroem et al. 2024).

    Args:
        network: left alone.
        x: ``[B, C, *S]``.
        make: how a network explains.
        seed: of the draw.
    """
    base = make(network)(x)
    other = make(randomised(network, parametrised(network, x), x, seed))(x)
    before, after = histogram_entropy(base), histogram_entropy(other)
    found = torch.where(before > 0, (after - before) / before.clamp_min(1e-300), torch.nan)
    reasons = tuple(
        r or ("the map takes a single value" if b <= 0 else "")
        for r, b in zip(without_order(base), before, strict=True)
    )
    return scored("efficient_mprt", found.numpy(), reasons)


def random_logit(base: Tensor, other: Tensor, measure: str = "ssim") -> Scores:
    """Likeness of a class's map with that of another class (Sixt et al. 2020); 1 for a method blind to the class.

    Args:
        base: ``[B, *S]`` map of the class.
        other: ``[B, *S]`` map of another class.
        measure: ssim, spearman or pearson.
    """
    return scored("random_logit", _ALIKE[measure](base, other).numpy(), without_order(base), "lower")


def other_class(classes: Tensor, count: int, seed: int = 0) -> Tensor:
    """For each of ``classes [B]`` another one out of `count`, drawn evenly.

    Raises:
        ValueError: there is only one class.
    """
    if count < 2:
        msg = "a model with a single class has no other class to compare with"
        raise ValueError(msg)
    step = torch.randint(1, count, (len(classes),), generator=torch.Generator().manual_seed(seed))
    return (classes.cpu() + step) % count


def histogram_entropy(maps: Tensor) -> Tensor:
    """Entropy ``[B]`` in nats of the histogram of each map's values, 100 bins from its least to its largest."""
    found = []
    for row in maps.flatten(1).double().nan_to_num(0, 0, 0):
        counts = torch.histc(row, _BINS)
        found.append(torch.special.entr(counts / counts.sum()).sum())
    return torch.stack(found)


def _smooth(explain: Explainer, x: Tensor, count: int, seed: int) -> Tensor:
    if not count:
        return explain(x)
    source = torch.Generator().manual_seed(seed)
    deviation = 0.1 * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, *[1] * (x.ndim - 1))
    parts = [explain(x + torch.randn(x.shape, generator=source).to(x) * deviation) for _ in range(count)]
    return torch.stack(parts).mean(0)
