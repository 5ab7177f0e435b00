"""RISE and D-RISE against what random masks must give."""

from __future__ import annotations

import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from medxai.errors import ExplainError
from medxai.explain import Segment, explain
from medxai.explain.random_masks import RandomMasks, even_grid
from medxai.explain.registry import make_options
from medxai.explain.similarity import DetectedBox, LesionDice, box_iou, pack_detections
from tests.explain.perturbed import Constant, Linear


def test_masks() -> None:
    """Between 0 and 1, as often on as asked, made again alike in any portion, and inverse in antithetic pairs."""
    masks = RandomMasks.draw(400, (9, 14, 12), (2, 4, 3), 0.3, torch.Generator().manual_seed(0))
    whole = masks.masks(0, 400)
    assert whole.shape == (400, 9, 14, 12)
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert abs(float(whole.mean()) - 0.3) < 0.02
    assert torch.equal(masks.masks(37, 91), whole[37:91])
    pairs = RandomMasks.draw(10, (9, 14), (3, 4), 0.5, torch.Generator().manual_seed(0), antithetic=True).masks(0, 10)
    assert torch.allclose(pairs[::2] + pairs[1::2], torch.ones(5, 9, 14), atol=1e-6)


def test_masks_are_enlarged_grids() -> None:
    """A mask is the grid, enlarged to one cell more than the image and cut at the shift."""
    draws = RandomMasks.draw(3, (10, 13), (4, 3), 0.5, torch.Generator().manual_seed(2))
    for index, mask in enumerate(draws.masks(0, 3)):
        grid = draws.bits[index].float().view(1, 1, 4, 3)
        large = nn.functional.interpolate(grid, size=(5 * 3, 4 * 5), mode="bilinear", align_corners=False)[0, 0]
        top, left = draws.shifts[index].tolist()
        assert torch.allclose(mask, large[top : top + 10, left : left + 13], atol=1e-5)


def test_cells_are_even_in_mm() -> None:
    """Thick slices get fewer cells per voxel."""
    assert even_grid((32, 64, 64), (1, 1, 1), 8) == (4, 8, 8)
    assert even_grid((16, 64, 64), (4, 1, 1), 8) == (8, 8, 8)
    assert even_grid((2, 64, 64), (0.5, 1, 1), 7) == (1, 7, 7)


@pytest.mark.parametrize("antithetic", [False, True])
def test_linear_model_gives_a_local_average(antithetic: bool) -> None:
    """The map follows ``w x`` smoothed by the covariance of the masks, within its own standard error."""
    torch.manual_seed(0)
    network, x = Linear(torch.rand(1, 16, 20)), torch.zeros(1, 1, 16, 20)
    x[0, 0, 3:7, 12:16] = 1
    options = {"samples": 2000, "score": "logit", "antithetic": antithetic, "tolerance": 0.0, "grid": 4}
    found = explain(network, x, methods=["rise"], classes=1, options={"rise": options})[0]
    draws = (
        RandomMasks.draw(20_000, (16, 20), (3, 4), 0.5, torch.Generator().manual_seed(9)).masks(0, 20_000).flatten(1)
    )
    centred = draws - draws.mean(0)
    spread = centred.T @ centred / len(draws)
    expected = (spread @ (network.weight * x).flatten() / spread.diag()).view(16, 20).detach()
    corr = torch.corrcoef(torch.stack((found.raw[0].flatten(), expected.flatten())))[0, 1]
    assert corr > 0.97
    off = (found.raw[0] - expected).abs() / found.report["standard_error"][0].clamp_min(1e-6)
    assert off.median() < 1.5
    assert found.report["samples"].tolist() == [2000]


def test_standard_error_is_honest() -> None:
    """Over seeds, the map scatters as much as it says."""
    torch.manual_seed(0)
    network, x = Linear(torch.randn(1, 10, 12)), torch.randn(1, 1, 10, 12)
    for antithetic in (False, True):
        options = {"rise": {"samples": 200, "score": "logit", "tolerance": 0.0, "grid": 3, "antithetic": antithetic}}
        runs = [explain(network, x, methods=["rise"], classes=1, options=options, seed=s)[0] for s in range(12)]
        scatter = torch.stack([r.raw[0] for r in runs]).std(0).mean()
        said = torch.stack([r.report["standard_error"][0] for r in runs]).mean()
        assert 0.75 < float(said / scatter) < 1.35, antithetic


def test_constant_model_is_flat_and_stops_early() -> None:
    """Nothing beyond three standard errors; two rounds suffice."""
    found = explain(Constant(2), torch.randn(2, 1, 12, 16), methods=["rise"], classes=1)[0]
    error = found.report["standard_error"]
    assert (found.raw.abs() <= 3 * error + 1e-6).all()
    assert found.report["samples"].tolist() == [200, 200]
    assert all("empty" in flags for flags in found.flags)


def test_each_sample_stops_by_itself() -> None:
    """An easy and a hard sample in a batch are as they are alone."""
    torch.manual_seed(0)
    network = Linear(torch.ones(1, 12, 16))
    x = torch.zeros(2, 1, 12, 16)
    x[1] = torch.randn(1, 12, 16)
    options = {"rise": {"samples": 400, "score": "logit", "tolerance": 0.12, "grid": 3}}
    both = explain(network, x, methods=["rise"], classes=1, options=options, chunk=7)[0]
    assert both.report["samples"][0] == 200
    assert both.report["samples"][1] > 200
    for row in range(2):
        alone = explain(network, x[row : row + 1], methods=["rise"], classes=1, options=options)[0]
        assert torch.allclose(alone.raw[0], both.raw[row], atol=1e-5)
        assert alone.report["samples"][0] == both.report["samples"][row]


def test_spacing_is_the_samples_own() -> None:
    """Two volumes of different spacing in a batch are masked as they would be alone."""
    torch.manual_seed(0)
    network, x = Linear(torch.randn(1, 4, 8, 8)), torch.randn(2, 1, 4, 8, 8)
    affine = torch.stack((torch.diag(torch.tensor([1.0, 1, 1, 1])), torch.diag(torch.tensor([4.0, 1, 1, 1]))))
    options = {"rise": {"samples": 100, "grid": 4}}
    both = explain(network, MetaTensor(x, affine=affine), methods=["rise"], classes=1, options=options)[0]
    for row in range(2):
        one = MetaTensor(x[row : row + 1], affine=affine[row])
        alone = explain(network, one, methods=["rise"], classes=1, options=options)[0]
        assert torch.allclose(alone.raw[0], both.raw[row], atol=1e-5)


class BlobDetector(nn.Module):
    """Finds the box of what is bright; its score is the mean brightness there, its label the half it lies in."""

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        """A mapping for each image, as torchvision's detectors return."""
        found = []
        for image in x[:, 0]:
            place = torch.nonzero(image > 0.6)
            if not len(place):
                found.append(
                    {"boxes": torch.zeros(0, 2 * image.ndim), "labels": torch.zeros(0), "scores": torch.zeros(0)}
                )
                continue
            low, high = place.amin(0), place.amax(0) + 1
            box = torch.cat((low, high)).float()[None]
            label = (low[-1:] >= image.shape[-1] // 2).long()
            found.append({"boxes": box, "labels": label, "scores": image[image > 0.6].mean()[None].clamp(0, 1)})
        return found


@pytest.mark.parametrize("shape", [(24, 32), (12, 16, 20)])
def test_detector(shape: tuple[int, ...]) -> None:
    """The map peaks in the box; with the box alone the similarity stays near one."""
    x = torch.rand(2, 1, *shape) * 0.3
    boxes = [tuple(slice(s // 4, s // 4 + 5) for s in shape), tuple(slice(s // 2, s // 2 + 5) for s in shape)]
    for row, box in enumerate(boxes):
        x[(row, 0, *box)] = 1.0
    request = DetectedBox(dims=len(shape))
    found = explain(BlobDetector(), x, methods=["drise"], classes=request, output=pack_detections(2),
                    options={"drise": {"samples": 300, "grid": 5}}, chunk=50)[0]  # fmt: skip
    assert torch.allclose(found.score, torch.ones(2))
    target = request.bind(pack_detections(2)(BlobDetector()(x)))
    for row, box in enumerate(boxes):
        inside = found.raw[(row, *box)].mean()
        assert inside > 3 * found.raw[row].mean().abs()
        only = torch.zeros(shape)
        only[box] = 1
        packed = pack_detections(2)(BlobDetector()(x[row : row + 1] * only))
        assert target(packed, torch.tensor([row])) > 0.99
        hidden = pack_detections(2)(BlobDetector()(x[row : row + 1] * (1 - only)))
        assert target(hidden, torch.tensor([row])) == 0


def test_given_boxes_and_keys_of_other_libraries() -> None:
    """A radiologist's box; MONAI's names; wrong labels and too few detections."""
    pack = pack_detections(3, limit=4)
    found = pack([{"box": torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6]]), "label": torch.tensor([1, 2]),
                   "label_scores": torch.tensor([0.4, 0.9])}])  # fmt: skip
    assert found.shape == (1, 4, 8)
    assert found[0, 0].tolist() == pytest.approx([2, 2, 6, 6, 0.9, 0, 0, 1])
    given = DetectedBox(dims=2, box=torch.tensor([0.0, 0, 4, 2]), label=1)
    assert float(given(found)) == pytest.approx(0.5 * 0.4)
    assert float(DetectedBox(dims=2, box=torch.tensor([0.0, 0, 4, 4]), label=0)(found)) == 0
    with pytest.raises(ExplainError, match="3 detection"):
        DetectedBox(dims=2, rank=2).bind(found)
    with pytest.raises(ExplainError, match="no 'boxes'"):
        pack([{"masks": torch.zeros(1)}])
    assert float(box_iou(torch.zeros(4), torch.zeros(4))) == 0


class Threshold(nn.Module):
    """Segments what is bright after a small blur."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, 2, *S]``."""
        pool = nn.functional.avg_pool2d if x.ndim == 4 else nn.functional.avg_pool3d
        y = pool(x, 3, 1, 1) - 0.4
        return torch.cat((-y, y), 1)


@pytest.mark.parametrize("shape", [(24, 32), (12, 16, 20)])
def test_segmentation(shape: tuple[int, ...]) -> None:
    """One of two lesions is asked about and answers alone; a class means all of it."""
    x = torch.zeros(1, 1, *shape)
    asked = tuple(slice(2, 8) for _ in shape)
    other = tuple(slice(s - 4, s) for s in shape)
    x[(0, 0, *asked)] = x[(0, 0, *other)] = 1
    with torch.no_grad():
        mask = Threshold()(x)[0, 1] > 0
    mask[other] = False
    options = {"drise": {"samples": 400, "grid": 5}}
    one = explain(Threshold(), x, methods=["drise"], classes=LesionDice(1, mask), options=options)[0]
    assert one.score.tolist() == [1.0]
    assert one.raw[(0, *asked)].mean() > 5 * one.raw[(0, *other)].mean().abs()
    both = explain(Threshold(), x, methods=["drise"], classes=1, options=options)[0]
    assert both.raw[(0, *other)].mean() > one.raw[(0, *other)].mean()
    sums = explain(Threshold(), x, methods=["drise"], classes=Segment(1, mask), options=options)[0]
    assert torch.isfinite(sums.raw).all()


def test_what_cannot_be_asked() -> None:
    """A class of a classifier, a mask that does not fit, wrong options."""
    network, x = Linear(torch.ones(1, 8, 8)), torch.rand(1, 1, 8, 8)
    with pytest.raises(ExplainError, match="use rise"):
        explain(network, x, methods=["drise"], classes=1)
    with pytest.raises(ExplainError, match="the output needs"):
        LesionDice(1, torch.ones(3, 3)).bind(torch.zeros(1, 2, 8, 8))
    with pytest.raises(ExplainError, match="2 axes"):
        explain(network, x, methods=["rise"], options={"rise": {"grid": [2, 2, 2]}})
    for values in ({"samples": 1}, {"grid": 0}, {"keep": 1.0}, {"keep": 0.3, "antithetic": True}, {"tolerance": -1.0},
                   {"score": "odds"}, {"masking": "nothing"}):  # fmt: skip
        with pytest.raises(ExplainError, match="options of rise"):
            make_options("rise", values)
    with pytest.raises(ExplainError, match="dilate"):
        make_options("drise", {"dilate": -0.1})


def test_a_map_of_noise_is_flagged() -> None:
    """A score that the masks hardly move stays within its standard error; a strong one stands out."""

    class Noisy(nn.Module):
        def __init__(self, strength: float) -> None:
            super().__init__()
            self.anchor, self.strength = nn.Parameter(torch.zeros(1)), strength

        def forward(self, x: Tensor) -> Tensor:
            jitter = torch.sin(1e4 * x.flatten(1).sum(1))  # unrelated to any place
            one = self.strength * x[:, 0, 2:5, 3:6].mean((1, 2)) + jitter
            return torch.stack((-one, one), 1)

    x = torch.rand(1, 1, 12, 16) + 0.5
    options = {"rise": {"samples": 300, "score": "logit"}}
    weak, strong = (explain(Noisy(s), x, methods="rise", classes=1, options=options)[0] for s in (0.0, 20.0))
    assert "unstable" in weak.flags[0]
    assert weak.report["strongest_in_errors"][0] < 4 < strong.report["strongest_in_errors"][0]
    assert "unstable" not in strong.flags[0]
