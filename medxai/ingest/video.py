"""Research video (mp4, avi, mov, mpeg, gif) -> Volume, through PyAV."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medxai.errors import IngestError, SettingsError
from medxai.study import Volume, image_affine

#: Memory guard: float32 colour frames beyond this many values are refused rather than swapped.
_MAX_VALUES = 2_000_000_000


def read_video(path: Path, modality: str = "US") -> Volume:
    """Read all frames as ``[C, T, H, W]`` float32 in 0..255; grey content becomes one channel.

    Raises:
        SettingsError: the optional package PyAV is not installed.
        IngestError: unreadable, without frames, of changing size, or too long for memory.
    """
    try:
        import av
    except ImportError as error:
        msg = "reading video needs PyAV: pip install 'medxai[video]'"
        raise SettingsError(msg, study=path.name) from error
    frames: list[np.ndarray] = []
    rate = None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                msg = "holds no video stream"
                raise IngestError(msg, study=path.name)
            stream = container.streams.video[0]
            rate = stream.average_rate
            for frame in container.decode(stream):
                frames.append(frame.to_ndarray(format="rgb24"))
                if frames[-1].size * len(frames) > _MAX_VALUES:
                    msg = f"is longer than {len(frames)} frames fit in memory; cut the clip"
                    raise IngestError(msg, study=path.name)
    except IngestError:
        raise
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        msg = f"cannot be decoded as video ({type(error).__name__}); the file is damaged or of another format"
        raise IngestError(msg, study=path.name) from error
    if not frames:
        msg = "holds no frames"
        raise IngestError(msg, study=path.name)
    if len({frame.shape for frame in frames}) > 1:
        msg = "changes its frame size on the way; split the clip"
        raise IngestError(msg, study=path.name)
    stack = np.stack(frames)
    # Codecs store grey video with chroma noise of a step or two.
    grey = int(np.abs(stack.astype(np.int16) - stack[..., :1]).max()) <= 3
    pixels = stack[..., 0][None] if grey else stack.transpose(3, 0, 1, 2)
    return Volume(
        pixels=np.ascontiguousarray(pixels, dtype=np.float32),
        axes="THW",
        affine=image_affine(),
        modality=modality,
        calibrated=False,
        frame_seconds=float(1 / rate) if rate else None,
    )
