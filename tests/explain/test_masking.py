"""Masking operators: what is kept stays, what is removed is replaced as the name says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from medxai.errors import ExplainError
from medxai.explain import explain
from medxai.explain.masking.agreement import compare_operators, rank_correlation
from medxai.explain.masking.linear_fill import linear_fill
from medxai.explain.masking.masker import Masker
from medxai.explain.masking.neighbour_fill import neighbour_fill
from medxai.explain.masking.registry import get_operator, operator_names
from tests.explain.perturbed import Linear, Pooled, make_run

IN_IMAGE = [name for name in operator_names() if get_operator(name).INFO.place == "image"]
SHAPES = [(2, 2, 10, 14), (2, 1, 6, 9, 7)]


def test_all_operators_are_found() -> None:
    """A file is an operator, and its name is the file's."""
    expected = "air blur layer_mask mean mirror neighbour noise_inpaint shuffle token_drop zero"
    assert operator_names() == tuple(expected.split())
    assert [get_operator(name).INFO.name for name in operator_names()] == list(operator_names())
    with pytest.raises(ExplainError, match="did you mean noise_inpaint"):
        get_operator("noise-inpaint2")


@pytest.mark.parametrize("name", IN_IMAGE)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_kept_stays(name: str, shape: tuple[int, ...]) -> None:
    """Kept voxels are equal to the last bit, rows go with their sample, a whole mask changes nothing."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    run = make_run(Linear(torch.ones(shape[1:])), x)
    masker = Masker(run, name)
    masks = (torch.rand(5, *shape[2:]) > 0.4).float()
    masks[3], masks[4] = 1, 0
    rows = torch.tensor([1, 0, 1, 0, 1])
    images = masker.images(masks, rows)
    assert images.shape == (5, *shape[1:])
    assert torch.isfinite(images).all()
    kept = masks[:, None].expand_as(images) > 0
    assert torch.equal(images[kept], x[rows][kept])
    alone = Masker(make_run(run.network, x[1:]), name).images(masks[[0, 2, 4]], torch.zeros(3, dtype=torch.long))
    assert torch.allclose(alone, images[[0, 2, 4]], atol=1e-6)
    assert torch.equal(masker.images(masks, rows), images)
    assert run.report["masking"] == name


@pytest.mark.parametrize("name", IN_IMAGE)
@pytest.mark.parametrize("fill", [0.0, 3.0, 1e30])
def test_constant_and_huge_images(name: str, fill: float) -> None:
    """No NaN, and a constant stays one, except under zero."""
    x = torch.full((1, 1, 8, 10), fill)
    run = make_run(Linear(torch.zeros(1, 8, 10)), x)
    mask = torch.ones(1, 8, 10)
    mask[:, 2:6, 3:7] = 0
    image = Masker(run, name).images(mask, torch.tensor([0]))
    assert torch.isfinite(image).all()
    if name != "zero":
        assert torch.allclose(image, x, rtol=1e-3)


def test_soft_masks_blend_and_hard_operators_cut() -> None:
    """Half a mask is half the image for zero, all of it for neighbour fill from 0.5 on."""
    x = torch.rand(1, 1, 6, 6) + 1
    run = make_run(Linear(torch.ones(1, 6, 6)), x)
    rows = torch.tensor([0])
    assert torch.allclose(Masker(run, "zero").images(torch.full((1, 6, 6), 0.25), rows), x / 4)
    assert torch.equal(Masker(run, "neighbour").images(torch.full((1, 6, 6), 0.75), rows), x)


def test_fill_one_dimension() -> None:
    """Two valid ends meet in the middle."""
    x, m = torch.tensor([[[2.0, 99.0, -99.0, 6.0]]]), torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])
    assert neighbour_fill(x, m, 1).flatten().tolist() == [2, 2, 6, 6]
    far = torch.tensor([[[1.0, 0.0, 0.0, 0.0, 0.0]]])
    assert neighbour_fill(torch.full((1, 1, 5), 4.0), far, 2).flatten().tolist() == [4, 4, 4, 0, 0]
    assert neighbour_fill(torch.full((1, 1, 5), 4.0), far).flatten().tolist() == [4, 4, 4, 4, 4]


@pytest.mark.parametrize("shape", [(5, 6), (4, 3, 5)])
def test_fill_equals_brute_force(shape: tuple[int, ...]) -> None:
    """Means over filled neighbours, diagonals included, round by round."""
    generator = np.random.default_rng(3)
    x, m = generator.normal(size=shape), generator.random(shape) < 0.15
    m[(0,) * len(shape)] = True
    expected, known = np.where(m, x, 0.0), m.copy()
    for _ in range(2):
        before, filled = expected.copy(), known.copy()
        for place in product(*map(range, shape)):
            if filled[place]:
                continue
            around = [tuple(np.add(place, o)) for o in product((-1, 0, 1), repeat=len(shape))]
            near = [before[p] for p in around if all(0 <= i < s for i, s in zip(p, shape, strict=True)) and filled[p]]
            if near:
                expected[place], known[place] = np.mean(near), True
    found = neighbour_fill(torch.tensor(x)[None, None], torch.tensor(m)[None, None], 2)
    assert np.allclose(found[0, 0].numpy(), expected)


def test_fill_along_chosen_axes_only() -> None:
    """A kernel of one voxel along an axis brings no neighbours from there."""
    x = torch.zeros(1, 1, 3, 3, 3)
    m = torch.zeros_like(x)
    m[0, 0, 1, 1, 1], x[0, 0, 1, 1, 1] = 1, 5
    filled = neighbour_fill(x, m, 1, axes=[1, 2])[0, 0]
    assert (filled[1] == 5).all()
    assert (filled[[0, 2]] == 0).all()


@pytest.mark.parametrize("shape", [(12, 11), (9, 10, 8)])
def test_linear_imputation_restores_ramps(shape: tuple[int, ...]) -> None:
    """Constants and linear ramps come back where the hole is away from the border; values stay between neighbours."""
    axes = torch.meshgrid(*[torch.arange(s).float() for s in shape], indexing="ij")
    ramp = 1 + sum((k + 1) * a for k, a in enumerate(axes)) / 10
    keep = torch.ones(1, 1, *shape, dtype=torch.bool)
    hole = (0, 0, *[slice(3, s - 3) for s in shape])
    keep[hole] = False
    spacing = torch.tensor([[1.0, 2.0, 3.0][: len(shape)]])
    values = torch.stack((ramp, torch.full(shape, 2.0)))[None]
    found = linear_fill(torch.where(keep, values, 1e6), keep, spacing, tolerance=1e-7)
    assert torch.allclose(found, values, atol=1e-4)
    noise = torch.randn(1, 1, *shape)
    filled = linear_fill(noise, keep, spacing)
    assert filled[hole].max() <= noise[keep].max()
    assert filled[hole].min() >= noise[keep].min()


def test_shuffle_permutes_what_is_removed() -> None:
    """The histogram of the hole stays, its order does not."""
    x = torch.arange(60.0).view(1, 1, 6, 10)
    mask = torch.ones(1, 6, 10)
    mask[:, 1:5, 2:9] = 0
    image = Masker(make_run(Linear(torch.ones(1, 6, 10)), x), "shuffle").images(mask, torch.tensor([0]))
    hole = (mask == 0)[:, None]
    assert sorted(image[hole].tolist()) == sorted(x[hole].tolist())
    assert (image[hole] != x[hole]).float().mean() > 0.8


def test_mirror_follows_the_affine() -> None:
    """Left and right are an axis of the patient, not of the array."""
    x = torch.rand(1, 1, 4, 5, 6)
    nothing = torch.zeros(1, 4, 5, 6)
    network = Linear(torch.ones(1, 4, 5, 6))
    rows = torch.tensor([0])
    assert torch.equal(Masker(make_run(network, x), "mirror").images(nothing, rows), x.flip(4))
    affine = torch.tensor([[0.0, 2, 0.1, 0], [0, 0.1, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    placed = make_run(network, MetaTensor(x, affine=affine))
    assert torch.equal(Masker(placed, "mirror").images(nothing, rows), x.flip(3))


def test_one_set_of_images_serves_every_target() -> None:
    """A second class costs no forward."""
    torch.manual_seed(0)
    network, x = Pooled(2), torch.randn(2, 1, 12, 16)
    for method, options in (
        ("occlusion", {"window": 0.5}),
        ("lime", {"segments": 6, "samples": 40}),
        ("rise", {"samples": 40}),
    ):
        counts = []
        for classes in ([0], [0, 1, 2]):
            network.seen = 0
            found = explain(network, x, methods=[method], options={method: options}, classes=classes)
            counts.append(network.seen)
        assert counts[0] == counts[1], method
        alone = explain(network, x, methods=[method], options={method: options}, classes=2)
        assert torch.allclose(found[2].raw, alone[0].raw, atol=1e-6)


def test_two_operators_are_compared() -> None:
    """A map that turns over with the baseline is called baseline-dependent."""
    torch.manual_seed(1)
    weight = torch.rand(1, 12, 16)
    x = torch.rand(2, 1, 12, 16)
    same = compare_operators(Linear(weight), x, "occlusion", ("zero", "zero"), classes=1)
    assert torch.allclose(same.correlation, torch.ones(2))
    assert same.text == ("", "")
    other = compare_operators(Linear(-weight), x - 2, "occlusion", ("zero", "air"), classes=1)
    assert (other.correlation < 0.5).all()
    assert other.text[0].startswith("baseline-dependent")
    assert all("baseline_dependent" in item.flags[1] for item in other.maps)
    assert [item.report["masking"] for item in other.maps] == ["zero", "air"]


def test_rank_correlation_with_ties() -> None:
    """Equal to SciPy's; constants are handled."""
    from scipy.stats import spearmanr

    a, b = torch.randint(0, 5, (2, 1, 40)).float()
    assert np.isclose(float(rank_correlation(a, b)[0]), spearmanr(a[0], b[0]).statistic)
    flat = torch.zeros(1, 40)
    assert rank_correlation(flat, flat).tolist() == [1.0]
    assert rank_correlation(flat, a).tolist() == [0.0]


def test_operator_in_the_network_makes_no_images() -> None:
    """Layer masking says so."""
    run = make_run(Pooled(2), torch.randn(1, 1, 8, 8))
    with pytest.raises(ExplainError, match="works inside the network"):
        Masker(run, "layer_mask").images(torch.ones(1, 8, 8), torch.tensor([0]))
