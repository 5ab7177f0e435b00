"""Mean map of a group of subjects, the same in whatever order they come."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Maps lie between 0 and 1 and are summed as whole numbers of this many parts, which no order changes.
_PARTS = 2**40
#: Subjects beyond which the sum of whole numbers could overflow.
_MOST = 2**22


class GroupMean:
    """Plain mean of maps from 0 to 1; every subject counts the same.

    The published code halves the sum of the old mean and the new map, in which the last subject counts half.
    """

    def __init__(self) -> None:
        self.subjects = 0
        self._sum: npt.NDArray[np.int64] | None = None

    def add(self, values: npt.ArrayLike) -> None:
        """Add one subject's map.

        Raises:
            ValueError: another shape than before, or values outside 0..1.
        """
        array = np.asarray(values, dtype=float)
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError("a map of a group lies between 0 and 1")
        if self._sum is None:
            self._sum = np.zeros(array.shape, np.int64)
        if array.shape != self._sum.shape or self.subjects >= _MOST:
            message = f"map {self.subjects + 1} has shape {array.shape}, those before {self._sum.shape}"
            raise ValueError(message)
        self._sum += np.rint(array * _PARTS).astype(np.int64)
        self.subjects += 1

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """Mean of the subjects so far, exact to 1e-12.

        Raises:
            ValueError: there was none.
        """
        if self._sum is None:
            raise ValueError("a group without subjects has no mean")
        return self._sum / (_PARTS * self.subjects)
