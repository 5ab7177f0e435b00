"""Single frames of a DICOM slide: found in the file without reading the rest of it, decoded one by one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.errors import IngestError, TileError
from medxai.ingest.slides.level import Colours

if TYPE_CHECKING:
    from pydicom import Dataset

#: One decoder for each transfer syntax, as for other images. These run in this process: a process of their own would
#: cost more than the decoding, and Pillow and openjpeg answer to damaged frames with an error.
_DECODER = {
    "1.2.840.10008.1.2": "",
    "1.2.840.10008.1.2.1": "",
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG baseline
    "1.2.840.10008.1.2.4.90": "pillow",  # JPEG 2000
    "1.2.840.10008.1.2.4.91": "pillow",
}


class Frames:
    """The frames of one object, whose file stays open.

    Args:
        path: DICOM file.
        header: of it.
        study: pseudonymous name for messages.
        first: number of the frames of the level that come before, in a concatenation.

    Raises:
        IngestError: the transfer syntax is none that is read tile by tile.
    """

    def __init__(self, path: Path, header: Dataset, study: str, first: int = 0) -> None:
        from pydicom.uid import UID

        self._path, self._study, self._first = path, study, first
        self._syntax = str(header.file_meta.get("TransferSyntaxUID", ""))
        if self._syntax not in _DECODER:
            known = UID(self._syntax).name if self._syntax else "none"
            msg = (
                f"tiles are stored as {known}, which is not read tile by tile; "
                "store the slide uncompressed or as JPEG, JPEG 2000 or RLE"
            )
            raise IngestError(msg, study=study)
        self._shape = (int(header.Rows), int(header.Columns), 3)
        self._description = {
            "rows": int(header.Rows),
            "columns": int(header.Columns),
            "samples_per_pixel": 3,
            "bits_allocated": 8,
            "bits_stored": int(header.get("BitsStored", 8)),
            "photometric_interpretation": str(header.PhotometricInterpretation),
            "pixel_representation": 0,
            "planar_configuration": int(header.get("PlanarConfiguration", 0) or 0),
            "number_of_frames": 1,
            "pixel_keyword": "PixelData",
        }
        self._reader: Any = None

    def decode(self, number: int) -> Colours:
        """Return ``[rows, columns, 3]`` RGB of a frame.

        Args:
            number: zero-based, in this object.

        Raises:
            IngestError: the file cannot be read at all.
            TileError: the frame is damaged.
        """
        from pydicom.encaps import encapsulate
        from pydicom.pixels import get_decoder

        reader = self._open()
        decoder = get_decoder(self._syntax)
        try:
            raw = reader.read_frame_raw(number)
            packed = raw if _DECODER[self._syntax] == "" else encapsulate([raw], has_bot=False)
            array, _ = decoder.as_array(packed, decoding_plugin=_DECODER[self._syntax], **self._description)
        except Exception as error:  # every decoder has its own kinds
            msg = f"frame {self._first + number + 1} cannot be decoded ({type(error).__name__}); it is damaged"
            raise TileError(msg, study=self._study) from error
        if array.shape != self._shape:
            msg = f"frame {self._first + number + 1} has shape {array.shape}, the header says {self._shape}"
            raise TileError(msg, study=self._study)
        return np.asarray(array, np.uint8)

    def _open(self) -> Any:
        if self._reader is None:
            from highdicom.io import ImageFileReader

            reader = ImageFileReader(self._path)
            try:
                reader.open()
                _ = reader.metadata  # the table of offsets is made with it
            except Exception as error:
                reader.close()
                msg = f"its tiles cannot be found ({type(error).__name__}); the file is damaged or truncated"
                raise IngestError(msg, study=self._study) from error
            self._reader = reader
        return self._reader

    def close(self) -> None:
        """Close the file."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
