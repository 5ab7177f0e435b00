"""Token activation maps and their filter against properties and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medxai.errors import ExplainError
from medxai.explain.rank_filter import rank_gaussian_filter
from medxai.explain.token_map import TokenActivationMap, gradient_activation, logit_activation


def brute(values: np.ndarray) -> np.ndarray:
    """The definition for one image, window by window."""
    padded = np.pad(values, 1, mode="reflect")
    result = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        window = np.sort(padded[tuple(slice(i, i + 3) for i in index)].ravel())
        mean = window.mean()
        if mean <= 0:
            continue
        sigma = window.std() / mean
        middle = len(window) // 2
        if sigma < 1e-6:
            result[index] = window[middle]
            continue
        ranks = (np.arange(len(window)) - middle) * 4 / middle
        weights = np.exp(-(ranks**2) / (2 * sigma**2))
        result[index] = (window * weights).sum() / weights.sum()
    return result


@pytest.mark.parametrize("shape", [(5, 7), (3, 4, 5)])
def test_filter_is_its_definition(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).gamma(0.7, size=shape).astype(np.float32)
    values[values < 0.1] = 0
    ours = rank_gaussian_filter(torch.from_numpy(values)[None])[0].numpy()
    assert np.allclose(ours, brute(values), rtol=1e-4, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(0, 10_000))
def test_filter_stays_within_its_window(height: int, width: int, seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).gamma(0.5, size=(1, height, width)).astype(np.float32))
    result = rank_gaussian_filter(values)
    padded = nn.functional.pad(values[:, None], (1, 1, 1, 1), mode="reflect")
    assert (result <= nn.functional.max_pool2d(padded, 3, 1)[:, 0] + 1e-6).all()
    assert (result >= -nn.functional.max_pool2d(-padded, 3, 1)[:, 0] - 1e-6).all()


def test_filter_of_constants_and_outliers() -> None:
    flat = torch.full((2, 4, 5), 0.3)
    assert torch.allclose(rank_gaussian_filter(flat), flat)
    assert (rank_gaussian_filter(torch.zeros(1, 4, 5)) == 0).all()
    lonely = flat.clone()
    lonely[0, 2, 2] = 0.35  # a weak outlier is what the median ignores
    assert rank_gaussian_filter(lonely)[0, 2, 2] == pytest.approx(0.3, abs=1e-4)
    assert torch.isfinite(rank_gaussian_filter(torch.rand(1, 1, 6))).all()
    with pytest.raises(ValueError, match="odd"):
        rank_gaussian_filter(flat, 4)


def test_a_leaking_word_is_taken_out() -> None:
    """The second word's map is its own place plus a copy of the first word's."""
    first, second = torch.zeros(6, 8), torch.zeros(6, 8)
    first[1:3, 1:3] = 1
    second[4, 6] = 0.8
    tam = TokenActivationMap((6, 8), size=0)
    tam.explain("opacity", first.flatten(), [0.1])
    clean = tam.explain("effusion", (second + 0.9 * first).flatten(), [0.1, 0.7])
    cosine = torch.cosine_similarity(clean.map.flatten(), first.flatten(), dim=0)
    assert cosine < 0.05
    assert clean.map.argmax() == second.argmax()
    rest = clean.raw - clean.interference
    assert abs(float((rest * clean.interference).sum())) < 1e-4 * float(clean.interference.square().sum())
    plain = TokenActivationMap((6, 8), size=0, causal=False)
    plain.explain("opacity", first.flatten(), [0.1])
    assert (
        torch.cosine_similarity(
            plain.explain("effusion", (second + 0.9 * first).flatten(), [0.1, 0.7]).map.flatten(),
            first.flatten(),
            dim=0,
        )
        > 0.8
    )


def test_a_word_that_is_only_interference_is_empty() -> None:
    first = torch.rand(12)
    tam = TokenActivationMap((3, 4))
    tam.explain("no", first, [0.2])
    again = tam.explain("acute", first * 0.5, [0.0, 1.0])
    assert again.empty or again.map.max() < 1e-4
    repeated = tam.explain("no", first, [0.0, 1.0, 0.0])
    assert repeated.interference.max() == 0 or not repeated.empty  # its own earlier self is no interference


def test_image_and_text_share_one_scale() -> None:
    tam = TokenActivationMap((2, 2), size=0)
    item = tam.explain("the", torch.tensor([0.1, 0.2, 0.0, 0.1]), [2.0, 0.5])
    assert item.text.max() == 1
    assert item.map.max() == pytest.approx(0.1)
    flat = TokenActivationMap((2, 2), size=0).explain("x", torch.full((4,), 0.5))
    assert (flat.map == 0).all()


def test_volumes_and_video() -> None:
    values = torch.rand(3 * 4 * 5)
    whole = TokenActivationMap((3, 4, 5)).explain("nodule", values).map
    frames = TokenActivationMap((3, 4, 5), frames=True).explain("nodule", values).map
    assert whole.shape == frames.shape == (3, 4, 5)
    assert not torch.allclose(whole, frames)


def test_bad_tokens() -> None:
    with pytest.raises(ExplainError, match="do not fill the grid"):
        TokenActivationMap((3, 4)).explain("x", torch.rand(11))
    with pytest.raises(ExplainError, match="NaN"):
        TokenActivationMap((3, 4)).explain("x", torch.full((12,), float("nan")))


class Reporter(nn.Module):
    """A report decoder in small: image patches attended by a recurrent state that emits words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(5, 8)
        self.cell, self.head = nn.GRUCell(16, 8), nn.Linear(8, 5)

    def step(
        self, features: torch.Tensor, state: torch.Tensor, word: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = (features @ state[0]).softmax(0)
        state = self.cell(torch.cat((weights @ features, self.words(word)))[None], state)
        return self.head(state)[0], state


def test_a_report_model_end_to_end() -> None:
    """Each generated word by the gradient form; the logit form where features live in the head's space."""
    model, patches = Reporter(), torch.randn(12, 8)
    features = patches.clone().requires_grad_()
    state, word = torch.randn(1, 8), torch.tensor(0)
    tam = TokenActivationMap((3, 4))
    for step in range(3):
        logits, state = model.step(features, state, word)
        word = logits.argmax()
        item = tam.explain(f"word{int(word)}-{step}", gradient_activation(features, logits[word]), torch.rand(2 + step))
        assert item.map.shape == (3, 4)
        assert 0 <= item.map.min() <= item.map.max() <= 1
    assert logit_activation(patches, model.head.weight[1]).shape == (12,)
    planted = patches.clone()
    planted[7] = 10 * model.head.weight[1].detach()
    assert (
        TokenActivationMap((3, 4), size=0)
        .explain("planted", logit_activation(planted, model.head.weight[1]))
        .map.argmax()
        == 7
    )
    with pytest.raises(ExplainError, match="does not depend"):
        gradient_activation(features, model.head.weight.sum())
