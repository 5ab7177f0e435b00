"""Grad-CAM++."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.channels import weighted_sum
from medxai.explain.method import MethodInfo, NoOptions
from medxai.explain.second_order_weights import second_order_weights

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="gradcampp",
    title="Grad-CAM++",
    family="gradient_cam",
    reference="Chattopadhay et al. 2018",
    passes="1F+1B",
    caveat="changes with the temperature of the logits: scaling the score scales two terms differently",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Channels weighted by ``sum_p a relu(G)`` with ``a = 1 / (2 + S_k G)``, ``S_k`` the channel's sum."""
    gradient, activation = run.gradient, run.activation
    return weighted_sum(second_order_weights(gradient, gradient**2, gradient**3, activation), activation)
