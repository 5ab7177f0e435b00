"""The one way from masks to outputs that all perturbation methods share."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medxai.errors import ExplainError
from medxai.explain.enlarge import enlarge
from medxai.explain.masking.operator import Blend
from medxai.explain.masking.registry import get_operator

if TYPE_CHECKING:
    from medxai.explain.run import Run
    from medxai.explain.target import Target
    from medxai.explain.windows import Windows

#: What a perturbed image is asked for.
SCORES = ("logit", "prob")


class Masker:
    """Puts masked versions of a run's images through its network.

    Args:
        run: with images, target and network; the operator's name goes into its report.
        name: operator; None takes the one of the call.

    Attributes:
        name: of the operator in use.
    """

    def __init__(self, run: Run, name: str | None = None) -> None:
        self._run = run
        operator = get_operator(name or run.shared.masking)
        self.name = operator.INFO.name
        self._info, self._fill = operator.INFO, operator.prepare(run)
        run.report["masking"] = self.name
        if operator.INFO.caveat:
            run.report["masking_caveat"] = operator.INFO.caveat

    def images(self, masks: Tensor, rows: Tensor) -> Tensor:
        """Masked images ``[N, C, *S]``.

        Args:
            masks: ``[N, *S]``, 1 keeps and 0 removes.
            rows: ``[N]``, of which sample each is a version.

        Raises:
            ExplainError: the operator works inside the network.
        """
        if self._info.place == "network":
            msg = f"masking {self.name} works inside the network and makes no images; choose another operator"
            raise ExplainError(msg)
        return self._fill(masks if self._info.soft else (masks > 0.5).to(masks.dtype), rows)

    def outputs(self, masks: Tensor, rows: Tensor, key: Hashable = None) -> Tensor:
        """Outputs ``[N, ...]`` float32 of the network for masked images; arguments as in `images`.

        Args:
            masks: see `images`.
            rows: see `images`.
            key: says what was done; outputs ``[N, K]`` asked for again with the same key come from memory.
        """
        known = self._recall(key, len(masks))
        if known is not None:
            return known
        parts = []
        for piece, which in self._pieces(masks, rows):
            if self._info.place == "network":
                parts.append(self._fill(piece, which))
                self._run.meter.advance(len(piece))
            else:
                parts.append(self._run.outputs(self.images(piece, which), which))
        return self._keep(key, torch.cat(parts))

    def without(self, windows: Windows, index: Tensor, rows: Tensor, key: Hashable = None) -> Tensor:
        """As `outputs`, for images without one window each.

        Args:
            windows: of a grid.
            index: ``[N]`` which of them is removed.
            rows: see `images`.
            key: see `outputs`.
        """
        known = self._recall(key, len(index))
        if known is not None:
            return known
        if isinstance(self._fill, Blend):
            found = self._run.replaced(self._fill, windows.boxes(index), rows)
            if found is not None:
                return self._keep(key, found)
        return self.outputs(windows.masks(index), rows, key)

    def enlarged(self, maps: Tensor, rows: Tensor, totals: Tensor, key: Hashable = None) -> Tensor:
        """As `outputs`, for masks that are linear between the cells of a coarse grid.

        Args:
            maps: ``[N, *s]`` on that grid.
            rows: see `images`.
            totals: ``[B]`` masks that will be asked for of each sample.
            key: see `outputs`.
        """
        known = self._recall(key, len(maps))
        if known is not None:
            return known
        if self._info.soft and isinstance(self._fill, Blend):
            found = self._run.mixtures(self.name, self._fill, maps, rows, totals)
            if found is not None:
                return self._keep(key, found)
        return self.outputs(enlarge(maps, self._run.spatial), rows, key)

    def scores(self, masks: Tensor, rows: Tensor, *, score: str = "logit", key: Hashable = None) -> Tensor:
        """Scores ``[N]``: the target's own (``logit``) or the probability of its class (``prob``)."""
        return read_score(self._run.target, self.outputs(masks, rows, key), rows, score)

    def _recall(self, key: Hashable, count: int) -> Tensor | None:
        known = None if key is None else self._run.shared.memo.get((self.name, key))
        if known is not None:
            self._run.meter.advance(count)
        return known

    def _keep(self, key: Hashable, found: Tensor) -> Tensor:
        if key is not None and found.ndim == 2:
            self._run.shared.memo[self.name, key] = found
        return found

    def _pieces(self, masks: Tensor, rows: Tensor) -> zip[tuple[Tensor, Tensor]]:
        # Operators inside the network cut the batch up themselves, because some sort it first.
        size = len(masks) if self._info.place == "network" else self._run.samples_at_once
        return zip(torch.split(masks, size), torch.split(rows, size), strict=True)


def read_score(target: Target, output: Tensor, rows: Tensor | None, score: str) -> Tensor:
    """Score ``[N]`` of outputs, see `Masker.scores`."""
    return target.probability(output, rows) if score == "prob" else target(output, rows)


def check_score(score: str) -> None:
    """Reject an unknown kind of score.

    Raises:
        ValueError: neither ``logit`` nor ``prob``.
    """
    if score not in SCORES:
        raise ValueError(f"score is {' or '.join(SCORES)}, not {score!r}")


def check_operator(name: str | None) -> None:
    """Reject an unknown operator.

    Raises:
        ValueError: there is no such operator.
    """
    if name is not None:
        try:
            get_operator(name)
        except ExplainError as error:
            raise ValueError(str(error)) from error
