"""Maps of a subject as NIfTI: on the grid of the features, in the subject's space, and strengths of nodes painted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.explain.region_ranking import strengths
from medxai.export.brain.subject_view import SubjectView
from medxai.prepare.brain.image import Image, write_image
from medxai.prepare.brain.onto import computed, resampled_within
from medxai.study import Affine


def write_maps(view: SubjectView, folder: Path) -> list[Path]:
    """Write ``alff_map.nii.gz`` on the grid of the features, and ``MODALITY_strength.nii.gz`` on the atlas's.

    Values of the ALFF map are 0 to 1; a strength is the sum of the evidence of a region's edges, at every voxel of the
    region. The sform's code says whether the space is a template's (4) or the scanner's (1).
    """
    paths = []
    if "alff" in view.evidence.maps and view.features.affine is not None:
        image = Image(view.evidence.maps["alff"], view.features.affine)
        paths.append(
            write_image(folder / "alff_map.nii.gz", image, "SAM of ALFF, 0..1, explanation", template=view.template)
        )
    if view.atlas is not None and not view.atlas.probabilistic:
        for name, values in strengths(view.evidence.maps).items():
            painted = paint(view, name, values)
            if painted is not None:
                paths.append(
                    write_image(
                        folder / f"{name}_strength.nii.gz", painted, f"SAM of {name}, sum over a region's edges",
                        template=view.template,
                    )
                )  # fmt: skip
    return paths


def write_subject_space(
    view: SubjectView, shape: tuple[int, int, int], affine: Affine, transform: Affine | None, folder: Path
) -> Path | None:
    """Write ``alff_map_subject.nii.gz``: the map on a grid of the subject; None where there is no map.

    Args:
        view: the subject.
        shape: of the grid.
        affine: of the grid, index -> LPS mm of the subject.
        transform: 4x4 from the subject's LPS to that of the features; None where they are one space.
        folder: where to.
    """
    feature = view.features.alff
    if "alff" not in view.evidence.maps or feature is None or view.features.affine is None:
        return None
    source = Image(view.evidence.maps["alff"], view.features.affine)
    values = resampled_within(source, computed(feature), shape, affine, transform)
    return write_image(folder / "alff_map_subject.nii.gz", Image(values, affine), "SAM of ALFF in the subject's space")


def paint(view: SubjectView, modality: str, values: npt.NDArray[np.float64]) -> Image | None:
    """One value a region at each of its voxels, on the atlas's own grid; None where the atlas is of other regions."""
    if view.atlas is None:
        return None
    names = view.regions(modality)
    if names != view.features.regions and not set(names) <= set(view.features.regions):
        return None
    index = {name: number for number, name in enumerate(names)}
    table = np.zeros(int(view.atlas.image.data.max(initial=0)) + 1, np.float32)
    for label, region in zip(view.atlas.labels, view.features.regions, strict=True):
        table[label] = values[index[region]] if region in index else 0.0
    return Image(table[view.atlas.image.data], view.atlas.image.affine)
