"""Coloured Doppler in ultrasound: by what the header says of a region, else by how much of the picture is coloured."""

from __future__ import annotations

import numpy as np

from medxai.study import Volume

#: Difference of the largest and the smallest channel from which a pixel is a colour rather than tinted grey, of 255.
_COLOURED = 60.0
#: Share of a frame that colour marks, letters and logos do not reach: at most 0.5 % in 136 grey-scale recordings of
#: lungs, 5 % with Doppler.
_SHARE = 0.01
#: RegionDataType (0018,6014) of Color Flow (PS3.3 C.8.5.5.1.2).
_COLOR_FLOW = 2


def colour_flow(volume: Volume) -> str | None:
    """Say in words by what a picture or cine shows coloured Doppler; None where it does not.

    Args:
        volume: ``[C, H, W]`` or ``[C, T, H, W]`` in 0..255.
    """
    for header in volume.source[:1]:
        for region in header.get("SequenceOfUltrasoundRegions", []):
            if int(region.get("RegionDataType", 0) or 0) == _COLOR_FLOW:
                return "the header states a region of colour flow (Doppler)"
    if volume.axes == "DHW" or volume.pixels.shape[0] != 3:
        return None
    planes = volume.pixels if volume.axes == "THW" else volume.pixels[:, None]
    share = max(float((np.ptp(planes[:, index], axis=0) > _COLOURED).mean()) for index in range(planes.shape[1]))
    return f"{share:.0%} of a frame is coloured, as in Doppler" if share > _SHARE else None
