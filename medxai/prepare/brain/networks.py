"""Functional networks of an atlas's regions: from their names, a column of a table, or overlap with a network image."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

#: Names of Yeo's seven networks in the order of their labels 1..7 (Yeo et al. 2011).
YEO7 = ("Visual", "Somatomotor", "DorsalAttn", "VentralAttn", "Limbic", "Frontoparietal", "Default")
#: How Schaefer's atlas and others shorten them.
_SHORT = {
    "vis": "Visual",
    "visual": "Visual",
    "sommot": "Somatomotor",
    "somatomotor": "Somatomotor",
    "sensorimotor": "Somatomotor",
    "dorsattn": "DorsalAttn",
    "dorsalattn": "DorsalAttn",
    "dorsalattention": "DorsalAttn",
    "salventattn": "VentralAttn",
    "ventralattn": "VentralAttn",
    "ventralattention": "VentralAttn",
    "limbic": "Limbic",
    "cont": "Frontoparietal",
    "control": "Frontoparietal",
    "frontoparietal": "Frontoparietal",
    "default": "Default",
    "defaultmode": "Default",
}
_NAME = re.compile(r"(?:^|_)(7|17)Networks_(?:[LR]H_)?([A-Za-z]+)")
#: Share of a region's voxels that lie in some network, below which it belongs to none.
_LEAST_OVERLAP = 0.5


def network_of_name(region: str) -> str:
    """Network in a region's name, as ``7Networks_LH_Vis_1`` has it; "" where it has none.

    The seven get the names of `YEO7`; of the seventeen the name stays (``DefaultA``).
    """
    found = _NAME.search(region)
    if not found:
        return ""
    count, word = found.groups()
    return canonical(word) if count == "7" else word


def canonical(name: str) -> str:
    """One name of `YEO7` for its common spellings; other names as they are, "" for none."""
    text = name.strip()
    if text.isdigit():
        return YEO7[int(text) - 1] if 1 <= int(text) <= 7 else ""
    if text.lower() in {"", "none", "n/a", "nan", "background", "freesurfer_defined_medial_wall"}:
        return ""
    return _SHORT.get(re.sub(r"[^a-z]", "", text.lower()), text)


def networks_by_overlap(
    regions: npt.NDArray[np.integer], labels: tuple[int, ...], networks: npt.NDArray[np.integer]
) -> tuple[str, ...]:
    """Network that most voxels of each region lie in; "" where under half of them lie in any.

    Args:
        regions: ``[D, H, W]`` labels.
        labels: of the regions, in order.
        networks: labels of networks on the same grid, 0 for none: 1..7, or 1..17, which become ``17Networks_n``.
    """
    seven = int(networks.max(initial=0)) <= 7
    found = []
    for label in labels:
        inside = networks[regions == label]
        counts = np.bincount(inside[inside > 0].astype(np.int64)) if len(inside) else np.zeros(0)
        if counts.sum() == 0 or counts.sum() < _LEAST_OVERLAP * len(inside):
            found.append("")
            continue
        best = int(counts.argmax())
        found.append(YEO7[best - 1] if seven else f"17Networks_{best}")
    return tuple(found)
