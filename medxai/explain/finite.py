"""Whether a tensor holds NaN or infinity, for little."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """True if no value is NaN or infinite.

    The sum of what is not finite never is, and is a single pass; only a sum that overflows needs a closer look.
    """
    plain = values.detach().as_subclass(Tensor)
    return math.isfinite(float(plain.sum())) or bool(torch.isfinite(plain).all())
