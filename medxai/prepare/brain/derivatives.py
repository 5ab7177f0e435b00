"""Features as a BIDS derivatives data set: written once, the same bytes each time, and read back.

Static matrices are ``_relmat.tsv`` as BEP017 proposes, numbers only, with a sidecar that names the regions. Dynamic
connectivity is a NIfTI of shape N x N x 1 x windows, which every neuroimaging tool opens: BEP017 has no form for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import medxai
from medxai.errors import IngestError
from medxai.files import write_bytes, write_text
from medxai.identity import sha256_file
from medxai.prepare.brain.image import Image, read_image, write_image
from medxai.prepare.brain.subject import SubjectFeatures

#: Form of the index that lies beside a subject's files.
_VERSION = 1


@dataclass(frozen=True, eq=False)
class Computed:
    """All that was computed of one subject.

    Attributes:
        subject: with its prefix, ``sub-01``.
        entities: of the functional series that go into file names, such as ``task-rest_space-MNI152NLin6Asym``.
        space: template of the functional maps, "" for the scanner's.
        diffusion_space: likewise of the diffusion maps.
        maps: functional maps by name: ``alff``, ``falff``, ``reho``.
        affine: of these maps.
        sfc: ``[N, N]``; None without functional series.
        dfc: ``[N, N, windows]``.
        starts: seconds from the first volume to the middle of each window.
        regions: names of the N.
        networks: of them.
        atlas: label of the atlas for file names.
        diffusion_maps: ``fa`` and ``md``.
        diffusion_affine: of these maps.
        structural: matrices by weight: ``fa``, ``count`` or ``given``.
        structural_regions: names of their regions.
        structural_atlas: label of their atlas.
        notes: facts for the sidecars: repetition time, band, confounds, missing regions.
    """

    subject: str
    entities: str = ""
    space: str = ""
    diffusion_space: str = ""
    maps: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    affine: npt.NDArray[np.float64] | None = None
    sfc: npt.NDArray[np.float32] | None = None
    dfc: npt.NDArray[np.float32] | None = None
    starts: tuple[float, ...] = ()
    regions: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    atlas: str = ""
    diffusion_maps: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    diffusion_affine: npt.NDArray[np.float64] | None = None
    structural: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    structural_regions: tuple[str, ...] = ()
    structural_atlas: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)


def write_subject(
    folder: Path, found: Computed, regional: str, weight: str, inputs_sha256: str, settings_sha256: str
) -> Path:
    """Write one subject; its index comes last, so that a subject with an index is whole.

    Args:
        folder: of the derivatives data set.
        found: what was computed.
        regional: functional map that the network sees.
        weight: structural matrix that the network sees.
        inputs_sha256: of all files that were read.
        settings_sha256: of all settings that matter.

    Returns:
        Path of the index, ``sub-XX/sub-XX_features.json``.
    """
    root = folder / found.subject
    start = "_".join(part for part in (found.subject, found.entities) if part)
    files: dict[str, Path] = {}

    def image(role: str, path: Path, picture: Image, about: dict[str, Any], *, template: bool) -> None:
        files[role] = write_image(path, picture, role, template=template)
        _sidecar(path, {**about, **found.notes})

    units = {"alff": "over the mean in the brain, or units of the scan", "falff": "1", "reho": "Kendall's W, 0 to 1"}
    nowhere = np.eye(4)  # a matrix has no place; NIfTI wants one
    for name, values in found.maps.items():
        path = root / "func" / f"{start}_{name}.nii.gz"
        image(
            name,
            path,
            Image(values, nowhere if found.affine is None else found.affine),
            {"Units": units[name]},
            template=bool(found.space),
        )
    about: dict[str, Any] = {"Regions": found.regions, "Networks": found.networks, "Atlas": found.atlas}
    if found.sfc is not None:
        path = root / "func" / f"{start}_seg-{found.atlas}_relmat.tsv"
        files["sfc"] = _write_matrix(path, found.sfc)
        _sidecar(path, {**_measure("Fisher z of Pearson correlation"), **about, **found.notes})
    if found.dfc is not None:
        path = root / "func" / f"{start}_seg-{found.atlas}_desc-dynamic_relmat.nii.gz"
        cube = Image(np.ascontiguousarray(found.dfc.transpose(1, 0, 2)[None]), nowhere)
        more = {**_measure("Fisher z of Pearson correlation in sliding windows"), "WindowMiddles": found.starts}
        image("dfc", path, cube, {**more, **about, "Axes": "region, region, 1, window"}, template=False)
    for name, values in found.diffusion_maps.items():
        path = root / "dwi" / f"{found.subject}_model-tensor_param-{name}_dwimap.nii.gz"
        kind = {"Units": "1" if name == "fa" else "mm2/s", "Model": {"Description": "Diffusion tensor"}}
        image(
            f"map_{name}",
            path,
            Image(values, nowhere if found.diffusion_affine is None else found.diffusion_affine),
            kind,
            template=bool(found.diffusion_space),
        )
    for name, values in found.structural.items():
        path = root / "dwi" / f"{found.subject}_seg-{found.structural_atlas}_desc-{name}_relmat.tsv"
        files[f"structural_{name}"] = _write_matrix(path, values)
        words = {"fa": "mean fractional anisotropy along tracts", "count": "number of tracts", "given": "as given"}
        regions = {"Regions": found.structural_regions, "Atlas": found.structural_atlas}
        _sidecar(path, {**_measure(words[name]), **regions, **found.notes})
    chosen = weight if weight in found.structural else next(iter(found.structural), None)
    index = {
        "version": _VERSION,
        "subject": found.subject,
        "software": f"medxai {medxai.__version__}",
        "inputs_sha256": inputs_sha256,
        "settings_sha256": settings_sha256,
        "features": {
            "alff": _relative(files.get(regional), root),
            "sfc": _relative(files.get("sfc"), root),
            "dfc": _relative(files.get("dfc"), root),
            "fa": _relative(files.get(f"structural_{chosen}"), root),
        },
        "regions": found.regions,
        "networks": found.networks,
        "fa_regions": found.structural_regions,
        "files": {_relative(path, root): sha256_file(path) for path in sorted(files.values())},
    }
    return write_text(root / f"{found.subject}_features.json", _json(index))


def read_subject(folder: Path, subject: str) -> SubjectFeatures:
    """Features of one subject out of a derivatives data set; None for what its scans did not give.

    Args:
        folder: of the data set.
        subject: with or without the prefix ``sub-``.

    Raises:
        IngestError: the subject was not finished, or a file was changed or lost since.
    """
    name = subject if subject.startswith("sub-") else f"sub-{subject}"
    index = read_index(folder, name)
    if index is None:
        raise IngestError("has no features here; run 'medxai brain features' and see failures.tsv", study=name)
    root = folder / name
    for file, digest in index["files"].items():
        if not (root / file).is_file() or sha256_file(root / file) != digest:
            raise IngestError(f"{file} was changed or lost after it was written; run again", study=name)
    paths = {key: root / value if value else None for key, value in index["features"].items()}
    alff = read_image(paths["alff"], 3) if paths["alff"] else None
    dynamic = read_image(paths["dfc"], 4) if paths["dfc"] else None
    return SubjectFeatures(
        subject=name,
        alff=alff.data if alff else None,
        affine=alff.affine if alff else None,
        dfc=np.ascontiguousarray(dynamic.data[0].transpose(1, 0, 2)) if dynamic else None,
        sfc=_read_matrix(paths["sfc"]) if paths["sfc"] else None,
        fa=_read_matrix(paths["fa"]) if paths["fa"] else None,
        regions=tuple(index["regions"]),
        networks=tuple(index["networks"]),
        fa_regions=tuple(index["fa_regions"]),
    )


def read_index(folder: Path, subject: str) -> dict[str, Any] | None:
    """Index of a finished subject; None where there is none of this form."""
    path = folder / subject / f"{subject}_features.json"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("version") == _VERSION else None


def write_dataset(folder: Path, source: Path) -> None:
    """Write dataset_description.json and copy participants.tsv as it is."""
    described = {
        "Name": "medxai brain features",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "medxai", "Version": medxai.__version__}],
    }
    write_text(folder / "dataset_description.json", _json(described))
    table = source / "participants.tsv"
    if table.is_file():
        write_bytes(folder / "participants.tsv", table.read_bytes())


def _measure(words: str) -> dict[str, Any]:
    return {
        "RelationshipMeasure": words,
        "Weighted": True,
        "Directed": False,
        "ValidDiagonal": False,
        "StorageFormat": "Full",
    }


def _sidecar(path: Path, content: dict[str, Any]) -> None:
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    write_text(path.with_name(stem + ".json"), _json(content))


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _relative(path: Path | None, root: Path) -> str | None:
    return None if path is None else path.relative_to(root).as_posix()


def _write_matrix(path: Path, values: npt.NDArray[np.float32]) -> Path:
    # Nine digits bring every float32 back.
    return write_text(path, "\n".join("\t".join(f"{v:.9g}" for v in row) for row in values.tolist()) + "\n")


def _read_matrix(path: Path) -> npt.NDArray[np.float32]:
    return np.loadtxt(path, delimiter="\t", dtype=np.float64, ndmin=2).astype(np.float32)
