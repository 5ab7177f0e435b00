"""AttnLRP: relevance through a transformer by a modified gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medxai.explain.method import MethodInfo, NoOptions
from medxai.explain.token_relevance import token_relevance

if TYPE_CHECKING:
    from torch import Tensor

    from medxai.explain.run import Run

INFO = MethodInfo(
    name="attnlrp",
    title="AttnLRP",
    family="attention",
    reference="Achtibat et al. 2024",
    passes="1F+1BB",
    graph="none",
    layer="none",
    needs="a transformer",
    caveat="signed; what biases absorb is missing and reported as conservation",
)
Options = NoOptions


def attribute(run: Run, _options: NoOptions) -> Tensor:
    """Relevance of the patches' embeddings; softmax and products share relevance between their arguments."""
    return token_relevance(run, through_attention=True)
