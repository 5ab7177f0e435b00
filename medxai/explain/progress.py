"""How far a method that runs the network many times has come, and how long it will still take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One report.

    Attributes:
        method: registry name.
        done: samples sent through the network so far.
        total: samples in all.
        seconds_left: estimate from the pace so far.
    """

    method: str
    done: int
    total: int
    seconds_left: float


Report = Callable[[Progress], None]


class Meter:
    """Counts samples of one method and reports them."""

    def __init__(self, method: str, report: Report | None) -> None:
        self._method, self._report = method, report
        self._done, self._total = 0, 0
        self._start = time.perf_counter()

    def expect(self, samples: int) -> None:
        """Announce that many more samples."""
        self._total += samples

    def advance(self, samples: int) -> None:
        """Count samples that have gone through the network."""
        self._done += samples
        self._total = max(self._total, self._done)
        if self._report is not None:
            pace = (time.perf_counter() - self._start) / self._done
            self._report(Progress(self._method, self._done, self._total, pace * (self._total - self._done)))
