"""A cine with the evidence over its decisive frames and the probabilities running below, as MP4 or GIF."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai.explain.cine import CineEvidence, cine_evidence
from medxai.export.colours import UInt8
from medxai.export.course import class_colours, course
from medxai.export.lettering import FAINT, GROUND, INK, write_text
from medxai.export.naming import percent, stem
from medxai.export.secondary_capture import render
from medxai.files import write_bytes
from medxai.settings import ExportOptions
from medxai.study import Result

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROLE = "movie"

#: Height of the course of probabilities in pixels, and of one line of its key.
_COURSE, _LINE = 64, 16
#: Colours of a GIF's palette.
_PALETTE = 128
#: Frames per second of cines that do not state theirs.
_RATE = 10.0


def applies(result: Result) -> str | None:
    """Return None for cines of more than one frame, otherwise the reason why not."""
    if result.study.volume.axes != "THW" or result.study.volume.shape[0] < 2:
        return "the study is no cine"
    return None


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the primary explanation as ``movie_*.mp4``, or as GIF where that is wanted or PyAV is not installed."""
    explanation = result.explanations[0]
    name = stem(ROLE, explanation)
    pictures = np.stack(list(_pictures(result, options)))
    seconds = result.study.volume.frame_seconds or 1 / _RATE
    if options.movie == "mp4" and find_spec("av") is not None:
        return [write_bytes(folder / f"{name}.mp4", as_mp4(pictures, 1 / seconds))]
    return [write_bytes(folder / f"{name}.gif", as_gif(pictures, seconds))]


def _pictures(result: Result, options: ExportOptions) -> Iterator[UInt8]:
    """Yield each frame of the secondary capture with the course of probabilities below it, even in both sizes."""
    volume, prediction, explanation = result.study.volume, result.prediction, result.explanations[0]
    evidence = cine_evidence(volume, prediction, explanation)
    for index, picture in enumerate(render(result, explanation, options)):
        whole = picture
        if evidence is not None:
            whole = np.concatenate([picture, _below(evidence, prediction.labels, index, picture.shape[1])])
        rows, columns = whole.shape[:2]
        yield np.pad(whole, ((0, rows % 2), (0, columns % 2), (0, 0)), mode="edge")


def _below(evidence: CineEvidence, labels: tuple[str, ...], index: int, width: int) -> UInt8:
    from PIL import Image, ImageDraw

    colours = class_colours(len(labels))
    canvas = Image.new("RGB", (width, _COURSE + _LINE * len(labels) + 10), GROUND)
    canvas.paste(Image.fromarray(course(evidence, width - 8, _COURSE, index)), (4, 0))
    draw = ImageDraw.Draw(canvas)
    for number, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        y = _COURSE + 4 + number * _LINE
        draw.rectangle((6, y + 3, 16, y + 11), fill=colour)
        end = 22 + write_text(draw, (22, y), label, 12, INK, room=width - 90)
        write_text(draw, (end + 8, y), percent(float(evidence.probabilities[index, number])), 12, FAINT)
    return np.asarray(canvas, dtype=np.uint8)


def as_mp4(pictures: UInt8, rate: float) -> bytes:
    """Return VP9 in MP4, which browsers play and which needs no encoder under GPL; the same bytes for the same input.

    Args:
        pictures: ``[T, rows, columns, 3]`` with even rows and columns.
        rate: frames per second.
    """
    import av

    stream = io.BytesIO()
    steps = Fraction(rate).limit_denominator(1000)
    with av.open(stream, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {"crf": "24", "b": "0", "threads": "1", "row-mt": "0", "deadline": "realtime", "cpu-used": "6"}
        video: Any = container.add_stream("libvpx-vp9", rate=steps, options=options)
        video.height, video.width, video.pix_fmt = pictures.shape[1], pictures.shape[2], "yuv420p"
        video.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(video.encode())
    return stream.getvalue()


def as_gif(pictures: UInt8, seconds: float) -> bytes:
    """Return an endless GIF; all frames share one palette, so that nothing flickers.

    Args:
        pictures: ``[T, rows, columns, 3]``.
        seconds: between frames; GIF counts in hundredths.
    """
    from PIL import Image

    sample: NDArray[np.uint8] = pictures[:: max(1, len(pictures) // 8)]
    palette = Image.fromarray(sample.reshape(-1, *sample.shape[2:])).quantize(_PALETTE)
    images = [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    stream = io.BytesIO()
    images[0].save(
        stream, format="GIF", save_all=True, append_images=images[1:], loop=0,
        duration=max(20, round(seconds * 100) * 10), optimize=False,
    )  # fmt: skip
    return stream.getvalue()
