"""Settings of features from scans: configs/brain_features.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from medxai.settings import checked, read_yaml
from medxai.strict import Strict

Share = Annotated[float, Field(ge=0, le=1)]


class NuisanceOptions(Strict):
    """What is regressed out.

    Attributes:
        motion: parameters of the confounds table, or estimated ones: six, with derivatives (12), with squares (24).
        estimate_motion: estimate them where there is no table (rigid registration to the middle volume).
        tissues: mean signals of white matter and CSF, from the table or from masks.
        global_signal: mean over the brain.
        outliers: fMRIPrep's columns of single volumes that moved or were not steady.
        trend: polynomial of this degree: 0 mean, 1 linear, 2 quadratic.
    """

    motion: Literal["none", "6", "12", "24"] = "6"
    estimate_motion: bool = True
    tissues: bool = True
    global_signal: bool = False
    outliers: bool = False
    trend: Literal[0, 1, 2] = 2


class BandOptions(Strict):
    """Pass band in Hz."""

    low: PositiveFloat = 0.01
    high: PositiveFloat = 0.08

    @model_validator(mode="after")
    def _ordered(self) -> BandOptions:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class WindowOptions(Strict):
    """Sliding windows of dynamic connectivity.

    Attributes:
        seconds: length of a window; at least one period of the lower edge of the band keeps spurious changes out
            (Leonardi and Van De Ville 2015).
        step: volumes from window to window; ignored where `count` is given.
        count: windows, spread evenly over the scan, for networks that want so many.
        shape: ``rectangle``, or ``tapered``: a rectangle convolved with a Gaussian (Allen et al. 2014).
        taper_seconds: standard deviation of that Gaussian.
    """

    seconds: PositiveFloat = 100.0
    step: PositiveInt = 1
    count: PositiveInt | None = None
    shape: Literal["rectangle", "tapered"] = "rectangle"
    taper_seconds: PositiveFloat = 6.0


class AtlasOptions(Strict):
    """An atlas and the networks of its regions.

    Attributes:
        image: NIfTI of labels (3D), or of probabilities (4D).
        table: TSV or CSV of indices and names.
        network_column: of the table; found by itself where it is called network, yeo7 or so.
        network_image: NIfTI of networks (Yeo 1..7 or 1..17), for regions by majority of their voxels.
        allow_missing: regions outside the field of view become zeros instead of a refusal.
        most_missing: share of regions that may be outside in any case.
        trust_space: do not compare the declared template spaces.
    """

    image: Path
    table: Path | None = None
    network_column: str | None = None
    network_image: Path | None = None
    allow_missing: bool = False
    most_missing: Share = 0.1
    trust_space: bool = False


class DiffusionOptions(Strict):
    """Diffusion MRI.

    Attributes:
        fix_gradients: use the axis flip or exchange that the image itself shows, instead of a refusal.
        model: peaks that tracts follow: of the tensor, or of constant solid angle ODFs.
        largest_tensor_b: images above (s/mm2) are left out of the tensor fit, to which they do not belong.
        seed_fa: fractional anisotropy above which tracts start.
        stop_fa: and below which they end.
        reach_mm: an end belongs to the nearest region at most so far away.
        weight: matrix that the network sees: mean FA along the tracts, or their count.
    """

    fix_gradients: bool = False
    model: Literal["tensor", "csa"] = "tensor"
    largest_tensor_b: PositiveFloat = 1500.0
    seed_fa: Share = 0.25
    stop_fa: Share = 0.15
    reach_mm: PositiveFloat = 4.0
    weight: Literal["fa", "count"] = "fa"


class FeatureSettings(Strict):
    """From scans to features.

    Attributes:
        input: BIDS data set, raw or as fMRIPrep writes it.
        output: folder of the derivatives data set.
        atlas: for functional connectivity, in the space of the functional images.
        diffusion_atlas: labels in the space of the diffusion images; None leaves structural connectivity out.
        task: entity of the functional series where there are several; in a folder of DICOM its SeriesNumber,
            SeriesDescription (or a part of it) or SeriesInstanceUID. The command line calls it ``--series`` as well.
        space: likewise.
        session: likewise.
        run: likewise.
        dummies: volumes dropped at the start.
        repetition_seconds: instead of what headers say.
        nuisance: regressed out.
        band: pass band.
        window: of dynamic connectivity.
        diffusion: of diffusion MRI.
        regional: map that the network sees.
        normalise: ALFF divided by its mean in the brain, or as it is.
    """

    input: Path
    output: Path
    atlas: AtlasOptions
    diffusion_atlas: AtlasOptions | None = None
    task: str | None = None
    space: str | None = None
    session: str | None = None
    run: str | None = None
    dummies: Annotated[int, Field(ge=0)] = 0
    repetition_seconds: PositiveFloat | None = None
    nuisance: NuisanceOptions = NuisanceOptions()
    band: BandOptions = BandOptions()
    window: WindowOptions = WindowOptions()
    diffusion: DiffusionOptions = DiffusionOptions()
    regional: Literal["alff", "falff", "reho"] = "alff"
    normalise: Literal["mean", "none"] = "mean"


def load_features(path: Path, changes: dict[str, Any] | None = None) -> FeatureSettings:
    """Read settings from YAML, with `changes` instead of what stands there.

    Raises:
        SettingsError: unreadable, or one line that names every wrong field.
    """
    return checked(FeatureSettings, {**read_yaml(path), **(changes or {})}, str(path))
