"""Where a plain Grad-CAM points, in the patient: a check of localisation that shares no code with `explain`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medxai.predict.windows import plan_windows
from medxai.prepare.prepare import Prepared
from medxai.prepare.spec import PreparationSpec
from medxai.study import FloatArray


def peak_mm(
    network: nn.Module, layer: str, prepared: Prepared, spec: PreparationSpec, weights: FloatArray
) -> npt.NDArray[np.float64]:
    """Return LPS mm of the largest cell of Grad-CAM in the window with the largest weight.

    Grad-CAM as in Selvaraju et al. 2017 (arXiv:1610.02391), for the last logit of the network.

    Args:
        network: classifier in eval mode.
        layer: dotted name of the target layer.
        prepared: input of the study.
        spec: window size and overlap.
        weights: ``[N]`` weight of each window in the fused logit.
    """
    windows = plan_windows(prepared.pixels.shape[1:], spec)
    chosen = int(np.argmax(weights))
    cells = gradcam(network, layer, windows.extract(prepared.pixels, [chosen]))[0]
    index = np.array(np.unravel_index(int(cells.argmax()), cells.shape))
    size = np.array(windows.size) / np.array(cells.shape)
    voxel = windows.offsets[chosen] + (index + 0.5) * size - 0.5
    place: npt.NDArray[np.float64] = (prepared.grid.affine @ np.array([*voxel, 1.0]))[:3]
    return place


def gradcam(network: nn.Module, layer: str, inputs: FloatArray) -> FloatArray:
    """Return non-negative Grad-CAM maps ``[N, *s]`` of `inputs` ``[N, C, *S]`` for the last logit."""
    kept: list[torch.Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    handle = dict(network.named_modules())[layer].register_forward_hook(keep)
    try:
        with torch.enable_grad():
            score = network(torch.from_numpy(inputs))[:, -1].sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    weights = gradient.mean(dim=tuple(range(2, gradient.ndim)), keepdim=True)
    cells: FloatArray = (weights * kept[0]).sum(dim=1).relu().detach().numpy()
    return cells
