"""One explained subject with all that its tables, pictures, objects and page are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.explain.brain_evidence import BrainEvidence
from medxai.explain.connectivity_map import Edge, top_edges
from medxai.explain.region_ranking import Ranked, ranking, region_means, strengths
from medxai.prepare.brain.atlas import Atlas
from medxai.prepare.brain.subject import SubjectFeatures

#: How people call the modalities.
TITLES = {"alff": "ALFF", "sfc": "Static connectivity", "dfc": "Dynamic connectivity", "fa": "Structural connectivity"}
#: The unit of a matrix's own values.
UNITS = {"sfc": "Fisher z", "dfc": "Fisher z, mean over windows", "fa": "weight"}


@dataclass(frozen=True, eq=False)
class SubjectView:
    """One explained subject.

    Attributes:
        features: what the network saw.
        evidence: what it said.
        model: name and version of the bundle.
        model_sha256: of the bundle.
        config_sha256: of the settings.
        inputs_sha256: of the features.
        template: the features lie in a template's space and not in the scanner's.
        percent: of the edges that are shown.
        atlas: image of the regions, in the space of the features; None where none was given.
        labels: ``[D, H, W]`` of the atlas on the grid of the ALFF map, 0 or n for the nth region.
    """

    features: SubjectFeatures
    evidence: BrainEvidence
    model: str
    model_sha256: str
    config_sha256: str
    inputs_sha256: str
    template: bool
    percent: float
    atlas: Atlas | None = None
    labels: npt.NDArray[np.int32] | None = None

    @property
    def matrices(self) -> tuple[str, ...]:
        """Matrices that have a map."""
        return tuple(name for name in ("sfc", "dfc", "fa") if name in self.evidence.maps)

    @property
    def space(self) -> str:
        """Where the features lie, in words."""
        return "template space" if self.template else "the subject's own (scanner) space"

    def regions(self, modality: str) -> tuple[str, ...]:
        """Names of the nodes of a matrix, or of the atlas."""
        return self.features.fa_regions if modality == "fa" else self.features.regions

    def networks(self, modality: str) -> tuple[str, ...]:
        """Networks of them; "" for none."""
        if modality == "fa":
            return structural_networks(self.features)
        return self.features.networks or ("",) * len(self.features.regions)

    def matrix(self, modality: str) -> npt.NDArray[np.float64]:
        """Map ``[N, N]`` of a matrix, of the dynamic one its mean over the windows."""
        values = np.asarray(self.evidence.maps[modality], dtype=float)
        return values.mean(-1) if values.ndim == 3 else values

    def connectivity(self, modality: str) -> npt.NDArray[np.float64]:
        """The matrix itself, likewise."""
        values = np.asarray(getattr(self.features, modality), dtype=float)
        return values.mean(-1) if values.ndim == 3 else values

    def edges(self, modality: str) -> tuple[Edge, ...]:
        """Most important edges with the sign of the connectivity."""
        return top_edges(self.matrix(modality), self.percent, self.connectivity(modality))

    def ranked(self) -> Mapping[str, tuple[Ranked, ...]]:
        """Regions by map, the strongest first; of ALFF only where an atlas was given."""
        found = {}
        if self.labels is not None and "alff" in self.evidence.maps:
            means = region_means(self.evidence.maps["alff"], self.labels, len(self.features.regions))
            found["alff"] = ranking(means, self.features.regions, self.networks("alff"), "alff")
        for name, values in strengths(self.evidence.maps).items():
            found[name] = ranking(values, self.regions(name), self.networks(name), name)
        return found


def structural_networks(features: SubjectFeatures) -> tuple[str, ...]:
    """Networks of the regions of structural connectivity: of regions of that name, or out of the name itself."""
    from medxai.prepare.brain.networks import network_of_name

    known = dict(zip(features.regions, features.networks, strict=False))
    return tuple(known.get(name) or network_of_name(name) for name in features.fa_regions)
