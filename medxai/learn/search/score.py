"""How good a network is on the test cases, in the figures that papers give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import softmax
from torch import nn

from medxai.learn.metrics import auroc

if TYPE_CHECKING:
    from medxai.learn.chest_ct.synthetic import Slabs


def predict(network: nn.Module, cases: Slabs, batch_size: int = 8) -> npt.NDArray[np.float32]:
    """Logits ``[N, K]`` of all cases, unchanged."""
    sample, generator = cases.sampler(changed=False), torch.Generator()
    n = len(cases.labels)
    network.eval()
    with torch.inference_mode():
        rows = [network(sample(range(i, min(i + batch_size, n)), generator)).numpy() for i in range(0, n, batch_size)]
    found: npt.NDArray[np.float32] = np.concatenate(rows)
    return found


def score(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """Figures of a network; class 0 is normal.

    Sensitivity and specificity are those of the decision that there is any finding, F1 is the mean over classes, AUROC
    that of any finding, ``auroc_mean`` the mean over classes of one against the rest.
    """
    p = softmax(logits.astype(np.float64), axis=1)
    decided, y = p.argmax(1), np.asarray(labels)
    ill = y != 0
    f1 = []
    for label in range(p.shape[1]):
        hit = float(((decided == label) & (y == label)).sum())
        f1.append(2 * hit / max(1.0, float((decided == label).sum() + (y == label).sum())))
    return {
        "accuracy": float((decided == y).mean()),
        "sensitivity": float((decided[ill] != 0).mean()),
        "specificity": float((decided[~ill] == 0).mean()),
        "f1": float(np.mean(f1)),
        "auroc": auroc(1)(ill.astype(np.int64), np.stack([p[:, 0], 1 - p[:, 0]], axis=1)),
        "auroc_mean": float(np.mean([auroc(k)(y, p) for k in range(p.shape[1])])),
    }
