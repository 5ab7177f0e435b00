"""Simulated subjects as a data set of features, and a small network over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from medxai.explain.brain_evidence import BrainEvidence, brain_evidence
from medxai.networks.hierarchical_fusion import HierarchicalFusion
from medxai.prepare.brain.derivatives import Computed, write_dataset, write_subject
from medxai.prepare.brain.image import Image, write_image
from medxai.prepare.brain.scaling import Scaling
from medxai.prepare.brain.subject import MODALITIES, SubjectFeatures
from sample_cases.synthetic_brain import Planted, Simulated, simulate, synthetic_carriers

SMALL = Planted(grid=(10, 12, 10), windows=12, cube=(5, 3, 2, 3), dynamic_windows=(6, 9), samples=200,
                window_samples=40)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Model:
    """A network that nobody has trained, in the form of a bundle."""

    fusion: HierarchicalFusion
    scales: Scaling
    name: str = "untrained"
    version: str = "0"
    sha256: str = "ab" * 32
    labels: tuple[str, ...] = ("control", "patient")
    positive: int = 1
    gamma: float = 1.0
    marker: str = "relative"

    @property
    def layers(self) -> dict[str, str]:
        """Fine ones."""
        return {"encoder": "layer1", "pyramid": "encoders.0"}

    def network(self) -> HierarchicalFusion:
        """In evaluation mode."""
        return self.fusion.eval()

    def scaling(self) -> Scaling:
        """Of its subjects."""
        return self.scales

    def baseline(self) -> dict[str, torch.Tensor]:
        """What the network has for a missing modality."""
        return {name: self.fusion.absent[name].detach()[None] for name in self.fusion.modalities}


def people(count: int = 4, seed: int = 3, planted: Planted = SMALL) -> list[Simulated]:
    """Simulated subjects, every second a patient."""
    return simulate(synthetic_carriers(2), count, seed, planted)


def model_of(cohort: Sequence[Simulated]) -> Model:
    """A network for their arrays."""
    torch.manual_seed(0)
    fusion = HierarchicalFusion(2, channels=8, width=16, depth=1, heads=2, strides=(1, 2, 1))
    return Model(fusion.eval(), Scaling.fit([case.features for case in cohort]))


def write_cohort(
    folder: Path, cohort: Sequence[Simulated], *, space: str = "MNI152NLin6Asym", groups: bool = True,
    without: dict[str, tuple[str, ...]] | None = None,
) -> Path:  # fmt: skip
    """Write features as `medxai brain features` does; `without` names the modalities that subjects lack."""
    source = folder.parent / f"{folder.name}_source"
    source.mkdir(parents=True, exist_ok=True)
    rows = [f"{c.features.subject}\t{'patient' if c.label else 'control'}" for c in cohort]
    if groups:
        (source / "participants.tsv").write_text("\n".join(["participant_id\tgroup", *rows]) + "\n")
    write_dataset(folder, source)
    for case in cohort:
        f = case.features
        gone = (without or {}).get(f.subject, ())
        found = Computed(
            subject=f.subject, entities=f"space-{space}" if space else "", space=space,
            maps={} if "alff" in gone or f.alff is None else {"alff": f.alff}, affine=f.affine,
            sfc=None if "sfc" in gone else f.sfc, dfc=None if "dfc" in gone else f.dfc,
            starts=tuple(float(n) for n in range(0 if f.dfc is None else f.dfc.shape[-1])),
            regions=f.regions, networks=f.networks, atlas="synthetic",
            structural={} if "fa" in gone or f.fa is None else {"fa": f.fa}, structural_regions=f.fa_regions,
            structural_atlas="synthetic",
        )  # fmt: skip
        write_subject(folder, found, "alff", "fa", "11" * 32, "22" * 32)
    return folder


def atlas_labels(features: SubjectFeatures) -> np.ndarray:
    """``[D, H, W]`` labels 1..N: boxes of the grid of the ALFF map, cut along all axes."""
    assert features.alff is not None
    d, h, w = features.alff.shape
    grid = np.indices((d, h, w))
    cell = (grid[0] * 4 // d) * 25 + (grid[1] * 5 // h) * 5 + grid[2] * 5 // w
    count = len(features.regions)
    return (cell * count // 100 + 1).astype(np.int32)


def write_atlas(folder: Path, features: SubjectFeatures) -> tuple[Path, Path]:
    """Atlas image and table of a subject's regions, on the grid of its ALFF map."""
    folder.mkdir(parents=True, exist_ok=True)
    assert features.affine is not None
    image = write_image(folder / "atlas.nii.gz", Image(atlas_labels(features), features.affine), "boxes", template=True)
    table = folder / "atlas.tsv"
    rows = [f"{n}\t{name}" for n, name in enumerate(features.regions, 1)]
    table.write_text("\n".join(["index\tname", *rows]) + "\n")
    return image, table


def planted_evidence(features: SubjectFeatures, model: Model, node: int = 7, other: int = 31) -> BrainEvidence:
    """Evidence whose maps are zero but for a known voxel block, one edge and its nodes, and two windows."""
    found = brain_evidence(model, features)
    maps = {name: np.full_like(values, 0.01) for name, values in found.maps.items()}
    labels = atlas_labels(features)
    maps["alff"][labels == node + 1] = 1.0
    for name in ("sfc", "fa"):
        maps[name][node, other] = maps[name][other, node] = 1.0
    maps["dfc"][node, other, 4:6] = maps["dfc"][other, node, 4:6] = 1.0
    return replace(found, maps={name: maps[name] for name in MODALITIES})
