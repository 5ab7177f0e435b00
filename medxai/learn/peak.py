"""Where Grad-CAM points, in the patient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.explain.engine import explain
from medxai.predict.windows import plan_windows
from medxai.prepare.prepare import Prepared
from medxai.prepare.spec import PreparationSpec
from medxai.study import FloatArray


def peak_mm(
    network: nn.Module, layer: str, prepared: Prepared, spec: PreparationSpec, weights: FloatArray
) -> npt.NDArray[np.float64]:
    """Return LPS mm of the largest cell of Grad-CAM in the window with the largest weight.

    Grad-CAM as in Selvaraju et al. 2017 (arXiv:1610.02391), for class 1 of a network with one or two logits.

    Args:
        network: classifier in eval mode.
        layer: dotted name of the target layer.
        prepared: input of the study.
        spec: window size and overlap.
        weights: ``[N]`` weight of each window in the fused logit.
    """
    windows = plan_windows(prepared.pixels.shape[1:], spec)
    chosen = int(np.argmax(weights))
    x = torch.from_numpy(windows.extract(prepared.pixels, [chosen]))
    cells = explain(network, x, classes=1, layers=layer)[0].raw[0].numpy()
    index = np.array(np.unravel_index(int(cells.argmax()), cells.shape))
    size = np.array(windows.size) / np.array(cells.shape)
    voxel = windows.offsets[chosen] + (index + 0.5) * size - 0.5
    place: npt.NDArray[np.float64] = (prepared.grid.affine @ np.array([*voxel, 1.0]))[:3]
    return place
