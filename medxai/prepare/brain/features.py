"""From the scans of one subject to features."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from medxai.errors import IngestError, MismatchError
from medxai.prepare.brain.atlas import Atlas, place_atlas, read_atlas
from medxai.prepare.brain.bids import Scans
from medxai.prepare.brain.bold import Bold, bold_of_studies, drop_dummies, read_bold
from medxai.prepare.brain.clean import check_length, clean
from medxai.prepare.brain.confounds import choose, motion_columns, read_confounds, tissue_means
from medxai.prepare.brain.connectivity import dynamic_connectivity, region_series, static_connectivity, windows
from medxai.prepare.brain.derivatives import Computed
from medxai.prepare.brain.dwi import Dwi, dwi_of_studies, read_dwi
from medxai.prepare.brain.gradients import check_gradients
from medxai.prepare.brain.image import nearest, read_image
from medxai.prepare.brain.matrices import read_matrix
from medxai.prepare.brain.motion import estimate_motion, framewise_displacement
from medxai.prepare.brain.regional import alff, over_mean
from medxai.prepare.brain.reho import reho
from medxai.prepare.brain.scanner import read_volumes
from medxai.prepare.brain.settings import FeatureSettings
from medxai.prepare.brain.tensor import fit_tensor
from medxai.prepare.brain.tracts import structural_connectivity

#: Probability of a tissue above which a voxel's signal counts as that tissue's.
_TISSUE = 0.95


@dataclass
class Clock:
    """Seconds of each step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of a block to a step."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


def functional_features(
    bold: Bold,
    mask: npt.NDArray[np.bool_],
    confounds: Mapping[str, npt.NDArray[np.float64]],
    atlas: Atlas,
    settings: FeatureSettings,
    clock: Clock,
) -> Computed:
    """ALFF, fALFF, ReHo and connectivity of one functional series.

    ALFF is computed of series without confounds and trends, ReHo and connectivity of the band-passed ones.

    Args:
        bold: series, dummies dropped.
        mask: brain on its grid.
        confounds: columns to regress out.
        atlas: in its space.
        settings: band, windows and so on.
        clock: receives the seconds of the steps.

    Raises:
        MismatchError: the scan is too short, or the atlas does not fit.
    """
    tr, trend, key = bold.repetition_seconds, settings.nuisance.trend, bold.key
    check_length(bold.volumes, tr, settings.band, len(confounds), trend, key)
    windows(bold.volumes, tr, settings.window, key)
    placed = place_atlas(atlas, mask, bold.affine, bold.space, settings.atlas, key)
    inside = np.ascontiguousarray(bold.data[mask].T)
    if not (inside.std(0) > 0).any():
        raise MismatchError("no voxel of the brain mask varies", study=key)
    with clock.step("clean"):
        whole = clean(inside, confounds, tr, trend, None, key)
    with clock.step("alff"):
        amplitude, fraction = alff(whole, tr, settings.band, key)
        if settings.normalise == "mean":
            amplitude = over_mean(amplitude, key)
    del whole
    with clock.step("clean"):
        filtered = clean(inside, confounds, tr, trend, settings.band, key)
    with clock.step("reho"):
        concordance = reho(filtered, mask, key)
    del filtered
    with clock.step("connectivity"):
        series = clean(region_series(bold.data, placed, mask), confounds, tr, trend, settings.band, key)
        series[:, list(placed.missing)] = 0
        sfc = static_connectivity(series)
        dfc, starts = dynamic_connectivity(series, tr, settings.window, key)
        length = round(settings.window.seconds / tr)

    def on_grid(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        grid = np.zeros(mask.shape, np.float32)
        grid[mask] = values
        return grid

    notes = {
        "RepetitionTime": round(tr, 6),
        "VolumesUsed": bold.volumes,
        "VolumesDropped": bold.dropped,
        "Band": [settings.band.low, settings.band.high],
        "ConfoundsRemoved": sorted(confounds),
        "TrendDegree": trend,
        "MissingRegions": [atlas.names[n] for n in placed.missing],
        "WindowVolumes": length,
    }
    return Computed(
        subject=key,
        space=bold.space,
        maps={"alff": on_grid(amplitude), "falff": on_grid(fraction), "reho": on_grid(concordance)},
        affine=bold.affine,
        sfc=sfc,
        dfc=dfc,
        starts=tuple(float(round((start + (length - 1) / 2) * tr, 4)) for start in starts),
        regions=atlas.names,
        networks=atlas.networks,
        atlas=_label(atlas.key),
        notes=notes,
    )


def diffusion_features(dwi: Dwi, atlas: Atlas | None, settings: FeatureSettings, clock: Clock) -> Computed:
    """FA, MD and, with an atlas in the space of the scan, structural connectivity.

    Raises:
        MedxaiError: gradients do not fit the image, or the atlas does not.
    """
    options = settings.diffusion
    with clock.step("tensor"):
        tensor = fit_tensor(dwi, largest_b=options.largest_tensor_b)
        dwi, tensor, note = check_gradients(dwi, tensor, fix=options.fix_gradients)
    structural: dict[str, npt.NDArray[np.float32]] = {}
    notes: dict[str, Any] = {"Gradients": note}
    if atlas is not None and settings.diffusion_atlas is not None:
        with clock.step("tracts"):
            placed = place_atlas(atlas, tensor.mask, dwi.affine, dwi.space, settings.diffusion_atlas, dwi.key)
            found = structural_connectivity(dwi, tensor, placed, options)
        structural = {"fa": found.fa, "count": found.counts.astype(np.float32)}
        notes |= {"Tracts": found.tracts, "TractsJoined": found.joined, "Directions": options.model}
    return Computed(
        subject=dwi.key,
        diffusion_space=dwi.space,
        diffusion_maps={"fa": tensor.fa, "md": tensor.md},
        diffusion_affine=dwi.affine,
        structural=structural,
        structural_regions=atlas.names if atlas and structural else (),
        structural_atlas=_label(atlas.key) if atlas and structural else "",
        notes=notes,
    )


def subject_features(scans: Scans, settings: FeatureSettings, clock: Clock) -> Computed:
    """Everything of one subject's files.

    Raises:
        MedxaiError: one line with the subject and the cause.
    """
    if scans.fault:
        raise IngestError(scans.fault, study=scans.subject)
    found = Computed(subject=scans.subject)
    if scans.bold is not None or scans.bold_volumes:
        with clock.step("read"):
            bold = _read_bold(scans, settings)
        bold, mask, confounds = _prepared(bold, scans, settings, clock)
        atlas = read_atlas(settings.atlas)
        functional = functional_features(bold, mask, confounds, atlas, settings, clock)
        parts = scans.bold.name.removesuffix(".gz").removesuffix(".nii").split("_")[1:-1] if scans.bold else []
        entities = "_".join(part for part in parts if not part.startswith("desc-"))
        found = replace(functional, subject=scans.subject, entities=entities)
    if scans.dwi is not None or scans.dwi_volumes:
        with clock.step("read"):
            dwi = _read_dwi(scans)
            own = read_atlas(settings.diffusion_atlas) if settings.diffusion_atlas else None
        diffusion = diffusion_features(dwi, own, settings, clock)
        found = replace(
            found,
            diffusion_maps=diffusion.diffusion_maps,
            diffusion_affine=diffusion.diffusion_affine,
            diffusion_space=diffusion.diffusion_space,
            structural=diffusion.structural,
            structural_regions=diffusion.structural_regions,
            structural_atlas=diffusion.structural_atlas,
            notes={**found.notes, **diffusion.notes},
        )
    elif scans.matrix is not None:
        own = read_atlas(settings.diffusion_atlas) if settings.diffusion_atlas else None
        matrix = read_matrix(scans.matrix, len(own.labels) if own else None)
        names = own.names if own else tuple(f"region_{n + 1}" for n in range(len(matrix)))
        found = replace(
            found,
            structural={"given": matrix},
            structural_regions=names,
            structural_atlas=_label(own.key) if own else "given",
        )
    return found


def _read_bold(scans: Scans, settings: FeatureSettings) -> Bold:
    if scans.bold is not None:
        return read_bold(scans.bold, settings.repetition_seconds, scans.subject)
    return replace(bold_of_studies(read_volumes(scans.bold_volumes), settings.repetition_seconds), key=scans.subject)


def _read_dwi(scans: Scans) -> Dwi:
    if scans.dwi is not None:
        return read_dwi(scans.dwi, study=scans.subject)
    return replace(dwi_of_studies(read_volumes(scans.dwi_volumes)), key=scans.subject)


def _prepared(
    bold: Bold, scans: Scans, settings: FeatureSettings, clock: Clock
) -> tuple[Bold, npt.NDArray[np.bool_], dict[str, npt.NDArray[np.float64]]]:
    """Series without dummies, brain mask and confounds."""
    nuisance, key = settings.nuisance, scans.subject
    confounds: dict[str, npt.NDArray[np.float64]] = {}
    if scans.confounds is not None:
        table = read_confounds(scans.confounds, bold.volumes, key)
        confounds = {k: v[settings.dummies :] for k, v in choose(table, nuisance, key).items()}
    bold = drop_dummies(bold, settings.dummies)
    if scans.confounds is None and nuisance.motion != "none" and nuisance.estimate_motion:
        with clock.step("motion"):
            bold, parameters = estimate_motion(bold)
        confounds |= motion_columns(parameters, nuisance.motion)
        moved = framewise_displacement(parameters)
        bold = replace(bold, notes=(*bold.notes, f"mean framewise displacement {moved.mean():.3f} mm"))
    if scans.mask is not None:
        mask = nearest(read_image(scans.mask, 3, key), bold.grid, bold.affine) > 0.5
    else:
        with clock.step("mask"):
            mask = brain_mask(bold)
    if scans.confounds is None:
        tissues = {"white_matter": scans.white_matter, "csf": scans.csf} if nuisance.tissues else {}
        masks = {
            name: nearest(read_image(path, 3, key), bold.grid, bold.affine) > _TISSUE
            for name, path in tissues.items()
            if path is not None
        }
        if nuisance.global_signal:
            masks["global_signal"] = mask
        confounds |= tissue_means(bold, masks)
    if not mask.any():
        raise MismatchError("the brain mask is empty on the grid of the series", study=key)
    return bold, mask, confounds


def brain_mask(bold: Bold) -> npt.NDArray[np.bool_]:
    """Brain of a series without a mask, from the histogram of its mean (nilearn's compute_epi_mask).

    Raises:
        MismatchError: no brain was found.
    """
    import warnings

    from nilearn.masking import compute_epi_mask

    from medxai.prepare.brain.image import as_nifti

    mean = bold.data.mean(-1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = compute_epi_mask(as_nifti(bold.image(mean)), exclude_zeros=True)
    except ValueError as error:
        raise MismatchError("no brain was found in the mean image; give a mask", study=bold.key) from error
    return np.asarray(found.dataobj).transpose(2, 1, 0) > 0


def _label(name: str) -> str:
    """Letters and digits of an atlas's file name for the entity ``seg-``; its ``atlas-`` entity where it has one."""
    stem = name.split(".")[0]
    for part in stem.split("_"):
        if part.startswith(("atlas-", "seg-")):
            stem = part.partition("-")[2]
    return "".join(c for c in stem if c.isalnum() and c.isascii()) or "atlas"
