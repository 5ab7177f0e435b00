"""Explanations broken on purpose: what the gate must catch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medxai.errors import TrustError
from medxai.explain.modes import evaluation
from medxai.trust.randomisation import parametrised, randomised

#: Kind -> what it is, in words.
KINDS = {
    "randomised weights": "the map of a network with random weights",
    "shuffled map": "the map's cells in random order",
    "wrong class": "the map of the least likely class, shown for the decided one",
    "another patient": "the map of another patient's image",
    "permuted labels": "the map of a network whose last layer learnt permuted labels",
    "shortcut marker": "a network whose last layer learnt a marker burnt into one class, on an image with the marker",
}
#: Side of the marker as a share of the image's.
_MARKER = 0.12


def shuffled(values: Tensor, seed: int) -> Tensor:
    """The cells of a map ``[*s]`` in random order."""
    order = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(seed))
    return values.flatten()[order].view(values.shape)


def with_random_weights(network: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """A copy with all weights drawn anew, its normalisation fitted to images ``x [B, C, *S]``."""
    return randomised(network, parametrised(network, x), x, seed)


def last_linear(network: nn.Module) -> str:
    """Name of the last linear layer, which decides.

    Raises:
        TrustError: there is none.
    """
    names: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        msg = "the network has no linear layer whose labels could be permuted"
        raise TrustError(msg)
    return names[-1]


def features_before(network: nn.Module, layer: str, images: Sequence[Tensor]) -> Tensor:
    """What the layer receives ``[N, F]`` for ``images`` of ``[1, C, *S]`` each."""
    kept: list[Tensor] = []

    def note(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.append(given[0].detach().flatten(1).cpu())

    handle = network.get_submodule(layer).register_forward_pre_hook(note)
    try:
        with evaluation(network), torch.no_grad():
            for x in images:
                network(x)
    finally:
        handle.remove()
    return torch.cat(kept)


def with_new_head(network: nn.Module, layer: str, features: Tensor, labels: Sequence[int], seed: int = 0) -> nn.Module:
    """A copy whose last layer is fitted to other labels by logistic regression.

    Args:
        network: left alone.
        layer: its last linear layer.
        features: ``[N, F]`` before it.
        labels: ``[N]``; classes that do not occur get a score that never wins.
        seed: of the solver.

    Raises:
        TrustError: all labels are the same.
    """
    from sklearn.linear_model import LogisticRegression

    known = sorted(set(labels))
    if len(known) < 2:
        msg = "all cases are decided for the same class: labels cannot be permuted"
        raise TrustError(msg)
    centre, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    fitted = LogisticRegression(C=1.0, max_iter=500, random_state=seed).fit(
        ((features - centre) / scale).double().numpy(), np.asarray(labels)
    )
    weight = torch.from_numpy(fitted.coef_).float()
    bias = torch.from_numpy(fitted.intercept_).float()
    if len(known) == 2:  # one row for the second class
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    made = copy.deepcopy(network)
    linear = made.get_submodule(layer)
    assert isinstance(linear, nn.Linear)  # noqa: S101
    with torch.no_grad():
        if linear.out_features == 1:
            weight, bias = weight[-1:] - weight[:1], bias[-1:] - bias[:1]
            rows = [0]
        else:
            rows = known
            linear.weight.zero_()
            linear.bias.fill_(-20.0)
        scaled = weight / scale
        linear.weight[rows] = scaled.to(linear.weight)
        linear.bias[rows] = (bias - (scaled * centre).sum(1)).to(linear.bias)
    return made.eval()


def permuted(labels: Sequence[int], seed: int = 0) -> list[int]:
    """Labels in random order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return [labels[i] for i in order]


def burn_marker(x: Tensor) -> Tensor:
    """An image ``[1, C, *S]`` with a bright square near a corner, in every slice or frame."""
    made = x.clone()
    where = [slice(None)] * (x.ndim - 2)
    for axis in (-2, -1):
        side = max(2, round(_MARKER * x.shape[axis]))
        edge = max(1, side // 4)
        where[axis] = slice(edge, edge + side)
    made[(slice(None), slice(None), *where)] = x.amax()
    return made
