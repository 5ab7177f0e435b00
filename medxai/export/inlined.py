"""What a page that needs no other file holds: pictures as data URIs, and its template."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from jinja2 import Template
    from PIL.Image import Image


def png_uri(content: bytes) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def jpeg_uri(picture: npt.NDArray[np.uint8] | Image, quality: int = 88, **options: Any) -> str:
    """A picture ``[H, W, 3]`` RGB 0..255, or one of Pillow, as a JPEG in a data URI.

    Args:
        picture: to be encoded.
        quality: of the JPEG.
        options: further ones of Pillow.
    """
    from PIL import Image as Pictures

    image = Pictures.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality, **options)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def template(name: str) -> Template:
    """A template of this package; values are escaped, and one that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medxai.export", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)
