"""Simulated subjects as a data set of features, and a small network over them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from medxai.explain.brain_evidence import BrainEvidence, brain_evidence
from medxai.networks.hierarchical_fusion import HierarchicalFusion
from medxai.predict.bundle import AllowList, bundle_sha256
from medxai.predict.fusion_bundle import FusionBundle, load_fusion
from medxai.prepare.brain.derivatives import Computed, write_dataset, write_subject
from medxai.prepare.brain.image import Image, write_image
from medxai.prepare.brain.onto import resampled
from medxai.prepare.brain.scaling import Scaling
from medxai.prepare.brain.subject import MODALITIES, SubjectFeatures
from sample_cases.synthetic_brain import Planted, Simulated, simulate, synthetic_carriers
from tests.export import build

SMALL = Planted(grid=(10, 12, 10), windows=12, cube=(5, 3, 2, 3), dynamic_windows=(6, 9), samples=200,
                window_samples=40)  # fmt: skip


def people(count: int = 4, seed: int = 3, planted: Planted = SMALL) -> list[Simulated]:
    """Simulated subjects, every second a patient."""
    return simulate(synthetic_carriers(2), count, seed, planted)


def fewer(cohort: Sequence[Simulated], regions: int) -> list[Simulated]:
    """The same subjects over every so manieth region, for tests that ask a network often."""
    chosen = np.linspace(0, len(cohort[0].features.regions) - 1, regions).round().astype(int)
    found = []
    for case in cohort:
        f = case.features
        assert f.sfc is not None
        assert f.dfc is not None
        assert f.fa is not None
        names = tuple(f.regions[i] for i in chosen)
        groups = tuple("Front" if f.networks[i] in ("Vis", "SomMot", "DorsAttn") else "Back" for i in chosen)
        less = replace(f, sfc=f.sfc[chosen][:, chosen], dfc=f.dfc[chosen][:, chosen], fa=f.fa[chosen][:, chosen],
                       regions=names, networks=groups, fa_regions=names)  # fmt: skip
        found.append(replace(case, features=less))
    return found


def write_bundle(folder: Path, cohort: Sequence[Simulated], name: str = "untrained") -> tuple[Path, Path]:
    """A bundle of a network for the arrays of a cohort, which nobody has trained, and an allow-list with it."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    options = {"num_classes": 2, "channels": 8, "width": 16, "depth": 1, "heads": 2, "strides": [1, 2, 1]}
    network = HierarchicalFusion(**options).eval()
    first = cohort[0].features
    metadata = {
        "version": "0.1.0", "monai_version": "1.6.1", "pytorch_version": "2.13.0", "task": "test",
        "description": "test", "authors": "test", "copyright": "test", "data_source": "simulated",
        "intended_use": "test",
        "medxai_fusion": {
            "labels": ["control", "patient"], "positive": "patient", "regions": first.regions,
            "networks": first.networks, "fa_regions": first.fa_regions, "encoder": "layer1", "pyramid": "encoders.0",
            "licence": "Apache-2.0", "caution": "untrained",
        },
    }  # fmt: skip
    path = folder / name
    (path / "configs").mkdir(parents=True)
    (path / "models").mkdir()
    (path / "configs" / "metadata.json").write_text(json.dumps(metadata))
    definition = {"_target_": "medxai.networks.hierarchical_fusion.HierarchicalFusion", **options}
    (path / "configs" / "inference.json").write_text(json.dumps({"network_def": definition}))
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, path / "models" / "model.safetensors")
    Scaling.fit([case.features for case in cohort]).write(path / "models" / "scaling.safetensors")
    mean = {name: network.absent[name].detach()[None].contiguous() for name in network.modalities}
    save_file(mean, path / "models" / "baseline.safetensors")
    inputs, _ = Scaling.read(path / "models" / "scaling.safetensors").inputs([case.features for case in cohort])
    healthy = {name: array.mean(0, keepdim=True) for name, array in inputs.items()}
    save_file(healthy, path / "models" / "reference.safetensors")
    allow = folder / "allow.json"
    allow.write_text(json.dumps({name: [bundle_sha256(path)]}))
    return path, allow


def load(path: Path, allow: Path) -> FusionBundle:
    """The bundle, its network in memory."""
    return load_fusion(path, AllowList.read(allow))


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


def planted_evidence(features: SubjectFeatures, model: FusionBundle, node: int = 31, other: int = 33) -> BrainEvidence:
    """Evidence whose maps are faint but for a known voxel block, one edge and its nodes, and two windows."""
    found = brain_evidence(model, features)
    maps = {name: np.full_like(values, 0.01) for name, values in found.maps.items()}
    labels = atlas_labels(features)
    maps["alff"][labels == node + 1] = 1.0
    maps["alff"][features.alff == 0] = 0.0
    for name in ("sfc", "fa"):
        maps[name][node, other] = maps[name][other, node] = 1.0
    maps["dfc"][node, other, 4:6] = maps["dfc"][other, node, 4:6] = 1.0
    return replace(found, maps={name: maps[name] for name in MODALITIES}, values=dict.fromkeys(MODALITIES, 2.0))


def write_series(
    folder: Path, shape: tuple[int, int, int] = (14, 30, 26), steps: tuple[float, float, float] = (13.0, 9.0, 8.5),
    head: SubjectFeatures | None = None,
) -> np.ndarray:  # fmt: skip
    """Write an oblique MR series over the simulated head, of a patient with a name.

    Args:
        folder: where to.
        shape: ``(D, H, W)``.
        steps: mm along these axes.
        head: whose ALFF the pixels show, so that a head is where the features have one; None for a phantom.

    Returns:
        Affine, index -> LPS mm.
    """
    affine = np.eye(4)
    affine[:3, :3] = build.rotation(14.0, -9.0)[:, [2, 1, 0]] * steps
    # Round the head of `sample_cases.synthetic_brain`, whose middle lies at 0, 18, 18.
    affine[:3, 3] = np.array([0.0, 18.0, 18.0]) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    pixels = build.anatomy(shape)
    if head is not None:
        assert head.alff is not None
        assert head.affine is not None
        seen = resampled(Image(head.alff, head.affine), shape, affine)
        pixels = np.round(np.clip(seen, 0, None) / seen.max() * 1000).astype(np.float32)
    sources = build.ct_series(affine, pixels, "brain")
    for ds in sources:
        ds.SOPClassUID, ds.Modality, ds.BodyPartExamined = build.MR, "MR", "BRAIN"
        ds.file_meta.MediaStorageSOPClassUID = build.MR
        ds.PatientName, ds.PatientID = "Secret^Person", "HOSPITAL-77"
        for keyword in ("KVP", "RescaleIntercept", "RescaleSlope", "RescaleType", "WindowCenter", "WindowWidth"):
            delattr(ds, keyword)
    build.save_sources(sources, folder)
    return affine
