"""XGrad-CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from medxai.explain.channels import weighted_sum
from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="xgradcam",
    title="XGrad-CAM",
    family="gradient_cam",
    reference="Fu et al. 2020",
    passes="1F+1B",
    caveat="channels whose activations cancel, as signed token features may, get no weight",
)
Options = NoOptions
#: Sums of activations smaller than this cannot carry a weighted mean.
_SMALL = 1e-7


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """``w_k = sum_p G_k A_k / sum_p A_k``: the sum of the map is that of gradient times activation."""
    activation = run.activation
    total = activation.flatten(2).sum(2)
    product = (run.gradient * activation).flatten(2).sum(2)
    usable = total.abs() >= _SMALL
    weights = torch.where(usable, product / torch.where(usable, total, torch.ones_like(total)), torch.zeros_like(total))
    return weighted_sum(weights, activation)
