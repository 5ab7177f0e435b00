"""KPCA-CAM: Eigen-CAM in a kernel's feature space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medxai.explain.components import orient
from medxai.explain.method import MethodInfo
from medxai.explain.resize import resize

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="kpca_cam",
    title="KPCA-CAM",
    family="activation_cam",
    reference="Karmani et al. 2024",
    passes="1F",
    graph="none",
    class_agnostic=True,
    caveat="the same map for every class; needs a P x P matrix, so large grids are pooled first",
)

_KERNELS = ("sigmoid", "linear", "rbf", "poly", "cosine")


@dataclass(frozen=True)
class Options:
    """Options of KPCA-CAM.

    Attributes:
        kernel: ``sigmoid``, ``linear``, ``rbf``, ``poly`` or ``cosine``, as scikit-learn defines them.
        gamma: of the kernel; None takes one over the number of channels.
        most_positions: larger grids are average-pooled below this, and the map enlarged again.
    """

    kernel: str = "sigmoid"
    gamma: float | None = None
    most_positions: int = 6000

    def __post_init__(self) -> None:
        """Check the kernel."""
        if self.kernel not in _KERNELS:
            raise ValueError(f"kernel is one of {', '.join(_KERNELS)}")


def attribute(run: Run, options: Options) -> Tensor:
    """First component of kernel PCA on the centred channel vectors."""
    features = run.activation
    grid = tuple(features.shape[2:])
    while features.flatten(2).shape[2] > options.most_positions:
        axes = len(grid)
        window = tuple(2 if size > 1 else 1 for size in features.shape[2:])
        pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[axes]
        features = pool(features, window, ceil_mode=True)
        run.report["pooled_to"] = list(features.shape[2:])
    maps = torch.stack([_component(sample, options) for sample in features.flatten(2).transpose(1, 2)])
    return resize(maps.view(len(maps), *features.shape[2:]), grid)


def _component(rows: Tensor, options: Options) -> Tensor:
    """``[P, K]`` -> ``[P]``."""
    from sklearn.decomposition import KernelPCA

    energy = rows.double().abs().sum(1)
    centred = (rows - rows.mean(0, keepdim=True)).double()
    if centred.abs().max() <= 1e-7 * max(float(rows.abs().max()), 1e-30):
        return torch.zeros(len(rows))
    # The solver starts from a random vector unless told otherwise.
    model = KernelPCA(1, kernel=options.kernel, gamma=options.gamma, random_state=0, eigen_solver="dense")
    component = torch.from_numpy(model.fit_transform(centred.cpu().numpy()))
    if component.shape[1] == 0:
        return torch.zeros(len(rows))
    return orient(component[:, 0][None], energy.cpu()[None], None, "energy")[0].to(rows)
