"""Labels from points: cells about them, clusters of colour and distance, and how likely a pixel is a middle.

Values are 1 nucleus, 0 tissue and `medxai.predict.nuclei_blocks.IGNORED`. The recipe is that of Qu et al. (TMI 2020),
written anew; its lengths, for nuclei of a radius of 11 pixels at 40x, follow the radius.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medxai.learn.nuclei.data import Points
from medxai.predict.nuclei_blocks import IGNORED, discs
from medxai.predict.nuclei_evidence import Cells, nearest_point
from medxai.predict.nuclei_objects import skimage

Ints = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]
#: Radius in pixels for which Qu's lengths are.
QU_RADIUS = 11.0


@dataclass(frozen=True, eq=False)
class Labels:
    """What the points of a field say, all ``[H, W]``.

    Attributes:
        voronoi: borders of cells are tissue, discs about points nucleus, the rest ignored.
        main: M, nuclei of the cluster label and discs about points; the third cluster ignored.
        borders: of cells, less the discs.
        seeds: discs about points.
        heat: 1 at a point, falling as a Gaussian.
    """

    voronoi: Ints
    main: Ints
    borders: Bools
    seeds: Bools
    heat: npt.NDArray[np.float32]


def make_labels(pixels: npt.NDArray[np.uint8], points: Points, radius: float) -> Labels:
    """All labels of ``pixels [H, W, 3]`` from its points.

    Args:
        pixels: RGB.
        points: ``[n, 2]``, n at least 1.
        radius: of nuclei in pixels.
    """
    shape = (pixels.shape[0], pixels.shape[1])
    seeds = discs(shape, points, _scaled(2, radius))
    cells = nearest_point(shape, points)
    borders = cell_borders(cells) & ~seeds
    voronoi = np.full(shape, IGNORED, np.int8)
    voronoi[borders], voronoi[seeds] = 0, 1
    main = cluster_label(pixels, points, cells, radius)
    main[seeds] = 1
    return Labels(voronoi, main, borders, seeds, heat(shape, points, radius))


def cell_borders(cells: Cells) -> Bools:
    """``[H, W]`` pixels of a cell beside another one, closed by a cross."""
    cross = ndimage.generate_binary_structure(2, 1)
    low, high = ndimage.grey_erosion(cells, footprint=cross), ndimage.grey_dilation(cells, footprint=cross)
    edges = low != high
    return np.asarray(ndimage.binary_closing(np.pad(edges, 1, mode="edge"), cross)[1:-1, 1:-1] | edges)


def partition(pixels: npt.NDArray[np.uint8], points: Points, radius: float) -> Ints:
    """Three clusters ``[H, W]`` of colour and distance: 1 nucleus, 0 tissue, the third ignored.

    Most points lie in the cluster of nuclei; of the others, tissue is what lies least about points, and of two that do
    not lie there at all the farther one.
    """
    from sklearn.cluster import KMeans

    shape = (pixels.shape[0], pixels.shape[1])
    at = discs(shape, points, 0)
    distance = np.minimum(ndimage.distance_transform_edt(~at) * QU_RADIUS / radius, 20)
    features = np.concatenate([pixels.reshape(-1, 3) / 10.0, distance.reshape(-1, 1)], 1)
    clusters = KMeans(3, n_init=3, random_state=0).fit_predict(features).reshape(shape)
    nucleus = int(np.bincount(clusters[at], minlength=3).argmax())
    near = np.bincount(clusters[discs(shape, points, _scaled(5, radius))], minlength=3)
    far = [float(distance[clusters == number].mean()) for number in range(3)]
    tissue = min((number for number in range(3) if number != nucleus), key=lambda number: (near[number], -far[number]))
    found = np.full(shape, IGNORED, np.int8)
    found[clusters == nucleus], found[clusters == tissue] = 1, 0
    return found


def cluster_label(pixels: npt.NDArray[np.uint8], points: Points, cells: Cells, radius: float) -> Ints:
    """The clusters, cleaned: specks dropped, nuclei closed and filled within their cells, tissue away from them."""
    found = partition(pixels, points, radius)
    nuclei = _refined(_without_specks(found == 1, 30 * (radius / QU_RADIUS) ** 2), cells, radius)
    shape = (pixels.shape[0], pixels.shape[1])
    label = np.full(shape, IGNORED, np.int8)
    label[(found == 0) & ~nuclei & ~discs(shape, points, _scaled(10, radius))] = 0
    label[nuclei] = 1
    return label


def heat(shape: tuple[int, int], points: Points, radius: float) -> npt.NDArray[np.float32]:
    """``max_i exp(-|x - p_i|^2 / 2 sigma^2)`` with sigma a third of the radius, ``[H, W]``."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    squares = ((rows - points[:, 0, None, None]) ** 2 + (columns - points[:, 1, None, None]) ** 2).min(0)
    return np.asarray(np.exp(-squares / (2 * (radius / 3) ** 2)), np.float32)


def _scaled(pixels: float, radius: float) -> int:
    return max(1, round(pixels * radius / QU_RADIUS))


def _without_specks(mask: Bools, least: float) -> Bools:
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return np.asarray(sizes[parts] >= least)


def _refined(nuclei: Bools, cells: Cells, radius: float) -> Bools:
    """In every cell, widened a little: dilated, filled, eroded by more."""
    disk: Any = skimage("morphology").disk
    margin, wide = _scaled(2, radius), _scaled(5, radius)
    narrow = wide + _scaled(2, radius)  # 7 at Qu's radius; what is lost on balance must not be lost in rounding
    found = np.zeros_like(nuclei)
    for number, box in enumerate(ndimage.find_objects(cells + 1)):
        if box is None:
            continue
        more = margin + wide
        around = tuple(slice(max(0, side.start - more), side.stop + more) for side in box)
        mine = ndimage.binary_dilation(cells[around] == number, disk(margin))
        grown = ndimage.binary_fill_holes(ndimage.binary_dilation(nuclei[around] & mine, disk(wide)))
        found[around] |= ndimage.binary_erosion(grown, disk(narrow), border_value=1) & mine
    return found
