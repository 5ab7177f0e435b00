"""Token dropping: a transformer never sees the patches that are removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medxai.explain.masking.operator import Fill, OperatorInfo
from medxai.explain.masking.tokens import dropping, find_tokens
from medxai.explain.split import infer

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = OperatorInfo(
    name="token_drop",
    title="Token dropping",
    reference="Balasubramanian and Feizi 2022",
    soft=False,
    place="network",
    caveat="patches that are removed in part stay whole",
)
_POOL = {1: functional.adaptive_max_pool1d, 2: functional.adaptive_max_pool2d, 3: functional.adaptive_max_pool3d}


def prepare(run: Run) -> Fill:
    """Leave out tokens of patches without a kept voxel, after their positions were added; others keep theirs."""
    tokens = find_tokens(run.shared.forward, run.shared.inputs)
    size = run.samples_at_once

    def query(masks: Tensor, rows: Tensor) -> Tensor:
        kept = (masks[:, None] > 0.5).float()
        seen = _POOL[len(run.spatial)](kept, tokens.layout.grid).flatten(1) > 0
        found: Tensor | None = None
        counts = seen.sum(1)
        for count in sorted(set(counts.tolist())):  # rows of one length make a batch
            for part in torch.split(torch.nonzero(counts == count).flatten(), size):
                chosen = torch.nonzero(seen[part])[:, 1].view(len(part), count)
                with dropping(run.network, tokens, chosen):
                    which = rows[part]
                    output = infer(run.shared.forward, run.shared.inputs.replace(run.x[which], which)).float()
                if found is None:
                    found = output.new_zeros(len(masks), *output.shape[1:])
                found[part] = output
        assert found is not None  # noqa: S101
        return found

    return query
