"""Masks from other files, brought onto the grid of a study by their place in the patient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medxai.errors import TrustError
from medxai.study import Affine, Volume


def place_mask(mask: Volume, study: Volume, *, label: int | None = None) -> npt.NDArray[np.bool_]:
    """A mask ``[*S]`` bool on the grid of `study`, by nearest neighbour through both affines.

    Args:
        mask: its image; values above 0 count, or those equal to `label`.
        study: the image it belongs to.
        label: one of several structures.

    Raises:
        TrustError: no common place, an image without a place and another size, or not a mask at all.
    """
    values = mask.pixels[0]
    if not np.isfinite(values).all() or len(np.unique(values[:: max(1, len(values) // 16)])) > 64:
        msg = "is not a mask: it holds many different or infinite values"
        raise TrustError(msg)
    region: npt.NDArray[np.bool_] = values > 0 if label is None else np.isclose(values, label)
    if region.shape == study.shape and np.allclose(mask.affine, study.affine, atol=1e-3):
        return region
    if mask.axes != "DHW" or study.axes != "DHW":
        if region.shape == study.shape and not mask.calibrated:
            return region
        msg = f"the mask has {list(region.shape)} positions, the image {list(study.shape)}: they cannot be aligned"
        raise TrustError(msg)
    placed = resample_mask(region, mask.affine, study.affine, study.shape)
    if region.any() and not placed.any():
        msg = "the mask lies outside the image; is it of another study?"
        raise TrustError(msg)
    return placed


def resample_mask(
    region: npt.NDArray[np.bool_], source: Affine, target: Affine, shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Nearest neighbour: is the centre of each voxel of the target grid inside?

    Args:
        region: ``[D, H, W]``.
        source: its affine, index -> LPS mm.
        target: affine of the other grid.
        shape: of the other grid.
    """
    back = np.linalg.inv(source) @ target
    found: npt.NDArray[np.uint8] = ndimage.affine_transform(
        region.astype(np.uint8), back[:3, :3], back[:3, 3], output_shape=shape, order=0, mode="constant", cval=0
    )
    return found.astype(bool)
