"""Target of the refinement and its divergence (Xie et al. 2016, arXiv:1511.06335; Guo et al. 2017)."""

from __future__ import annotations

from torch import Tensor


def target_distribution(q: Tensor) -> Tensor:
    """``p_ij = (q_ij^2 / f_j) / sum_j'(q_ij'^2 / f_j')``, ``f_j = sum_i q_ij``: sure assignments sharpened.

    Args:
        q: ``[N, K]`` of all tiles; on a batch alone the frequencies f are wrong.
    """
    weight = q.square() / q.sum(0).clamp_min(1e-12)
    return weight / weight.sum(1, keepdim=True)


def divergence(p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(P || Q)``, the mean over tiles (``batchmean``).

    Args:
        p: ``[N, K]``, constant.
        log_q: ``[N, K]``.
    """
    return (p * (p.clamp_min(1e-12).log() - log_q)).sum(1).mean()
