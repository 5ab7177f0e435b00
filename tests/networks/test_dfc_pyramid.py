from __future__ import annotations

import pytest
import torch
from torch import nn

from medxai.networks.dfc_pyramid import RATES, TARGET_LAYER, DfcPyramid, MaxPool, SlicePair2d, partners, window_means


def _grids(network: DfcPyramid, size: tuple[int, int, int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    encoded: list[tuple[int, ...]] = []
    reduced: list[tuple[int, ...]] = []
    for modules, into in ((network.encoders, encoded), (network.reductions, reduced)):
        for module in modules:
            module.register_forward_hook(lambda _m, _i, out, into=into: into.append(tuple(out.shape[1:])))
    with torch.inference_mode():
        assert network(torch.rand(1, 1, *size)).shape == (1, 512)
    return encoded, reduced


def test_grids_are_the_published_ones() -> None:
    encoded, reduced = _grids(DfcPyramid(channels=8).eval(), (164, 164, 120))
    assert encoded == [(8, 41, 41, 30), (8, 41, 41, 6), (16, 21, 21, 3), (32, 11, 11, 2), (64, 6, 6, 1)]
    assert reduced == [(16, 21, 21, 8), (32, 11, 11, 2), (64, 6, 6, 1), (128, 3, 3, 1)]


def test_the_pool_is_the_published_one_at_its_size() -> None:
    x = torch.randn(2, 128, 3, 3, 1)
    assert torch.allclose(DfcPyramid(8).pool(x), torch.nn.functional.avg_pool3d(x, (2, 2, 1), stride=1), atol=1e-6)


@pytest.mark.parametrize("size", [(40, 40, 30), (94, 94, 60), (16, 16, 7), (5, 5, 1)])
def test_smaller_courses_have_an_embedding_as_long(size: tuple[int, int, int]) -> None:
    _grids(DfcPyramid(channels=8).eval(), size)


def test_lengths_of_the_course() -> None:
    course = torch.randn(2, 1, 3, 3, 120)
    means = [window_means(course, rate.windows) for rate in RATES]
    assert [mean.shape[-1] for mean in means] == [120, 24, 12, 6, 3]
    assert torch.allclose(means[3][..., 2], course[..., 40:60].mean(-1), atol=1e-6)
    assert all(torch.allclose(mean.mean(-1), course.mean(-1), atol=1e-6) for mean in means)
    # A course that is no multiple ends with the mean of what is left, one shorter than a rate is one mean.
    assert torch.allclose(window_means(course[..., :23], 10)[..., 2], course[..., 20:23].mean(-1), atol=1e-6)
    assert torch.allclose(window_means(course[..., :23], 40)[..., 0], course[..., :23].mean(-1), atol=1e-6)


def test_a_fine_step_meets_the_coarse_one_it_lies_in() -> None:
    assert partners(30, 6).tolist() == [t // 5 for t in range(30)]
    assert partners(8, 3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert partners(2, 2).tolist() == [0, 1]
    assert partners(8, 5).max() == 3
    assert partners(7, 2).max() == 1


def test_every_slice_is_brought_together_with_its_own_partner() -> None:
    # A pair that adds its two slices: what comes out is known for every channel and step.
    class Adds(torch.nn.Module):
        def forward(self, pairs: torch.Tensor) -> torch.Tensor:
            return pairs.sum(1)

    from medxai.networks.dfc_pyramid import _together

    fine, coarse = torch.randn(2, 3, 4, 4, 6), torch.randn(2, 3, 4, 4, 2)
    assert torch.equal(_together(Adds(), fine, coarse), fine + coarse.repeat_interleave(3, -1))


def test_pieces_do_not_change_what_is_brought_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = SlicePair2d(8).eval()
    slices = torch.randn(11, 2, 5, 5)
    with torch.inference_mode():
        whole = pair(slices)
        monkeypatch.setattr("medxai.networks.dfc_pyramid._CHUNK", 4 * 8 * 25 * 3)
        assert torch.allclose(pair(slices), whole, atol=1e-6)


def test_it_counts_what_its_widths_say() -> None:
    def block(width_in: int, hidden: int, width: int, shortcut: bool = True) -> int:
        convolutions = 27 * (width_in * hidden + hidden * width + shortcut * width_in * width)
        return convolutions + 2 * (hidden + width + shortcut * width)

    encoders = sum(block(1, 512, width) for width in (8, 8, 16, 32, 64))
    pair = 2 * 512 + 512 * 512 + 512 + 2 + 2 * (512 + 512 + 1 + 1)
    reductions = sum(block(a, 512, b) for a, b in ((8, 16), (16, 32), (32, 64), (64, 128)))
    last = block(128, 128, 128, shortcut=False)
    network = DfcPyramid()
    assert sum(p.numel() for p in network.parameters()) == encoders + 4 * pair + reductions + last
    assert network.get_submodule(TARGET_LAYER).conv2.out_channels == 64


@pytest.mark.parametrize(("pool", "shape"), [(nn.MaxPool2d, (5, 3, 7, 4)), (nn.MaxPool3d, (2, 3, 7, 4, 5))])
def test_pools_by_shifts(pool: type[nn.Module], shape: tuple[int, ...]) -> None:
    """Evaluation gives the same bits as training and as PyTorch's pool."""
    torch.manual_seed(0)
    data, ours = torch.randn(shape) - 3, MaxPool(len(shape) - 2)
    wanted = pool(3, stride=1, padding=1)(data)
    assert torch.equal(ours.train()(data), wanted)
    assert torch.equal(ours.eval()(data), wanted)
