"""Dynamic CAM selection: the right block, ties, monotony, guards; and that taking maps changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medxai.learn.nuclei.data import PointField
from medxai.learn.nuclei.labels import make_labels
from medxai.learn.nuclei.pseudo import Choice, best_thresholds, field_cams, pseudo_label, refresh
from medxai.learn.nuclei.settings import SelectionSettings
from medxai.networks.nuclei_unet import BLOCKS, STRIDES, NucleiUNet, layer_cams, placed
from medxai.predict.nuclei_blocks import IGNORED, agreement, best_block
from medxai.predict.nuclei_evidence import block_cams, scaled_by_cell
from sample_cases.synthetic_nuclei import fields

HOW = SelectionSettings(average=0.0)
DRAWN = fields(1, 6)[0]
LABELS = make_labels(DRAWN.pixels, DRAWN.points, 11.0)
TRUTH = (DRAWN.instances > 0).astype(np.float32)


def network() -> NucleiUNet:
    torch.manual_seed(2)
    return NucleiUNet(0.125, radius=11.0, mpp=0.25, tile=128)


def maps() -> np.ndarray:
    """Noise, the truth shifted by a radius, the truth, the truth shifted by less."""
    noise = np.random.default_rng(0).random(TRUTH.shape, np.float32)
    return np.stack([noise, np.roll(TRUTH, 11, 0), TRUTH, np.roll(TRUTH, 3, 1)])


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 3, 0, 1), (3, 0, 1, 2)])
def test_the_right_block_is_chosen_wherever_it_is(order: tuple[int, ...]) -> None:
    choice = refresh(Choice(None, LABELS.main), maps()[list(order)], LABELS, HOW)
    assert choice.block == order.index(2)
    assert choice.kept == ""
    assert choice.alpha is not None
    by_kind = choice.alpha[np.argsort(order)]
    assert by_kind[2] > by_kind[3] > by_kind[1]  # the farther off, the less it agrees
    assert by_kind[2] > by_kind[0]


def test_of_equal_blocks_the_deeper_is_taken() -> None:
    assert best_block(np.array([0.5, 0.7, 0.7, 0.2])) == 2
    assert best_block(np.full(4, 0.3)) == 3
    same = np.repeat(TRUTH[None], 4, 0)
    assert refresh(Choice(None, LABELS.main), same, LABELS, HOW).block == 3


def test_agreement_counts_what_is_not_ignored_and_grows_with_the_overlap() -> None:
    known = np.full((4, 6), IGNORED, np.int8)
    known[0], known[1] = 1, 0
    found = np.zeros((1, 4, 6), bool)
    found[0, 0, :3] = found[0, 1, :2] = found[0, 2:] = True
    assert agreement(found, known).tolist() == [3 / 8]  # 3 of 6 nuclear pixels, 2 of tissue; the rest is not asked
    grown = [np.roll(TRUTH, shift, 0)[None] > 0 for shift in (12, 9, 6, 3, 0)]
    values = [float(agreement(mask, TRUTH.astype(np.int8))[0]) for mask in grown]
    assert values == sorted(values)
    assert values[-1] == 1
    assert agreement(np.zeros((2, 4, 6), bool), np.zeros((4, 6), np.int8)).tolist() == [0, 0]


def test_the_chosen_label() -> None:
    cam = np.full(TRUTH.shape, 0.1, np.float32)
    cam[:, 40:80], cam[:, 80:] = 0.4, 0.9
    label = pseudo_label(cam, LABELS, 0.4, (0.75, 1.25))
    assert (label[LABELS.seeds] == 1).all()
    assert (label[LABELS.borders] == 0).all()
    free = ~LABELS.seeds & ~LABELS.borders
    parts = ((slice(0, 40), 0), (slice(40, 80), IGNORED), (slice(80, None), 1))
    for columns, said in parts:  # what the map says in these columns
        for points in (0, 1, IGNORED):
            here = free[:, columns] & (LABELS.main[:, columns] == points)
            assert here.any()
            agreed = said if points in (said, IGNORED) else points if said == IGNORED else IGNORED
            assert (label[:, columns][here] == agreed).all()


def test_the_threshold_is_the_one_that_agrees_best_with_the_points() -> None:
    """A map that falls off slowly and one that falls off fast, of the same nuclei."""
    slow = np.stack([0.3 + 0.5 * TRUTH, 0.05 + 0.2 * TRUTH, np.zeros_like(TRUTH)])
    alpha, thetas = best_thresholds(slow, LABELS, HOW.model_copy(update={"thetas": (0.1, 0.2, 0.4, 0.6)}))
    np.testing.assert_allclose(thetas, [(0.4 + 0.6) / 2, (0.1 + 0.2) / 2, (0.1 + 0.2 + 0.4 + 0.6) / 4])
    assert alpha[0] == alpha[1] > 0.6
    assert alpha[2] == 0
    chosen = refresh(
        Choice(None, LABELS.main), slow[[2, 2, 2, 1]], LABELS, HOW.model_copy(update={"thetas": (0.1, 0.5)})
    )
    assert (chosen.block, chosen.theta) == (3, pytest.approx(0.1))


def test_maps_are_averaged_over_refreshes() -> None:
    how = HOW.model_copy(update={"average": 0.9})
    first = refresh(Choice(None, LABELS.main), maps(), LABELS, how)
    second = refresh(first, np.zeros_like(maps()), LABELS, how)
    assert second.maps is not None
    np.testing.assert_allclose(second.maps, 0.9 * maps(), rtol=1e-5)


def test_labels_stay_when_no_block_agrees_or_the_area_runs_away() -> None:
    noise = np.repeat(1 - TRUTH[None], 4, 0)  # what is no nucleus
    guarded = refresh(Choice(None, LABELS.main), noise, LABELS, HOW)
    assert (guarded.kept, guarded.block) == ("guard", None)
    assert guarded.label is LABELS.main
    everything = np.ones((4, *TRUTH.shape), np.float32)
    capped = refresh(Choice(None, LABELS.main), everything, LABELS, HOW.model_copy(update={"guard": 0.0}))
    assert capped.kept == "cap"
    assert capped.label is LABELS.main
    fine = refresh(capped, maps(), LABELS, HOW)
    assert fine.kept == ""
    assert (fine.label == 1).sum() < 3 * (LABELS.main == 1).sum()


def test_a_fixed_block_is_taken_whatever_agrees_best() -> None:
    assert refresh(Choice(None, LABELS.main), maps(), LABELS, HOW, fixed=3).block == 3


@pytest.mark.parametrize("training", [True, False])
def test_taking_maps_leaves_the_network_as_it_was(training: bool) -> None:
    """Weights, statistics of batch norm, gradients and mode."""
    net = network().train(training)
    net(torch.rand(2, 3, 64, 64))  # statistics other than at the start
    before = {name: value.clone() for name, value in net.state_dict().items()}
    cams = field_cams(net, PointField("a", DRAWN.pixels[:100, :120], np.array([(20.0, 30.0), (70.0, 90.0)])))
    assert cams.shape == (4, 100, 120)
    assert cams.min() >= 0
    assert cams.max() <= 1
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert any("running_mean" in name for name in before)
    assert all(module.training == training for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_maps_are_those_of_the_engine() -> None:
    """`medxai.explain` on the same score; the order of layers keeps the engine out of prediction."""
    from medxai.explain import explain

    net = network().eval()
    x = torch.rand(1, 3, 64, 96)
    out = net.outputs(x.clone().requires_grad_())
    ours = layer_cams(out.blocks, out.segmentation[0, 1, 20:30, 40:50].sum(), (64, 96))[0]
    score = lambda logits: logits[:, 1, 20:30, 40:50].sum((1, 2))  # noqa: E731
    theirs = explain(net, x, methods=("layercam",), classes=score, layers=list(BLOCKS))
    for number, found in enumerate(theirs):
        raw = found.raw.reshape(1, 1, 64 // STRIDES[number], 96 // STRIDES[number])
        large = placed(raw.relu(), STRIDES[number], (64, 96))[0, 0]
        torch.testing.assert_close(ours[number], large, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("place", [(48, 32), (32, 64)])
@pytest.mark.parametrize("block", [0, 1])  # deeper ones look at the whole of so small a field
def test_cells_are_placed_where_they_look(place: tuple[int, int], block: int) -> None:
    """What moves a cell most lies about the pixel it is placed on, not half a cell beside it."""
    net = network().eval()
    stride = STRIDES[block]
    total = torch.zeros(96, 128)
    for seed in range(6):
        torch.manual_seed(seed)
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
        x = torch.rand(1, 3, 96, 128, requires_grad=True)
        cell = net.outputs(x).blocks[block][0, :, place[0] // stride, place[1] // stride].square().sum()
        total += torch.autograd.grad(cell, x)[0][0].abs().sum(0)
    rows, columns = torch.meshgrid(torch.arange(96.0), torch.arange(128.0), indexing="ij")
    sharp = total.square()
    middle = ((sharp * rows).sum() / sharp.sum(), (sharp * columns).sum() / sharp.sum())
    for found, wanted in zip(middle, place, strict=True):
        assert abs(float(found) - wanted) < 0.3 * stride  # enlarging by shares would be 0.5 (stride - 1) off
    at = torch.zeros(1, 1, 96 // stride, 128 // stride)
    at[0, 0, place[0] // stride, place[1] // stride] = 1
    assert divmod(int(placed(at, stride, (96, 128)).argmax()), 128) == place


def test_maps_are_scaled_within_every_cell() -> None:
    cams = np.array([[[0.0, 1.0, 2.0, 0.0, 10.0, 20.0]], [[3.0, 3.0, 3.0, 1.0, 1.0, 2.0]]], np.float32)
    cells = np.array([[0, 0, 0, 1, 1, 1]], np.int32)
    scaled = scaled_by_cell(cams, cells)
    half = np.tanh(1) / np.tanh(2)
    np.testing.assert_allclose(scaled[0], [[0, half, 1, 0, half, 1]], rtol=1e-6)
    np.testing.assert_allclose(scaled[1], [[0, 0, 0, 0, 0, 1]])


def test_maps_turn_with_the_field() -> None:
    net = network().eval()
    x = torch.rand(3, 64, 96)
    points = np.array([(20, 30), (50, 70)])
    straight = block_cams(net, x, points)
    turned = block_cams(net, torch.rot90(x, 1, (1, 2)), np.stack([95 - points[:, 1], points[:, 0]], 1))
    torch.testing.assert_close(torch.rot90(straight, 1, (1, 2)), turned, rtol=1e-3, atol=1e-5)
