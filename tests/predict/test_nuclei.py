"""Nuclei as objects: watershed, doubts, tiles of a field, scale, and inputs that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medxai.errors import MedxaiError, MismatchError
from medxai.networks.nuclei_unet import NucleiUNet
from medxai.predict.nuclei import segment_field
from medxai.predict.nuclei_blocks import discs
from medxai.predict.nuclei_objects import SMALL, detection_seeds, distance_map, doubts, separate

SHAPE = (60, 90)
TWO = np.array([(30, 30), (30, 46)])


def network(tile: int = 64, mpp: float = 0.25, *, detects: bool = True) -> NucleiUNet:
    torch.manual_seed(1)
    return NucleiUNet(0.125, radius=6.0, mpp=mpp, tile=tile, detects=detects)


def field(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).random((3, height, width), np.float32)


@pytest.mark.parametrize("heights", ["distance", "flat"])
def test_two_overlapping_discs(heights: str) -> None:
    """Two seeds give two objects, one gives one."""
    foreground = discs(SHAPE, TWO, 10)
    depth = distance_map(foreground, 10) if heights == "distance" else np.zeros(SHAPE)
    labels, seeds = separate(foreground, TWO, depth, 10)
    assert labels.max() == 2
    np.testing.assert_array_equal(seeds, TWO)
    np.testing.assert_array_equal(labels > 0, foreground)
    _, columns = np.nonzero(labels == labels[30, 30])
    assert columns.max() <= 40  # cut in the middle
    assert labels[30, 46] != labels[30, 30]
    one, seeds = separate(foreground, TWO[:1], depth, 10)
    assert one.max() == 1
    np.testing.assert_array_equal(one > 0, foreground)


def test_without_detection_seeds_come_from_the_distance() -> None:
    foreground = discs(SHAPE, TWO, 10)
    found = detection_seeds(distance_map(foreground, 10), foreground, 10)
    assert len(found) == 2
    assert np.abs(np.sort(found[:, 1]) - TWO[:, 1]).max() <= 2


def test_small_objects_go_and_unseeded_ones_stay() -> None:
    foreground = discs(SHAPE, np.array([(15, 15), (40, 60)]), 6)
    foreground[2, 70:73] = True
    labels, seeds = separate(foreground, np.array([(15, 15), (2, 71)]), np.zeros(SHAPE), 6)
    assert labels.max() == 2
    assert labels[2, 71] == 0
    np.testing.assert_array_equal(seeds, [(15, 15), (np.nan, np.nan)])
    assert doubts(labels, seeds, foreground) == ("", "unseeded")
    exact = np.zeros(SHAPE, bool)
    exact[10:14, 10:15] = True
    for radius, kept in ((6, 1), (7, 0)):
        assert separate(exact, np.array([(12, 12)]), np.zeros(SHAPE), radius)[0].max() == kept
    assert exact.sum() == SMALL


def test_doubts() -> None:
    labels = np.zeros((60, 120), np.int32)
    for number in range(5):
        labels[5:15, 5 + 20 * number : 15 + 20 * number] = number + 1
    labels[30:50, 5:20] = 6  # three times the median
    labels[15:18, 5:15] = 7  # a third of it, beside the first
    labels[30:33, 60:70] = 8  # a third of it, alone
    evidence = labels > 0
    evidence[5:15, 25:33] = False  # most of the second
    seeds = np.ones((8, 2))
    assert doubts(labels, seeds, evidence) == ("", "uncertain", "", "", "", "merged?", "split?", "")
    assert doubts(np.zeros((4, 5), np.int32), np.zeros((0, 2)), np.zeros((4, 5), bool)) == ()


@pytest.mark.parametrize(("height", "width"), [(50, 90), (100, 170), (20, 33), (5, 7)])
@pytest.mark.parametrize("detects", [True, False])
def test_fields_of_any_size(height: int, width: int, detects: bool) -> None:
    """Smaller and larger than the tile, sides no multiples of 32."""
    net = network(detects=detects).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = segment_field(net, field(height, width), mpp=0.25)
    for name, dtype in (
        ("labels", np.int32),
        ("probability", np.float32),
        ("detection", np.float32),
        ("evidence", np.float32),
    ):
        array = getattr(found, name)
        assert array.shape == (height, width)
        assert array.dtype == dtype
        assert np.isfinite(array).all()
    n = len(found.flags)
    assert found.seeds.shape == (n, 2)
    np.testing.assert_array_equal(np.unique(found.labels[found.labels > 0]), np.arange(1, n + 1))
    for number, (row, column) in enumerate(found.seeds, 1):
        assert np.isnan(row) or found.labels[round(row), round(column)] == number
        assert np.isnan(row) == ("unseeded" in found.flags[number - 1])
    assert 1 <= found.block <= 4
    assert 0 <= found.agreement <= 1
    assert 0 <= found.evidence.min() <= found.evidence.max() <= 1
    assert net.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


def test_frozen_networks_are_explained_too() -> None:
    net = network().requires_grad_(False).eval()
    with torch.inference_mode():
        found = segment_field(net, field(64, 64))
    np.testing.assert_array_equal(found.evidence, segment_field(network().eval(), field(64, 64)).evidence)


def test_tiles_say_what_the_whole_field_says() -> None:
    """In the middle of a tile, far from borders, up to what borders change."""
    pixels = field(64, 160)
    whole, tiled = segment_field(network(160), pixels), segment_field(network(96), pixels)
    assert whole.probability.std() > 0
    assert np.corrcoef(whole.probability.ravel(), tiled.probability.ravel())[0, 1] > 0.9


def test_another_scale_is_resampled_and_put_back() -> None:
    """A field of twice the pixels at half the distance gives the same nuclei where it is."""
    small = field(64, 96)
    large = small.repeat(2, 1).repeat(2, 2)
    net = network(mpp=0.5)
    one, two = segment_field(net, small, mpp=0.5), segment_field(net, large, mpp=0.25)
    assert two.labels.shape == (128, 192)
    assert len(two.flags) == len(one.flags)
    np.testing.assert_array_equal(two.labels, one.labels.repeat(2, 0).repeat(2, 1))
    np.testing.assert_allclose(two.seeds, 2 * one.seeds + 0.5)
    near = segment_field(net, small, mpp=0.52)
    np.testing.assert_array_equal(near.labels, one.labels)


def test_wrong_fields_are_refused() -> None:
    net = network()
    with pytest.raises(MismatchError, match=r"shape \[3, H, W\], not \[64, 64, 3\]"):
        segment_field(net, np.zeros((64, 64, 3), np.float32))
    with pytest.raises(MismatchError, match="divide stored values by 255"):
        segment_field(net, np.full((3, 64, 64), 200, np.float32))
    with pytest.raises(MismatchError, match="must be positive"):
        segment_field(net, field(64, 64), mpp=0.0)
    with pytest.raises(ValueError, match="multiple of 32"):
        NucleiUNet(tile=100)


def test_the_message_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.partition(".")[0] == "skimage"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MedxaiError, match=r"pip install 'medxai\[pathology\]'"):
        detection_seeds(np.zeros(SHAPE), np.zeros(SHAPE, bool), 6)


def test_discs_of_points_beyond_the_field_are_cut_off() -> None:
    """Far outside on every side, and partly inside: what a larger field holds there."""
    points = np.array([[-40, 5], [5, -40], [70, 90], [-2, 10], [30, 43], [20, 20]])
    whole = discs((140, 160), points + 50, 6.0)
    np.testing.assert_array_equal(discs((32, 40), points, 6.0), whole[50:82, 50:90])


def test_a_field_of_many_tiles_with_nuclei_in_each() -> None:
    """Seeds of other tiles lie beyond the tile that is explained; the field is still answered as a whole."""
    torch.manual_seed(0)
    network = NucleiUNet(0.125, radius=6.0, tile=64)
    with torch.no_grad():
        network.segment.bias.copy_(torch.tensor([-1.0, 1.0]))  # all foreground, so that seeds are everywhere
    found = segment_field(network, np.random.default_rng(0).random((3, 150, 210), np.float32))
    assert len(found.seeds) > 4
    assert found.evidence.shape == found.labels.shape == (150, 210)
    assert np.isfinite(found.evidence).all()
