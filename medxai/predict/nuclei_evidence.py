"""LayerCAM of the four encoder blocks for nuclei, as sharp as the blocks allow.

Ours in it, each chosen on development fields: the score is taken over small discs about the points, since a single
pixel's gradient reaches little beyond itself; maps of four quarter turns are averaged, whose grids of cells lie
differently, which makes them finer than one grid of a cell for 4 pixels; and every map is scaled within the cell of the
nearest point, which holds one nucleus, so that a dark nucleus does not set the scale for a pale one. Scaling is the
``tanh(2 M / max M)`` that LayerCAM's authors use for shallow layers (Jiang et al. 2021).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from medxai.networks.nuclei_unet import NucleiUNet, layer_cams
from medxai.predict.nuclei_blocks import discs

Maps = npt.NDArray[np.float32]
Cells = npt.NDArray[np.int32]
#: Radius of the discs that are scored, in radii of a nucleus.
SCORED = 0.5
_GAMMA = 2.0


def block_cams(network: NucleiUNet, x: Tensor, points: npt.NDArray[Any]) -> Tensor:
    """Maps ``[4, H, W]``, not scaled, for the sum of the foreground logits about the points.

    The mean over points, as the method has it, is the same after scaling; sums of tiles of a field can be put together.
    The network must be in eval mode; nothing of it changes.

    Args:
        network: in eval mode.
        x: ``[3, H, W]`` in 0..1, sides multiples of 32.
        points: ``[n, 2]`` rows and columns, also beyond the borders.
    """
    with torch.inference_mode(False), torch.enable_grad():
        where = torch.from_numpy(discs((x.shape[1], x.shape[2]), points, SCORED * network.radius))
        total = torch.zeros(4, *x.shape[1:])
        for turns in range(4):
            turned = torch.rot90(x, turns, (1, 2))[None].clone().requires_grad_()
            out = network.outputs(turned)
            score = (out.segmentation[0, 1] * torch.rot90(where, turns, (0, 1))).sum()
            total += torch.rot90(layer_cams(out.blocks, score, turned.shape[2:])[0], -turns, (1, 2))
        return total / 4


def nearest_point(shape: tuple[int, int], points: npt.NDArray[Any]) -> Cells:
    """``[H, W]`` index of the nearest point ``[n, 2]``, from 0: Voronoi cells; all 0 without points."""
    at = np.full(shape, -1, np.int32)
    places = np.rint(np.asarray(points, float).reshape(-1, 2)).astype(int)
    at[tuple(places.T)] = np.arange(len(places))
    if not len(places):
        return np.zeros(shape, np.int32)
    nearest = ndimage.distance_transform_edt(at < 0, return_distances=False, return_indices=True)
    return np.asarray(at[tuple(nearest)])


def scaled_by_cell(cams: Maps, cells: Cells) -> Maps:
    """Every map ``[L, H, W]`` from 0 to 1 within every cell ``[H, W]``; 0 where a map is constant in a cell."""
    numbers = np.arange(int(cells.max()) + 1)
    scaled = np.zeros(cams.shape, np.float32)
    for number, cam in enumerate(cams):
        low = np.asarray(ndimage.minimum(cam, cells, numbers))[cells]
        high = np.asarray(ndimage.maximum(cam, cells, numbers))[cells]
        share = np.divide(cam - low, high - low, out=np.zeros_like(cam), where=high > low)
        scaled[number] = np.tanh(_GAMMA * share) / np.tanh(_GAMMA)
    return scaled
