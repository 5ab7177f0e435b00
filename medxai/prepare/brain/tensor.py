"""Diffusion tensor through dipy: fractional anisotropy, mean diffusivity and principal directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError
from medxai.prepare.brain.dwi import UNWEIGHTED_B, Dwi

#: Voxels darker than this share of the 98th percentile of the unweighted images are background.
_BACKGROUND = 0.1


@dataclass(frozen=True, eq=False)
class Tensor:
    """Maps of the tensor, ``[D, H, W]``; zero outside the mask.

    Attributes:
        fa: fractional anisotropy, 0 to 1.
        md: mean diffusivity in mm2/s.
        principal: ``[D, H, W, 3]`` unit vectors along the voxel axes ``(d, h, w)``.
        mask: where the tensor was fitted.
    """

    fa: npt.NDArray[np.float32]
    md: npt.NDArray[np.float32]
    principal: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]


def fit_tensor(dwi: Dwi, mask: npt.NDArray[np.bool_] | None = None, largest_b: float = 1500.0) -> Tensor:
    """Weighted least squares of the logarithm of the signal (dipy's TensorModel).

    Args:
        dwi: volumes with their gradients.
        mask: ``[D, H, W]``; None takes what is bright without weighting.
        largest_b: volumes of larger b-values are left out: the tensor does not describe them.

    Raises:
        IngestError: too few directions below `largest_b`, or nothing inside the mask.
    """
    from dipy.reconst.dti import TensorModel

    used = dwi.b <= largest_b
    if int(((dwi.b > UNWEIGHTED_B) & used).sum()) < 6:
        words = f"{int(((dwi.b > UNWEIGHTED_B) & used).sum())} weighted volumes have b up to {largest_b:g} s/mm2"
        raise IngestError(f"{words}; a tensor needs 6 (diffusion.largest_tensor_b)", study=dwi.key)
    inside = foreground(dwi) if mask is None else mask
    if inside.shape != dwi.data.shape[:3] or not inside.any():
        raise IngestError(f"the mask of shape {inside.shape} does not fit or is empty", study=dwi.key)
    values = dwi.data[inside][:, used]
    fitted: Any = TensorModel(gradient_table_of(dwi, used), min_signal=1e-3).fit(values)
    fa, md = np.zeros(inside.shape, np.float32), np.zeros(inside.shape, np.float32)
    principal = np.zeros((*inside.shape, 3), np.float32)
    fa[inside] = np.clip(np.nan_to_num(fitted.fa), 0, 1)
    md[inside] = np.nan_to_num(fitted.md)
    principal[inside] = np.nan_to_num(fitted.evecs[..., 0])
    return Tensor(fa, md, principal, inside)


def foreground(dwi: Dwi) -> npt.NDArray[np.bool_]:
    """Where the mean of the unweighted volumes is bright."""
    plain = dwi.data[..., dwi.b <= UNWEIGHTED_B].mean(-1)
    return np.asarray(plain > _BACKGROUND * np.percentile(plain, 98))


def gradient_table_of(dwi: Dwi, used: npt.NDArray[np.bool_] | None = None) -> Any:
    """Table for dipy of the gradients, along voxel axes."""
    from dipy.core.gradients import gradient_table

    keep = np.ones(len(dwi.b), bool) if used is None else used
    b = np.where(dwi.b <= UNWEIGHTED_B, 0.0, dwi.b)[keep]
    return gradient_table(b, bvecs=dwi.directions[keep], b0_threshold=UNWEIGHTED_B)
