"""Colours of a scanner brought to sRGB by the ICC profile that the slide carries."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

from medxai.errors import IngestError
from medxai.ingest.slides.level import Colours, Slide


def to_srgb(slide: Slide) -> Callable[[Colours], Colours]:
    """Return what turns ``[H, W, 3]`` colours of a slide to sRGB (perceptual intent), for `stream(change=...)`.

    Raises:
        IngestError: the slide carries no profile, or one that cannot be read or is not of RGB.
    """
    from PIL import Image, ImageCms

    if slide.icc is None:
        msg = "carries no ICC profile, so that its colours are not known in sRGB; leave colour management out"
        raise IngestError(msg, study=slide.name)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(slide.icc))
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        msg = "its ICC profile is damaged or not of RGB; leave colour management out"
        raise IngestError(msg, study=slide.name) from error

    def apply(colours: Colours) -> Colours:
        return np.array(ImageCms.applyTransform(Image.fromarray(colours), transform), dtype=np.uint8)

    return apply
