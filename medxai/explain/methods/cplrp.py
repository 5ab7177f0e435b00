"""CP-LRP: relevance through a transformer by a modified gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.method import MethodInfo, NoOptions
from medxai.explain.token_relevance import token_relevance

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="cplrp",
    title="CP-LRP",
    family="attention",
    reference="Ali et al. 2022",
    passes="1F+1BB",
    graph="none",
    layer="none",
    needs="a transformer",
    caveat="ignores how the attention itself came about",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Relevance of the patches' embeddings; attention weights are held constant."""
    return token_relevance(run, through_attention=False)
