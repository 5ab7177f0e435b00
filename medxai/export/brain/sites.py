"""Standard codes of regions whose name says honestly where they lie; the others are the brain, and keep their name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

#: Structures by the beginning of a region's name in lower-case letters (AAL, FreeSurfer, Harvard-Oxford).
_STRUCTURES = {
    "hippocampus": "Hippocampus", "amygdala": "Amygdala", "thalamus": "Thalamus", "putamen": "Putamen",
    "caudate": "CaudateNucleus", "pallidum": "GlobusPallidus", "accumbens": "NucleusAccumbens", "insula": "Insula",
    "cerebellumcortex": "CerebellarCortex", "cerebellum": "Cerebellum", "cerebelum": "Cerebellum",
    "brainstem": "BrainStem",
}  # fmt: skip
#: Likewise, regions that lie in one lobe (AAL): the lobe. Those that reach into two, such as the fusiform gyrus, are
#: left out, and so is the cingulate cortex: the code "Cingulum" is the white matter below it.
_LOBES = {
    "FrontalLobe": ("frontal", "precentral", "rolandicoper", "suppmotorarea", "rectus", "superiorfrontal",
                    "rostralmiddlefrontal", "caudalmiddlefrontal", "parsopercularis", "parstriangularis",
                    "parsorbitalis", "medialorbitofrontal", "lateralorbitofrontal"),
    "ParietalLobe": ("parietal", "postcentral", "supramarginal", "angular", "precuneus", "superiorparietal",
                     "inferiorparietal"),
    "OccipitalLobe": ("occipital", "calcarine", "cuneus", "lingual", "lateraloccipital", "pericalcarine"),
    "TemporalLobe": ("temporal", "heschl", "superiortemporal", "middletemporal", "inferiortemporal", "temporalpole",
                     "transversetemporal"),
}  # fmt: skip
_SIDE = re.compile(r"(?i)(?:^|[_\-. ])(left|right|lh|rh|l|r)(?:$|[_\-. ])")


def site(region: str) -> tuple[Code, bool]:
    """Code (SNOMED CT) of where a region lies, and whether it says more than "brain"."""
    from pydicom.sr.codedict import codes

    # The side and what stands before it in the names of FreeSurfer (``ctx-lh-precuneus``) are no part of the name.
    text = re.sub(r"(?i)^ctx[_\-]", "", region)
    text = re.sub(r"[^a-z]", "", _SIDE.sub("_", text).lower())
    for start, name in sorted(_STRUCTURES.items(), key=lambda item: -len(item[0])):
        if text.startswith(start):
            return getattr(codes.SCT, name), True
    two = "fusiform" in text or sum(lobe in text for lobe in ("frontal", "parietal", "occipital", "temporal")) > 1
    for name, starts in _LOBES.items():
        if text.startswith(starts) and not two:
            return getattr(codes.SCT, name), True
    return codes.SCT.Brain, False


def side(region: str) -> str:
    """``L`` or ``R`` where the name says it, else empty."""
    found = _SIDE.search(region)
    return found.group(1)[0].upper() if found else ""


def side_code(region: str) -> Code | None:
    """The same as a code (CID 244)."""
    from pydicom.sr.codedict import codes

    return {"L": codes.SCT.Left, "R": codes.SCT.Right}.get(side(region))
