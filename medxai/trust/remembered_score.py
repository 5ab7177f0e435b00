"""Answers of a model about sets of regions: each set is asked once, and what was answered outlives an interruption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medxai.files import write_bytes
from medxai.trust.network_removal import Array, Mask

#: Seconds between two times that answers are kept.
_KEEP_EVERY = 30.0


class Remembered:
    """A score that asks its model once about each set.

    Args:
        score: ``removed [P]`` -> one row a subject, ``[S]`` or ``[S, C]``.
        path: file of the answers; None to keep them in memory alone.
        key: of everything the answers depend on; a file of another key is not read.
    """

    def __init__(self, score: Callable[[Mask], npt.ArrayLike], path: Path | None = None, key: str = "") -> None:
        self._score, self._path, self._key = score, path, key
        self._rows: dict[bytes, Array] = self._read()
        self._kept, self._when = len(self._rows), time.monotonic()

    def __call__(self, removed: Mask) -> Array:
        """Rows of a set, see the class."""
        name = np.packbits(removed).tobytes()
        if name not in self._rows:
            self._rows[name] = np.asarray(self._score(removed), dtype=float)
            if time.monotonic() - self._when > _KEEP_EVERY:
                self.keep()
        return self._rows[name]

    def ask(self, sets: Iterable[Mask], progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Ask about all sets.

        Args:
            sets: the same one may come twice.
            progress: told how many different sets are answered, and of how many, after each new one.
        """
        wanted = {np.packbits(removed).tobytes(): removed for removed in sets}
        new = [removed for name, removed in wanted.items() if name not in self._rows]
        for count, removed in enumerate(new, len(wanted) - len(new) + 1):
            self(removed)
            progress(count, len(wanted))
        self.keep()

    def keep(self) -> None:
        """Write the answers, if there are new ones."""
        from safetensors.numpy import save

        self._when = time.monotonic()
        if self._path is None or len(self._rows) == self._kept:
            return
        names = np.stack([np.frombuffer(name, np.uint8) for name in self._rows])
        content = save({"rows": np.stack(list(self._rows.values())), "sets": names}, {"key": self._key})
        write_bytes(self._path, content)
        self._kept = len(self._rows)

    def _read(self) -> dict[bytes, Array]:
        from safetensors import SafetensorError, safe_open

        if self._path is None or not self._path.is_file():
            return {}
        try:
            with safe_open(self._path, "numpy") as stored:
                if (stored.metadata() or {}).get("key") != self._key:
                    return {}
                sets, rows = stored.get_tensor("sets"), stored.get_tensor("rows")
        except (OSError, SafetensorError):
            return {}
        return {name.tobytes(): row for name, row in zip(sets, rows, strict=True)}
