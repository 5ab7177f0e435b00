"""PNG and JPEG stills as research input: pixels without a place in a patient."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medxai.errors import IngestError
from medxai.study import Volume, image_affine

#: A decompression bomb guard: more pixels than any ultrasound still has.
_MAX_PIXELS = 64_000_000


def read_picture(path: Path, modality: str = "US") -> Volume:
    """Read a still as ``[C, H, W]`` float32 in 0..255 with one channel for grey and three for colour.

    A grey picture stored as RGB (all channels equal) becomes one channel. Transparency is dropped.

    Raises:
        IngestError: not a readable PNG or JPEG, or larger than 64 megapixels.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PIXELS:
                msg = f"has {image.width} x {image.height} pixels, more than the limit of {_MAX_PIXELS}"
                raise IngestError(msg, study=path.name)
            if image.mode.startswith(("I", "F")):  # 16 bits: Pillow would clip, not scale
                array = np.asarray(image, dtype=np.float32) * np.float32(255 / 65535)
            else:
                array = np.asarray(image.convert("L" if image.mode in {"1", "L", "LA"} else "RGB"), dtype=np.float32)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        msg = "cannot be read as a picture; the file is damaged or of another format"
        raise IngestError(msg, study=path.name) from error
    pixels = array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))
    if pixels.shape[0] == 3 and np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2]):
        pixels = pixels[:1]
    return Volume(pixels=pixels, axes="HW", affine=image_affine(), modality=modality, calibrated=False)
