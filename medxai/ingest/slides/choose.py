"""The level that tiles of a wanted size are taken from, and how they have to be resized."""

from __future__ import annotations

from dataclasses import dataclass

from medxai.errors import IngestError
from medxai.ingest.slides.level import Slide, describe

#: Share by which the resolution of a level may differ from the wanted one without resizing.
TOLERANCE = 0.05
#: Most that tiles are enlarged: what is not there is not made up.
MOST_ENLARGED = 1.25


@dataclass(frozen=True)
class LevelChoice:
    """A level and the way from its pixels to the wanted ones.

    Attributes:
        level: number in the slide.
        mpp: wanted micrometres per pixel, the same for rows and columns.
        factor: wanted pixels per pixel of the level, along rows and columns; 1 when nothing is resized, below 1 when
            tiles are made smaller.
    """

    level: int
    mpp: float
    factor: tuple[float, float]


def choose_level(
    slide: Slide, mpp: float, *, tolerance: float = TOLERANCE, most_enlarged: float = MOST_ENLARGED
) -> LevelChoice:
    """Return the coarsest level that is at least as fine as wanted.

    Args:
        slide: open.
        mpp: wanted micrometres per pixel.
        tolerance: share by which a level may be coarser, and by which pixels may differ without resizing.
        most_enlarged: how much tiles may be enlarged when every level is too coarse.

    Raises:
        IngestError: every level is too coarse.
    """
    if not mpp > 0:
        msg = f"the wanted micrometres per pixel have to be above 0, not {mpp}"
        raise IngestError(msg, study=slide.name)
    fine = [n for n, level in enumerate(slide.levels) if max(level.mpp) <= mpp * (1 + tolerance)]
    number = max(fine, key=lambda n: slide.levels[n].downsample, default=0)
    stored = slide.levels[number].mpp
    if max(stored) > mpp * max(most_enlarged, 1 + tolerance):
        msg = (
            f"{mpp:g} um per pixel need tiles enlarged {max(stored) / mpp:.2g} times, and at most {most_enlarged:g} "
            f"is allowed, since detail that was not scanned is not made up; levels are {describe(slide.levels)}"
        )
        raise IngestError(msg, study=slide.name)
    if all(abs(value / mpp - 1) <= tolerance for value in stored):
        return LevelChoice(number, mpp, (1.0, 1.0))
    return LevelChoice(number, mpp, (stored[0] / mpp, stored[1] / mpp))
