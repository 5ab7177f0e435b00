"""Which frames of a recording are used, and how they become a network's input.

Born et al. 2021 (arXiv:2009.06116): about three frames a second, at most thirty per clip, from its start. Their clips
were cropped to squares before, so a plain resize keeps the aspect; here everything is cropped to its central square
first, which changes nothing for their files and leaves no black bars by which a network could tell negatives.
The video network reads clips of five grey frames, five a second, each repeated to fill a depth of 32.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from medxai.errors import SettingsError
from medxai.ingest.picture import read_picture
from medxai.ingest.video import read_video
from medxai.learn.lung_us.cohort import CLASSES, Recording
from medxai.prepare.prepare import prepare
from medxai.prepare.spec import PreparationSpec, WindowIntensity
from medxai.study import FloatArray, Volume

FRAMES_PER_SECOND = 3
MOST_FRAMES = 30
#: Side of the square input of the frame networks, in pixels.
SIZE = 224
#: The publication's intensities: colour divided by 255, without ImageNet's mean.
VGG_SPEC = PreparationSpec(axes="HW", window=(SIZE, SIZE), channels=3, intensity=WindowIntensity(low=0, high=255))
#: Grey 64 x 64 frames of the video network.
CLIP_SPEC = PreparationSpec(axes="HW", window=(64, 64), channels=1, intensity=WindowIntensity(low=0, high=255))
#: Repetitions of the five frames of a clip: 32 in all.
CLIP_REPEATS = (6, 7, 7, 6, 6)
CLIP_FRAMES_PER_SECOND = 5
#: Clips of a training video, by class; and of any video at evaluation.
CLIPS_IN_TRAINING = dict(zip(CLASSES, (3, 10, 10), strict=True))
CLIPS_IN_EVALUATION = 20


def frame_indices(
    frames: int, frame_rate: float, per_second: int = FRAMES_PER_SECOND, most: int | None = MOST_FRAMES
) -> tuple[int, ...]:
    """Return every ``int(frame_rate / per_second)``-th index from 0, at most `most`; never none.

    Args:
        frames: number of frames of the clip.
        frame_rate: frames per second; below `per_second` every frame is taken.
        per_second: aim.
        most: limit; None takes all.

    Raises:
        SettingsError: no frame, or a frame rate that is not above 0.
    """
    if frames < 1 or not frame_rate > 0:
        msg = f"{frames} frames at {frame_rate} a second are no clip"
        raise SettingsError(msg)
    step = max(1, int(frame_rate / per_second))
    return tuple(range(0, frames, step))[:most]


def clip_indices(frames: int, frame_rate: float, most: int = CLIPS_IN_EVALUATION) -> tuple[tuple[int, ...], ...]:
    """Return the five frame indices of each consecutive clip for the video network; none for a video too short.

    Args:
        frames: number of frames of the video.
        frame_rate: frames per second.
        most: clips at most, from the start.
    """
    taken = frame_indices(frames, frame_rate, CLIP_FRAMES_PER_SECOND, most=None)
    length = len(CLIP_REPEATS)
    return tuple(taken[start : start + length] for start in range(0, len(taken) - length + 1, length))[:most]


def read_recording(data: Path, recording: Recording) -> Volume:
    """Read a recording as ingestion reads it: ``[C, H, W]`` or ``[C, T, H, W]`` in 0..255.

    Raises:
        IngestError: damaged or of another format.
        SettingsError: PyAV is not installed.
    """
    path = data / recording.path
    return read_video(path) if recording.kind == "video" else read_picture(path)


def chosen_frames(recording: Recording, volume: Volume) -> tuple[int, ...]:
    """Return the indices of the frames of `volume` that the protocol takes.

    The number of frames is that of the decoded file; the rate is the table's, else the file's.

    Raises:
        SettingsError: neither knows the rate.
    """
    return frame_indices(volume.shape[0], _rate(recording, volume)) if volume.axes == "THW" else (0,)


def chosen_clips(recording: Recording, volume: Volume) -> tuple[tuple[int, ...], ...]:
    """Return the frames of each clip of `volume` that the video network reads; a still has none.

    Raises:
        SettingsError: neither the table nor the file knows the frame rate.
    """
    return clip_indices(volume.shape[0], _rate(recording, volume)) if volume.axes == "THW" else ()


def central_square(volume: Volume) -> Volume:
    """Crop the longer side of every frame around its centre; the affine follows the first pixel kept."""
    rows, columns = volume.shape[-2:]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    affine = volume.affine.copy()
    affine[:, 3] = volume.affine @ np.array([0.0, top, left, 1.0])
    pixels = volume.pixels[..., top : top + side, left : left + side]
    return dataclasses.replace(volume, pixels=np.ascontiguousarray(pixels), affine=affine)


def prepared_frames(volume: Volume, indices: tuple[int, ...], spec: PreparationSpec) -> FloatArray:
    """Return ``[len(indices), C, H', W']`` prepared frames; a still has the one index 0.

    Args:
        volume: still or cine.
        indices: frames to take.
        spec: 2D preparation of the network.
    """
    frames = volume.pixels[:, list(indices)] if volume.axes == "THW" else volume.pixels[:, None]
    cine = dataclasses.replace(volume, pixels=frames, axes="THW", frame_numbers=())
    pixels = prepare(central_square(cine), spec).pixels
    return np.ascontiguousarray(pixels.transpose(1, 0, 2, 3))


def prepared_clips(volume: Volume, clips: tuple[tuple[int, ...], ...]) -> FloatArray:
    """Return ``[len(clips), 1, 32, 64, 64]`` inputs of the video network."""
    flat = tuple(index for clip in clips for index in clip)
    if not flat:
        return np.zeros((0, 1, sum(CLIP_REPEATS), *CLIP_SPEC.window), dtype=np.float32)
    grey = prepared_frames(volume, flat, CLIP_SPEC)[:, 0].reshape(len(clips), len(CLIP_REPEATS), *CLIP_SPEC.window)
    return np.ascontiguousarray(np.repeat(grey, CLIP_REPEATS, axis=1)[:, None])


def _rate(recording: Recording, volume: Volume) -> float:
    return recording.frame_rate or (1 / volume.frame_seconds if volume.frame_seconds else 0.0)
