from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medxai.errors import SettingsError
from medxai.learn.lung_us.cohort import Recording, read_negatives, read_recordings
from medxai.learn.lung_us.frames import (
    CLIP_REPEATS,
    VGG_SPEC,
    central_square,
    chosen_frames,
    clip_indices,
    frame_indices,
    prepared_clips,
    prepared_frames,
    read_recording,
)
from medxai.study import Volume, image_affine
from tests.tools import require_data

CLIP = Recording("us_lung/x.mp4", "covid", "video", "p", "s", "l", 60, (48, 64), 25.0)


def cine(frames: int, rows: int = 48, columns: int = 64, channels: int = 1) -> Volume:
    """A clip whose frame ``t`` is grey of value ``t``."""
    values = np.arange(frames, dtype=np.float32)[None, :, None, None]
    pixels = np.broadcast_to(values, (channels, frames, rows, columns)).copy()
    return Volume(pixels, "THW", image_affine(), "US", calibrated=False, frame_seconds=1 / 25)


def test_frames_follow_the_published_rule() -> None:
    assert frame_indices(25, 25) == (0, 8, 16, 24)  # int(25 / 3) = 8
    assert frame_indices(41, 10) == tuple(range(0, 41, 3))
    assert frame_indices(403, 39) == tuple(range(0, 390, 13))  # thirty at most
    assert frame_indices(4, 2) == (0, 1, 2, 3)  # slower than three a second: all
    assert frame_indices(1, 50) == (0,)


@given(frames=st.integers(1, 2000), rate=st.floats(0.1, 240))
def test_frames_are_distinct_inside_the_clip_and_never_more_than_thirty(frames: int, rate: float) -> None:
    taken = frame_indices(frames, rate)
    assert taken[0] == 0
    assert 1 <= len(taken) <= 30
    assert taken[-1] < frames
    assert len(set(np.diff(taken).tolist())) <= 1
    # Shorter gaps than asked for, never longer: the publication rounds the step down.
    assert all(step <= max(1, rate / 3) for step in np.diff(taken).tolist())


@given(frames=st.integers(1, 600), rate=st.floats(1, 60))
def test_clips_are_consecutive_and_share_no_frame(frames: int, rate: float) -> None:
    clips = clip_indices(frames, rate)
    flat = [index for clip in clips for index in clip]
    assert all(len(clip) == 5 for clip in clips)
    assert len(clips) <= 20
    assert flat == sorted(set(flat))


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(SettingsError, match="are no clip"):
        frame_indices(0, 25)
    with pytest.raises(SettingsError, match="are no clip"):
        frame_indices(10, 0)
    nameless = dataclasses.replace(CLIP, frame_rate=None)
    with pytest.raises(SettingsError, match="are no clip"):
        chosen_frames(nameless, dataclasses.replace(cine(9), frame_seconds=None))
    assert chosen_frames(nameless, cine(25)) == (0, 8, 16, 24)


def test_chosen_frames_keep_their_order_and_scale() -> None:
    volume = cine(60)
    indices = chosen_frames(CLIP, volume)
    frames = prepared_frames(volume, indices, VGG_SPEC)
    assert frames.shape == (8, 3, 224, 224)
    assert np.allclose(frames.mean(axis=(1, 2, 3)) * 255, indices, atol=1e-3)
    assert np.ptp(frames, axis=(1, 2, 3)).max() < 1e-6  # the square is filled: no bars


def test_a_still_is_a_clip_of_one_frame() -> None:
    still = Volume(np.full((3, 30, 50), 51, np.float32), "HW", image_affine(), "US", calibrated=False)
    recording = dataclasses.replace(CLIP, kind="image", frame_rate=None)
    frames = prepared_frames(still, chosen_frames(recording, still), VGG_SPEC)
    assert frames.shape == (1, 3, 224, 224)
    assert np.allclose(frames, 0.2, atol=1e-6)


@pytest.mark.parametrize(("rows", "columns", "top", "left"), [(40, 61, 0, 10), (62, 40, 11, 0), (40, 40, 0, 0)])
def test_the_square_keeps_the_place_of_its_pixels(rows: int, columns: int, top: int, left: int) -> None:
    pixels = np.arange(rows * columns, dtype=np.float32).reshape(1, rows, columns)
    volume = Volume(pixels, "HW", image_affine(0.5, 0.25), "US")
    square = central_square(volume)
    assert square.shape == (40, 40)
    assert square.pixels[0, 0, 0] == pixels[0, top, left]
    assert np.allclose(square.affine @ [0, 3, 5, 1], volume.affine @ [0, 3 + top, 5 + left, 1])


def test_clips_repeat_their_frames_to_the_published_depth() -> None:
    volume = cine(60, channels=3)
    clips = clip_indices(60, 25)
    assert clips == ((0, 5, 10, 15, 20), (25, 30, 35, 40, 45))
    inputs = prepared_clips(volume, clips)
    assert inputs.shape == (2, 1, 32, 64, 64)
    expected = np.repeat([[0, 5, 10, 15, 20], [25, 30, 35, 40, 45]], CLIP_REPEATS, axis=1)
    assert np.allclose(inputs.mean(axis=(1, 3, 4)) * 255, expected, atol=1e-3)
    assert prepared_clips(volume, ()).shape == (0, 1, 32, 64, 64)


@pytest.mark.data
def test_real_recordings_are_nearly_square_and_give_the_expected_frames() -> None:
    data = require_data("us_lung").parent
    recordings = read_recordings(data)
    # A plain resize and a central square agree when files are square: all but four are, to two pixels.
    assert sum(abs(r.size[0] - r.size[1]) > 2 for r in recordings) == 4
    small = [r for r in recordings if r.path.endswith(("Cov-Atlas+(44).gif", "Pneu_liftl_pneu_case3_clip3.mp4"))]
    assert len(small) == 2
    for recording in small:
        volume = read_recording(data, recording)
        assert volume.shape == (recording.frames, *recording.size)
        indices = chosen_frames(recording, volume)
        assert indices == frame_indices(recording.frames, recording.frame_rate or 0)
        frames = prepared_frames(volume, indices, VGG_SPEC)
        assert frames.shape == (len(indices), 3, 224, 224)
        assert 0 <= frames.min() < frames.max() <= 1


@pytest.mark.data
def test_real_negatives_fill_the_square() -> None:
    data = require_data("us_breast_busi").parent
    negative = next(r for r in read_negatives(data) if r.size[0] != r.size[1] and r.size[0] > 0)
    volume = read_recording(data, negative)
    assert volume.shape == negative.size
    frames = prepared_frames(volume, (0,), VGG_SPEC)
    assert frames.shape == (1, 3, 224, 224)
