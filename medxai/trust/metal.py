"""Metal in a CT: it is no reason to refuse a study, but streaks reach far, and evidence may lie on them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medxai.prepare.blocks import block_means
from medxai.study import Volume
from medxai.trust.body import anatomy

#: HU above which nothing but metal lies; enamel and the densest cortex stay below.
METAL_HU = 2500.0
#: Share of the body's voxels that may be metal: 0.1 ml of 20 l, less than one wire of a sternotomy.
LEAST_SHARE = 5e-6
#: What lies this close to the skin is a lead or a clasp on it, in mm.
_SKIN_MM = 6.0
_GRID_MM = 4.0


def metal_share(volume: Volume) -> float:
    """Share of the body's voxels above `METAL_HU`, skin left out; 0 where there is no metal or no body.

    Args:
        volume: CT ``[1, D, H, W]`` in Hounsfield units.
    """
    metal = volume.pixels[0] > METAL_HU
    if volume.modality != "CT" or volume.axes != "DHW" or not metal.any():
        return 0.0
    body = anatomy(volume)
    if body is None:
        return 0.0
    coarse = block_means(body.astype(np.float32), volume.spacing, _GRID_MM)
    # Slices at both ends are no skin.
    depth = ndimage.distance_transform_edt(
        np.pad(coarse.values > 0.5, ((0, 0), (1, 1), (1, 1))), sampling=coarse.spacing
    )
    deep = depth[:, 1:-1, 1:-1] > _SKIN_MM
    share = block_means(metal.astype(np.float32), volume.spacing, _GRID_MM).values
    return float(share[deep].sum(dtype=np.float64)) / max(int(deep.sum()), 1)


def metal(volume: Volume) -> str | None:
    """Say in words how much metal is in the body; None where there is hardly any.

    Args:
        volume: CT ``[1, D, H, W]`` in Hounsfield units.
    """
    share = metal_share(volume)
    if share <= LEAST_SHARE:
        return None
    return f"metal in the body ({share:.3%} of it above {METAL_HU:.0f} HU): streaks may carry evidence"
