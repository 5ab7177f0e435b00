"""Reading outputs back by position, with pydicom alone, so that no writer checks itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom import Dataset, dcmread

from medxai.study import Volume

Planes = dict[tuple[int, int], npt.NDArray[np.generic]]


def slice_of(item: Dataset, volume: Volume) -> int:
    """Return the index on the ``D`` axis whose position a per-frame item has (within a micrometre)."""
    assert volume.positions is not None
    here = np.array([float(v) for v in item.PlanePositionSequence[0].ImagePositionPatient])
    distances = np.linalg.norm(volume.positions - here, axis=1)
    index = int(distances.argmin())
    assert distances[index] < 1e-3
    return index


def float_planes(ds: Dataset, volume: Volume) -> npt.NDArray[np.float32]:
    """Return the float frames of a Parametric Map in the order of the ``D`` axis."""
    frames = np.frombuffer(ds.FloatPixelData, "<f4").reshape(int(ds.NumberOfFrames), ds.Rows, ds.Columns)
    out = np.full(volume.shape, np.nan, np.float32)
    for item, frame in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
        out[slice_of(item, volume)] = frame
    return out


def segment_planes(ds: Dataset, volume: Volume, count: int) -> npt.NDArray[np.uint8]:
    """Return masks ``[n, *S]`` of a BINARY or LABELMAP segmentation; frames left out are zero."""
    pixels = ds.pixel_array
    pixels = pixels if pixels.ndim == 3 else pixels[np.newaxis]
    shape = volume.shape if len(volume.shape) == 3 else (1, *volume.shape)
    out = np.zeros((count, *shape), np.uint8)
    for item, frame in zip(ds.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        if "PlanePositionSequence" in item:
            index = slice_of(item, volume)
        else:
            reference = item.DerivationImageSequence[0].SourceImageSequence[0]
            index = int(reference.get("ReferencedFrameNumber", 1)) - 1
        if ds.SegmentationType == "LABELMAP":
            for band in range(count):
                out[band, index] = frame == band + 1
        else:
            out[int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber) - 1, index] = frame
    return out


def read(path: Path) -> Dataset:
    """Return a data set."""
    return dcmread(path)
