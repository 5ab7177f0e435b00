"""CAM, the original class activation map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medxai.errors import ExplainError
from medxai.explain.channels import mean_over_positions, weighted_sum
from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="cam",
    title="CAM",
    family="activation_cam",
    reference="Zhou et al. 2016",
    passes="1F",
    graph="none",
    needs="a head of global average pooling and one linear layer (or 1x1 convolution) behind the target layer",
    caveat="the mean of the raw map plus the bias is the logit",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``sum_k w_ck A_k`` with the weights of the linear head.

    Raises:
        ExplainError: the head is not a linear function of the mean activation.
    """
    pooled = mean_over_positions(run.activation)
    logits, classes = run.logits, run.classes
    for weight, bias in _heads(run.network, pooled.shape[1], logits.shape[1] if logits.ndim == 2 else 0):
        predicted = pooled @ weight.T + bias
        if torch.allclose(predicted, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max().clamp_min(1))):
            if weight.shape[0] == 1:
                sign = torch.where(classes == 1, 1.0, -1.0).to(weight)
                return weighted_sum(sign[:, None] * weight, run.activation)
            return weighted_sum(weight[classes], run.activation)
    msg = (
        f"CAM needs logits that are a linear function of the mean of layer {run.layer!r}; this head is not. "
        "Use Grad-CAM, or the last layer before global average pooling"
    )
    raise ExplainError(msg)


def _heads(network: Any, channels: int, classes: int) -> list[tuple[Tensor, Tensor]]:
    """Weights ``[classes, channels]`` and biases of the modules that could be the head, last first."""
    found = []
    for module in network.modules():
        if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            continue
        weight = module.weight.detach().float()
        if weight.flatten(1).shape == (classes, channels):
            bias = torch.zeros(classes).to(weight) if module.bias is None else module.bias.detach().float()
            found.append((weight.flatten(1), bias))
    return found[::-1]
