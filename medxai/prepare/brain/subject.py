"""What a fusion network sees of one subject: four arrays, some of which may be missing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.errors import MedxaiError

#: Order of the modalities everywhere: of embeddings, shares and tables.
MODALITIES = ("alff", "dfc", "sfc", "fa")
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SubjectFeatures:
    """Features of one subject; None where the scan is missing.

    Attributes:
        subject: pseudonym.
        alff: ``[D, H, W]`` amplitude of low-frequency fluctuation (or fALFF, ReHo) on a grid in a template's space.
        affine: 4x4 voxel index (in the order of the axes) -> LPS mm of that space; None without `alff`.
        dfc: ``[N, N, T]`` Fisher z of sliding windows.
        sfc: ``[N, N]`` Fisher z over the whole scan, zero diagonal.
        fa: ``[M, M]`` structural connectivity of the regions of its own atlas.
        regions: names of the N regions, in order.
        networks: name of the functional network of each of them, "" for none.
        fa_regions: names of the M regions.
    """

    subject: str
    alff: Array | None
    affine: npt.NDArray[np.float64] | None
    dfc: Array | None
    sfc: Array | None
    fa: Array | None
    regions: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    fa_regions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, regions in (("dfc", self.regions), ("sfc", self.regions), ("fa", self.fa_regions)):
            array = getattr(self, name)
            if array is not None and array.shape[:2] != (len(regions), len(regions)):
                message = f"{self.subject}: {name} has shape {array.shape}, its atlas {len(regions)} regions"
                raise MedxaiError(message)
        for name in MODALITIES:
            array = getattr(self, name)
            if array is not None and not np.isfinite(array).all():
                raise MedxaiError(f"{self.subject}: {name} is not finite everywhere")

    @property
    def present(self) -> tuple[str, ...]:
        """Modalities that there are."""
        return tuple(name for name in MODALITIES if getattr(self, name) is not None)
