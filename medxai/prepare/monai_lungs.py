"""The lungs alone, as a transform for MONAI's own runs of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medxai.prepare.prepare import lungs_alone
from medxai.study import Volume


class LungsAloned:
    """Put `fill` outside the lungs of ``data[keys]``, a MetaTensor ``[1, D, H, W]`` in HU.

    Args:
        keys: key of the image.
        fill: value outside.

    Raises:
        MismatchError: no lungs.
    """

    def __init__(self, keys: str, fill: float) -> None:
        self.key, self.fill = keys, fill

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data with the image replaced."""
        image = data[self.key]
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(image.affine, dtype=np.float64)  # RAS to LPS
        volume = Volume(np.asarray(image, dtype=np.float32), "DHW", affine, "CT")
        alone = image.clone()
        alone[...] = alone.new_tensor(lungs_alone(volume, self.fill).pixels)
        return {**data, self.key: alone}
