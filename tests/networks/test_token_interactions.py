from __future__ import annotations

import torch

from medxai.networks.token_interactions import Attention, TokenInteractions, exchange, sine_positions


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours = Attention(24, 3, 8)
    reference = torch.nn.MultiheadAttention(24, 3, bias=True, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.key_value.weight)))
        reference.in_proj_bias.zero_()
        reference.out_proj.weight.copy_(ours.out.weight)
        reference.out_proj.bias.copy_(ours.out.bias)
    x, y = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    assert torch.allclose(ours(x), reference(*[ours.norm(x)] * 3)[0], atol=1e-5)
    assert torch.allclose(ours(x, y), reference(ours.norm(x), *[ours.norm(y)] * 2)[0], atol=1e-5)


def test_thirds_come_from_the_partners() -> None:
    streams = {name: torch.full((1, 2, 9), float(number)) for number, name in enumerate(("alff", "dfc", "sfc", "fa"))}
    mixed = {name: value[0, 0].tolist() for name, value in exchange(streams).items()}
    assert mixed == {
        "alff": [0, 0, 0, 1, 1, 1, 3, 3, 3],
        "dfc": [1, 1, 1, 0, 0, 0, 2, 2, 2],
        "sfc": [2, 2, 2, 1, 1, 1, 0, 0, 0],
        "fa": [3, 3, 3, 1, 1, 1, 0, 0, 0],
    }
    alone = exchange({"alff": streams["alff"], "fa": streams["fa"]})
    assert alone["alff"][0, 0].tolist() == [0, 0, 0, 0, 0, 0, 3, 3, 3]


def test_positions_are_sines() -> None:
    positions = sine_positions(16, 8)
    assert torch.allclose(positions[:, 0], torch.arange(16.0).sin(), atol=1e-6)
    assert torch.allclose(positions[3, 7], torch.tensor(3 / 10000**0.75).cos(), atol=1e-6)


def test_it_counts_what_its_widths_say() -> None:
    attention = 2 * 512 + 3 * 512 * 256 + 256 * 512 + 512
    refine = attention + 2 * 512 + 512 * 16 + 16 + 16 * 512 + 512
    tokens = 2 * 32 + 32 * 512 + 512 + 2 * 512
    network = TokenInteractions(("alff", "dfc", "sfc", "fa"), 512, 6, 16, 16, 16)
    expected = 4 * tokens + 6 * 4 * attention + 2 * refine + 2 * attention + refine
    assert sum(p.numel() for p in network.parameters()) == expected
    alone = TokenInteractions(("alff", "fa"), 512, 6, 16, 16, 16)
    assert sum(p.numel() for p in alone.parameters()) == 2 * tokens + 12 * attention + 2 * refine


def test_each_modality_reaches_the_vector() -> None:
    torch.manual_seed(0)
    network = TokenInteractions(("alff", "dfc", "sfc", "fa"), 32, 2, 2, 8, 16).eval()
    inputs = {name: torch.randn(2, 512) for name in ("alff", "dfc", "sfc", "fa")}
    whole = network(inputs)
    assert whole.shape == (2, 32)
    for name in inputs:
        assert not torch.allclose(network(inputs | {name: torch.randn(2, 512)}), whole, atol=1e-3)
