"""Seg-Grad-CAM: Grad-CAM of a region of a segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.errors import ExplainError
from medxai.explain.channels import mean_over_positions, weighted_sum
from medxai.explain.method import MethodInfo, NoOptions

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="seggradcam",
    title="Seg-Grad-CAM",
    family="gradient_cam",
    reference="Vinogradova et al. 2020",
    passes="1F+1B",
    needs="a network with a dense output [batch, classes, *spatial]",
    caveat="explains the mean logit over the region, so lesions of different size can be compared",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Grad-CAM of the score over the target's region.

    A region without voxels, a class that was not found, gives an empty map.

    Raises:
        ExplainError: the output is not dense.
    """
    if run.logits.ndim < 3:
        msg = f"Seg-Grad-CAM needs a dense output; this network returns {list(run.logits.shape)}: use gradcam"
        raise ExplainError(msg)
    if run.target.region is not None:
        missing = run.target.region.flatten(1).sum(1) == 0
        run.flag("empty", missing, "no voxel of the output was decided for the class")
    return weighted_sum(mean_over_positions(run.gradient), run.activation)
