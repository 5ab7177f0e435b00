"""A limit on how many objects are taken in a second, over all callers."""

from __future__ import annotations

import threading
import time


class Rate:
    """Gives out turns; whoever is too fast is told how long to wait.

    Args:
        per_second: turns a second; as many may be taken at once after a pause.
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second)
        self._left = self._burst
        self._seen = time.monotonic()
        self._lock = threading.Lock()

    def wait(self) -> float:
        """Take a turn, sleeping until it is ours; returns the seconds slept."""
        with self._lock:
            moment = time.monotonic()
            self._left = min(self._burst, self._left + (moment - self._seen) * self._per_second)
            self._seen = moment
            self._left -= 1.0
            pause = max(0.0, -self._left / self._per_second)
        if pause:
            time.sleep(pause)
        return pause
