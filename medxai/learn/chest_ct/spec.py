"""What the chest networks read: lungs alone, in slabs 80 mm high, as wide as a chest."""

from __future__ import annotations

from typing import Any

from medxai.prepare.spec import PreparationSpec, WindowIntensity

SPEC = PreparationSpec(
    axes="DHW",
    window=(16, 64, 64),
    spacing_mm=(5.0, 5.0, 5.0),
    intensity=WindowIntensity(low=-1000, high=200),
    fill=-1024.0,
    region="lungs",
    overlap=0.5,
)
#: Arguments of the hand-made network, `medxai.networks.densenet3d.SmallDenseNet3d`.
HAND_MADE: dict[str, Any] = {"growth_rate": 16, "layers": 3}
