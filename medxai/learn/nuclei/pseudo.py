"""Dynamic CAM selection (DoNuSeg): for every field the block whose map agrees best with the points becomes its label.

Maps are averaged over the refreshes; a label is kept as it was where no block agrees well enough, or where the new one
would grow beyond a cap, so that the network cannot persuade itself that everything is a nucleus.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from medxai.learn.nuclei.data import PointField
from medxai.learn.nuclei.labels import Ints, Labels
from medxai.learn.nuclei.settings import SelectionSettings
from medxai.networks.nuclei_unet import STRIDES, NucleiUNet
from medxai.predict.nuclei_blocks import IGNORED, Floats, agreement, best_block
from medxai.predict.nuclei_evidence import block_cams, nearest_point, scaled_by_cell

Maps = npt.NDArray[np.float32]
#: Share of the best agreement that counts as equal to it.
NEARLY = 0.97


@dataclass(eq=False)
class Choice:
    """What a field is learnt from at the moment.

    Attributes:
        maps: averaged maps of the four blocks ``[4, H, W]``; None before the first refresh.
        label: P ``[H, W]``, at first M.
        cam: map of the chosen block ``[H, W]``; None before the first choice.
        block: its index; None before.
        alpha: agreement of the four blocks; None before the first refresh.
        kept: why the label was not renewed at the last refresh (``guard`` or ``cap``), or "".
        theta: threshold of the chosen map; None before.
    """

    maps: Maps | None
    label: Ints
    cam: Maps | None = None
    block: int | None = None
    alpha: Floats | None = None
    kept: str = ""
    theta: float | None = None


def field_cams(network: NucleiUNet, field: PointField) -> Maps:
    """Maps of the four blocks ``[4, H, W]``, from 0 to 1 about every point.

    The network is used in eval mode and comes back as it was: no weight, no statistic, no mode changes.
    """
    training = network.training
    network.eval()
    try:
        x = torch.from_numpy(field.pixels).movedim(2, 0).float() / 255
        height, width = x.shape[1:]
        x = functional.pad(x[None], (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]), mode="replicate")[0]
        cams = block_cams(network, x, field.points)[:, :height, :width].numpy()
    finally:
        network.train(training)
    return scaled_by_cell(cams, nearest_point((height, width), field.points))


def refresh(choice: Choice, cams: Maps, labels: Labels, how: SelectionSettings, *, fixed: int | None = None) -> Choice:
    """The next choice of a field.

    Args:
        choice: the last one.
        cams: of the network as it is now ``[4, H, W]``, each from 0 to 1.
        labels: from the points.
        how: thresholds.
        fixed: index of the block to take whatever agrees best.
    """
    maps = cams if choice.maps is None else how.average * choice.maps + (1 - how.average) * cams
    maps = maps.astype(np.float32)
    alpha, thetas = best_thresholds(maps, labels, how)
    block = best_block(alpha) if fixed is None else fixed
    new = pseudo_label(maps[block], labels, float(thetas[block]), how.band)
    kept = ""
    if alpha[block] < how.guard:
        kept = "guard"
    elif (new == 1).sum() > how.cap * (labels.main == 1).sum():
        kept = "cap"
    if kept:
        return Choice(maps, choice.label, choice.cam, choice.block, alpha, kept, choice.theta)
    return Choice(maps, new, maps[block], block, alpha, "", float(thetas[block]))


def best_thresholds(maps: Maps, labels: Labels, how: SelectionSettings) -> tuple[Floats, Floats]:
    """Agreement of every map ``[L]`` at the threshold where it agrees best, and that threshold ``[L]``.

    Maps grow narrower while a network learns, so that one threshold for all would move the outlines; this one needs
    the points alone. M says nothing between its nuclei and its tissue, so that many thresholds agree nearly as well:
    the mean of those within `NEARLY` of the best is taken.
    """
    values = np.stack([agreement(maps > theta, labels.main) for theta in how.thetas])
    near = values >= NEARLY * values.max(0)
    return values.max(0), (near * np.array(how.thetas)[:, None]).sum(0) / near.sum(0)


def pseudo_label(cam: Maps, labels: Labels, theta: float, band: tuple[float, float]) -> Ints:
    """P: what map and points agree on, and what the map says where the points say nothing; the rest is ignored.

    The map is nucleus above the threshold and tissue below. Borders of cells are tissue, seeds nucleus. The publication
    takes the map alone; where it contradicts the label from points one of them is wrong, and neither is taken.

    Args:
        cam: ``[H, W]``.
        labels: from the points.
        theta: threshold.
        band: shares of the threshold between which a pixel is ignored.
    """
    label = np.where(cam > theta, 1, 0).astype(np.int8)
    label[(cam > band[0] * theta) & (cam < band[1] * theta)] = IGNORED
    known = labels.main
    agreed = np.where((label == known) | (label == IGNORED), known, IGNORED)
    label = np.where(known == IGNORED, label, agreed).astype(np.int8)
    label[labels.borders] = 0
    label[labels.seeds] = 1
    return label
