"""Many mixtures of two images by smooth masks, ``base + (clean - base) M``, made inside the network's graph.

A mask enlarged from a coarse grid is a matrix for each axis; the graph takes the small masks, so that no image is
made outside it. Where the grid has few cells more is saved: ``M = sum_c m_c U_c``, what comes before the first
activation of a network is affine, and its result for every mixture is the same sum of what it gives for the cells:
a product of small matrices in place of the first convolution. The results are those of the whole network up to
rounding; the first one of each kind is compared with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medxai.predict.openvino_engine import TOLERANCE, Engine

logger = logging.getLogger(__name__)

#: Cells beyond which their table costs what it saves, and the largest table in bytes.
_CELLS, _TABLE = 64, 1 << 28
#: Images that go through the first layers, as a share of the mixtures, beyond which little is saved.
_MOST = 0.5


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images, and how masks between them are enlarged.

    Attributes:
        clean: ``[C, *S]`` float32.
        base: ``[C, *S]`` float32.
        weights: ``[S_a, s_a]`` for each axis.
    """

    clean: Tensor
    base: Tensor
    weights: Sequence[Tensor]

    @property
    def key(self) -> Hashable:
        """See `Front`."""
        return "masks", tuple(matrix.numpy().tobytes() for matrix in self.weights)

    @cached_property
    def given(self) -> Sequence[Tensor]:
        """See `Front`."""
        return (self.clean - self.base)[None].contiguous(), self.base[None].contiguous()

    def mixtures(self, masks: Tensor) -> Tensor:
        """Images ``[N, C, *S]`` of masks ``[N, *s]``."""
        for number, matrix in enumerate(self.weights, start=1):
            masks = torch.movedim(torch.movedim(masks, number, -1) @ matrix.T, -1, number)
        return self.base + (self.clean - self.base) * masks[:, None]

    def make(self, op: Any, shape: Sequence[int]) -> tuple[list[Any], Any]:
        """See `Front`; the samples are masks ``[B, *s]``."""
        batch, _, *size = shape
        cells = [matrix.shape[1] for matrix in self.weights]
        difference, base = (op.parameter([1, *shape[1:]], np.float32) for _ in range(2))
        masks = op.parameter([batch, *cells], np.float32)
        made = masks
        for number, matrix in enumerate(self.weights):  # the last axis, of the most values, is one large product
            before, after = [batch, *size[:number]], cells[number + 1 :]
            flat = [prod(before), cells[number], prod(after)] if after else [prod(before), cells[number]]
            made = op.reshape(made, op.constant(np.array(flat)), False)
            constant = op.constant(matrix.numpy() if after else np.ascontiguousarray(matrix.numpy().T))
            made = op.matmul(constant, made, False, False) if after else op.matmul(made, constant, False, False)
        made = op.reshape(made, op.constant(np.array([batch, 1, *size])), False)
        return [difference, base, masks], op.add(op.multiply(made, difference), base)


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums of what the first layers give for the cells of a grid.

    Attributes:
        pair: of images.
        rows: ``[K + 1, F * prod(o)]`` for the K cells, and for the pair's base.
    """

    pair: Pair
    rows: Tensor

    @property
    def key(self) -> Hashable:
        """See `Front`."""
        return "sums", len(self.rows)

    @property
    def given(self) -> Sequence[Tensor]:
        """See `Front`."""
        return (self.rows,)

    def make(self, op: Any, shape: Sequence[int]) -> tuple[list[Any], Any]:
        """See `Front`; the samples are factors ``[B, K + 1]``."""
        table = op.parameter(list(self.rows.shape), np.float32)
        factors = op.parameter([shape[0], len(self.rows)], np.float32)
        made = op.matmul(factors, table, False, False)
        return [table, factors], op.reshape(made, op.constant(np.array(shape)), False)


class Blends:
    """A network for mixtures of two images.

    Args:
        engine: the whole network.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._affine = engine.affine
        self._behind = engine if self._affine is None else engine.behind(self._affine)
        self._trusted: dict[type, bool] = {}
        self._lock = threading.Lock()

    def ready(self, pair: Pair, total: int) -> Pair | Sums:
        """The pair, or what the first layers give for its cells where that is better for so many masks."""
        cells = [matrix.shape[1] for matrix in pair.weights]
        count, affine = prod(cells), self._affine
        few = count <= _CELLS and count + 2 <= _MOST * total
        if affine is None or not few or 4 * (count + 1) * prod(affine.shape) > _TABLE:
            return pair
        images = pair.mixtures(torch.eye(count).view(count, *cells)) - pair.base
        found = self._engine.until(affine, torch.cat([images, pair.base[None], torch.zeros_like(pair.base)[None]]))
        found[:-2] -= found[-1]  # linear for the cells, affine for the base
        return Sums(pair, found[:-1].flatten(1))

    def __call__(self, made: Pair | Sums, masks: Tensor) -> Tensor | None:
        """Logits ``[N, K]`` of mixtures, or None if they turned out to be wrong.

        Args:
            made: by `ready`.
            masks: ``[N, *s]`` before they are enlarged.
        """
        kind = type(made)
        with self._lock:
            if self._trusted.get(kind) is False:
                return None
            masks = masks.float()
            if isinstance(made, Sums):
                factors = torch.cat([masks.flatten(1), torch.ones(len(masks), 1)], 1)
                logits, pair = self._behind.through(made, factors)[0], made.pair
            else:
                logits, pair = self._engine.through(made, masks)[0], made
            if kind not in self._trusted:
                expected = self._engine(pair.mixtures(masks[:1]))[0]
                error = float((logits[:1] - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
                self._trusted[kind] = error <= TOLERANCE[self._engine.precision]
                if not self._trusted[kind]:
                    logger.warning("mixtures differ from the whole network by %.1e: it is run as a whole", error)
            return logits if self._trusted[kind] else None
