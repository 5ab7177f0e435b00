"""Masks of nuclei, for scores and for the network that is an upper bound; the arms with points never import this."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from medxai.errors import SettingsError
from medxai.learn.nuclei.data import Points, read_picture


@dataclass(frozen=True, eq=False)
class MaskedField:
    """A field whose nuclei are known.

    Attributes:
        name: of its file.
        pixels: ``[H, W, 3]`` RGB.
        instances: ``[H, W]`` nuclei from 1 on without gaps.
    """

    name: str
    pixels: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int32]

    @property
    def centroids(self) -> Points:
        """``[n, 2]`` rows and columns."""
        numbers = np.arange(1, int(self.instances.max()) + 1)
        return np.array(ndimage.center_of_mass(self.instances > 0, self.instances, numbers)).reshape(-1, 2)


def read_masked(folder: Path) -> list[MaskedField]:
    """Read every mask of ``masks/`` with the picture of the same name.

    Raises:
        SettingsError: there is none, or a picture is missing or of another size.
    """
    found = []
    for path in sorted((folder / "masks").glob("*.png")):
        with Image.open(path) as mask:
            numbers = np.asarray(mask).astype(np.int64)
        _, instances = np.unique(numbers, return_inverse=True)
        instances = instances.reshape(numbers.shape) + (0 if (numbers == 0).any() else 1)
        pixels = read_picture(folder / path.name)
        if pixels.shape[:2] != numbers.shape:
            msg = f"picture and mask {path.name} differ in size"
            raise SettingsError(msg, study=folder.name)
        found.append(MaskedField(path.name, pixels, instances.astype(np.int32)))
    if not found:
        raise SettingsError("masks/ holds no mask", study=folder.name)
    return found
