"""Token activation map: what in the image each generated word of a report rests on.

Li et al. 2025 (TAM). A word's raw activation at every earlier position is the logit of that word there; what
words before it explain already is subtracted; the rest is scaled together with the words it was read from, so
that leaning on the image and leaning on the text can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medxai.errors import ExplainError
from medxai.explain.rank_filter import rank_gaussian_filter

_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class WordMap:
    """Explanation of one word.

    Attributes:
        word: the token's text.
        map: ``[*grid]`` 0..1, filtered; scaled together with `text`.
        raw: ``[*grid]`` activation before interference was taken out.
        text: ``[n]`` 0..1 share of the earlier text tokens.
        interference: ``[*grid]`` what earlier words explain, as it was subtracted; zero when there was none.
        empty: nothing in the image speaks for the word.
    """

    word: str
    map: Tensor
    raw: Tensor
    text: Tensor
    interference: Tensor
    empty: bool


@dataclass(eq=False)
class TokenActivationMap:
    """Explains the words of one report in their order; each needs those before it.

    Attributes:
        grid: shape of the image tokens, ``(h, w)`` or ``(d, h, w)``, row-major.
        causal: take out what earlier words explain (estimated causal inference).
        size: width of the rank Gaussian filter; 0 leaves maps unfiltered.
        frames: filter each plane of the first axis by itself, as for a video.
    """

    grid: tuple[int, ...]
    causal: bool = True
    size: int = 3
    frames: bool = False
    _words: list[str] = field(default_factory=list)
    _maps: list[Tensor] = field(default_factory=list)

    def explain(self, word: str, image: Tensor, text: Tensor | Sequence[float] = ()) -> WordMap:
        """Explain the next word.

        Args:
            word: its text; earlier tokens of the same text are no interference.
            image: ``[P]`` activation of the word at the image tokens: logits ``<h_j, W_word>`` at those
                positions (`logit_activation`) or gradient times value (`gradient_activation`).
            text: activation of the word at the text positions; its last entries belong to the words explained
                before, in their order, and those in front of them to the prompt.

        Raises:
            ExplainError: the image tokens do not fit the grid, or values are not finite.
        """
        values = image.detach().flatten().float().clamp_min(0)
        context = torch.as_tensor(text, dtype=torch.float32).detach().flatten().to(values).clamp_min(0)
        count = int(torch.tensor(self.grid).prod())
        if len(values) != count:
            msg = f"{len(values)} image tokens do not fill the grid {list(self.grid)} of {count}"
            raise ExplainError(msg)
        if not (torch.isfinite(image).all() and torch.isfinite(context).all()):
            msg = f"the activation of {word!r} holds NaN or infinite values"
            raise ExplainError(msg)
        interference = self._interference(word, values, context)
        clean = (values - interference).clamp_min(0)
        self._words.append(word)
        self._maps.append(values)  # raw: interference must not compound
        both = torch.cat((clean, context))
        low, high = both.min(), both.max()
        both = (both - low) / (high - low) if bool(high > low) else torch.zeros_like(both)
        shown = both[:count].view(self.grid)
        if self.size:
            planes = shown if self.frames else shown[None]
            shown = rank_gaussian_filter(planes, self.size).view(self.grid)
        return WordMap(
            word,
            shown,
            values.view(self.grid),
            both[count:],
            interference.view(self.grid),
            not bool(clean.max() > 0),
        )

    def _interference(self, word: str, values: Tensor, context: Tensor) -> Tensor:
        """Least-squares share of the map that a mixture of earlier words' maps, weighted by the text, explains."""
        nothing = torch.zeros_like(values)
        earlier = len(self._words)
        if not self.causal or not earlier or len(context) < earlier:
            return nothing
        weights = context[len(context) - earlier :].clone()
        for index, other in enumerate(self._words):
            if other == word:
                weights[index] = 0
        if float(weights.sum()) <= 0:
            return nothing
        mixture = (weights / (weights.sum() + _EPS)) @ torch.stack(self._maps)
        energy = float(mixture @ mixture)
        if energy < 1e-12:
            return nothing
        return mixture * (float(values @ mixture) / energy)


def logit_activation(hidden: Tensor, head: Tensor) -> Tensor:
    """Logit of one word at every position, ``relu(<h_j, w>)``: only that word's column of the head is needed.

    Args:
        hidden: ``[T, E]`` last hidden states.
        head: ``[E]`` row of the language model's head for the word.
    """
    return (hidden.float() @ head.float()).clamp_min(0)


def gradient_activation(features: Tensor, score: Tensor) -> Tensor:
    """``relu(sum_k G_jk A_jk)`` ``[P]``, for report models whose image features are not in the decoder's space.

    Args:
        features: ``[P, K]`` image features with a graph up to `score`.
        score: logit of the word.

    Raises:
        ExplainError: the word does not depend on the features.
    """
    (gradient,) = torch.autograd.grad(score, features, retain_graph=True, allow_unused=True)
    if gradient is None:
        msg = "the word's logit does not depend on the image features"
        raise ExplainError(msg)
    return (gradient * features.detach()).sum(-1).clamp_min(0)
