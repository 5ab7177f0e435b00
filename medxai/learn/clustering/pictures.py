"""What a pathologist sees of a clustering: typical and doubtful tiles, why, and where a tile lies among others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from medxai.explain.cluster_map import ClusterMaps, cluster_maps, placed
from medxai.export.colours import blend
from medxai.files import atomic_path
from medxai.learn.clustering.autoencoder import embed
from medxai.learn.tiles import Pixels

if TYPE_CHECKING:
    from medxai.networks.dceac import Dceac

#: Shown share of the maximum of a map (García et al. 2021 show what is above half).
SHOWN = 0.5
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Tiles of one cluster as indices.

    Attributes:
        nearest: up to 9, closest to the centroid first.
        doubtful: up to 9, least sure first.
    """

    nearest: list[int]
    doubtful: list[int]


def choose(maps: ClusterMaps, cluster: int, count: int = 9) -> Chosen:
    """Tiles of a cluster that show what it looks like, and those it is least sure of."""
    mine = torch.nonzero(maps.cluster == cluster).flatten()
    near = mine[maps.distance[mine].argsort()][:count]
    doubtful = mine[maps.confidence[mine].argsort()][:count]
    return Chosen(near.tolist(), doubtful.tolist())


def draw(network: Dceac, pixels: Pixels, x: torch.Tensor, titles: Sequence[str], target: Path) -> Path:
    """Write one page as PNG: a row for each cluster, below them all tiles by their embedding.

    Args:
        network: refined.
        pixels: tiles ``[N, H, W, 3]`` as they were.
        x: the same as input.
        titles: of the clusters.
        target: the file.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    maps = cluster_maps(network, x)
    chosen = [choose(maps, cluster) for cluster in range(len(titles))]
    k = len(titles)
    figure = plt.figure(figsize=(15, 3.1 * k + 5), layout="constrained")
    upper, lower = np.asarray(figure.subfigures(2, 1, height_ratios=(3.1 * k, 5))).tolist()
    axes = upper.subplots(k, 6, squeeze=False)
    for row, (title, tiles) in enumerate(zip(titles, chosen, strict=True)):
        _row(axes[row], title, tiles, maps, pixels, first=row == 0)
    _plane(lower, network, x, maps, [tiles.nearest[0] if tiles.nearest else None for tiles in chosen], titles)
    with atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=80, metadata={"Software": None})
    plt.close(figure)
    return target


def montage(pixels: Pixels, rows: Sequence[int], side: int = 3) -> Pixels:
    """Tiles side by side on white, ``[side * (H + 4), side * (W + 4), 3]``."""
    height, width = pixels.shape[1:3]
    sheet = np.full((side * (height + 4), side * (width + 4), 3), 255, np.uint8)
    for place, tile in enumerate(rows[: side * side]):
        top, left = (place // side) * (height + 4), (place % side) * (width + 4)
        sheet[top : top + height, left : left + width] = pixels[tile]
    return sheet


def _row(axes: Any, title: str, tiles: Chosen, maps: ClusterMaps, pixels: Pixels, *, first: bool) -> None:
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        for side in axis.spines.values():
            side.set_visible(False)
    axes[0].set_ylabel(title, fontsize=11)
    if not tiles.nearest:
        axes[0].text(0.5, 0.5, "no tile", ha="center", transform=axes[0].transAxes)
        return
    tile = tiles.nearest[0]
    evidence = maps.evidence()[tile].numpy()
    shown = np.where(evidence > SHOWN, evidence, 0).astype(np.float32)
    axes[0].imshow(montage(pixels, tiles.nearest))
    axes[1].imshow(montage(pixels, tiles.doubtful))
    axes[2].imshow(pixels[tile])
    axes[3].imshow(blend(pixels[tile], shown, 0.8))
    if maps.attention is not None:
        large = placed(maps.attention[tile : tile + 1], pixels.shape[1:3])[0].numpy()
        axes[4].imshow(large, cmap="viridis", vmin=0, vmax=1)
    axes[5].imshow(maps.error[tile].numpy(), cmap="magma", vmin=0)
    against = int(maps.runner_up[tile])
    axes[2].set_xlabel(f"q {float(maps.confidence[tile]):.2f}, distance {float(maps.distance[tile]):.2f}")
    axes[3].set_xlabel(f"against cluster {against + 1}")
    if maps.attention is not None:
        axes[4].set_xlabel(f"{float(maps.attention[tile].min()):.2f} to {float(maps.attention[tile].max()):.2f}")
    if first:
        names = ("9 nearest", "9 most doubtful", "nearest tile", "evidence above half", "attention, 0 to 1", "error")
        for axis, name in zip(axes, names, strict=True):
            axis.set_title(name, fontsize=11)


def _plane(
    figure: Any, network: Dceac, x: torch.Tensor, maps: ClusterMaps, marked: list[int | None], titles: Sequence[str]
) -> None:
    """All tiles on the two main axes of their embeddings, with centroids and the tiles whose maps are shown."""
    from sklearn.decomposition import PCA

    z = embed(network, x).numpy()
    plane = PCA(2).fit(z)
    points, centres = plane.transform(z), plane.transform(network.centroids.detach().numpy())
    axis = figure.subplots()
    for cluster, title in enumerate(titles):
        mine = maps.cluster.numpy() == cluster
        colour = f"C{cluster}"
        axis.scatter(*points[mine].T, s=14, color=colour, alpha=0.6, label=f"{title} ({int(mine.sum())} tiles)")
        axis.scatter(*centres[cluster], marker="X", s=130, color=colour, edgecolor="black")
        tile = marked[cluster]
        if tile is not None:
            axis.scatter(*points[tile], s=170, facecolor="none", edgecolor="black", linewidth=1.6)
    far = maps.far.numpy()
    if far.any():
        axis.scatter(*points[far].T, marker="x", s=60, color="black", label=f"far from all clusters ({int(far.sum())})")
    explained = plane.explained_variance_ratio_
    axis.set_xlabel(f"first axis of the embedding ({explained[0]:.0%} of the variance)")
    axis.set_ylabel(f"second ({explained[1]:.0%})")
    axis.set_title("cross: centroid; ring: tile shown above", fontsize=10)
    axis.legend(loc="best", fontsize=9)
