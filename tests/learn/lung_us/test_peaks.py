from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from medxai.explain.cine import refined_peak
from medxai.learn.lung_us.cohort import CLASSES, FINDINGS, UNINFORMATIVE, Recording
from medxai.learn.lung_us.heads import CutNetwork, cut_efficientnet
from medxai.learn.lung_us.held_out import HeldOut
from medxai.learn.lung_us.measure_uncertainty import repeated
from medxai.learn.lung_us.peaks import Peak, compare_depths, find_peaks, stored_depth, write_peaks
from medxai.networks.efficientnet_lite import EfficientNetLite0
from medxai.predict.confidence import PASSES, believe, dropout_passes


@pytest.fixture(scope="module")
def cut() -> CutNetwork:
    torch.manual_seed(0)
    network = EfficientNetLite0(4)
    torch.nn.init.normal_(network._fc.weight, std=0.5)
    for module in network.modules():  # statistics of noise, without which random weights give nothing at all
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, 224, 224))
    found = cut_efficientnet(network)
    network.eval()
    return found


def held_out(cut: CutNetwork, frames: int = 3, pixels: tuple[int, int] = (448, 448)) -> HeldOut:
    recording = Recording("us_lung/a.mp4", "covid", "video", "p", "clinic", "x", frames, pixels, 10.0)
    inputs = torch.randn(frames, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    return HeldOut(cut, recording, 0, 0, inputs, tuple(range(frames)), pixels)


def test_the_maximum_moves_to_the_largest_mean_near_it_and_no_farther() -> None:
    field = np.zeros((40, 60))
    field[10, 20] = 5  # a single hot pixel
    field[12:15, 22:25] = 3  # a patch two pixels beside it
    field[30:35, 50:55] = 4  # brighter, but far
    assert refined_peak(field) == (13, 23)
    field[12:15, 22:25] = 0
    row, column = refined_peak(field)
    assert max(abs(row - 10), abs(column - 20)) <= 1
    edge = np.zeros((30, 30))
    edge[0, 29] = 1
    assert refined_peak(edge) == (0, 29)


def test_depth_counts_from_the_upper_edge_of_the_stored_picture() -> None:
    assert stored_depth(111, (300, 300)) + stored_depth(112, (300, 300)) == pytest.approx(1)
    # Of a wide picture all rows are seen, of a tall one only those of its central square.
    assert stored_depth(0, (100, 500)) == pytest.approx(0.5 / 224)
    assert stored_depth(0, (400, 200)) == pytest.approx(0.25 + 0.5 * 0.5 / 224)
    assert stored_depth(223, (400, 200)) == pytest.approx(0.75 - 0.5 * 0.5 / 224)


def test_peaks_are_those_of_the_map_that_sums_to_the_logit(cut: CutNetwork) -> None:
    item = held_out(cut)
    found = find_peaks(item)
    layer: list[torch.Tensor] = []
    handle = cut.network._act_head.register_forward_hook(lambda _m, _i, output: layer.append(output))  # type: ignore[union-attr]
    with torch.inference_mode():
        logits = cut.network(item.frames)
    handle.remove()
    assert found["predicted"].tolist() == logits.argmax(1).tolist()
    weight, bias = cut.network._fc.weight.detach(), cut.network._fc.bias.detach()  # type: ignore[union-attr]
    for i, label in enumerate(found["predicted"].tolist()):
        cells = torch.einsum("c,chw->hw", weight[label], layer[0][i])
        assert float(cells.mean() + bias[label]) == pytest.approx(float(logits[i, label]), abs=1e-4)
        row, column = np.unravel_index(int(cells.argmax()), cells.shape)
        # On the enlarged map the maximum lies inside or at the border of the largest cell.
        assert abs(found["row"][i] - (32 * row + 15.5)) <= 20
        assert abs(found["column"][i] - (32 * column + 15.5)) <= 20
    assert found["depth"].tolist() == [stored_depth(int(row), (448, 448)) for row in found["row"]]


def test_dropout_behind_the_pooling_says_what_the_whole_tail_says(cut: CutNetwork) -> None:
    item = held_out(cut)
    found = repeated(item)
    assert found["changed"].shape == found["dropped"].shape == (PASSES, 3, 4)
    with torch.inference_mode():
        features = cut.trunk(item.frames)
    from medxai.identity import sha256_text

    seed = int(sha256_text(item.recording.path)[:8], 16)
    whole = dropout_passes(cut.tail, features, seed=seed)
    assert found["dropped"] == pytest.approx(whole, abs=1e-5)
    assert (believe(found["changed"]).sd > 0).all()
    assert found["changed"] == pytest.approx(repeated(item)["changed"])


def cohort() -> list[Recording]:
    """Ten patients with B-lines and ten without, none with the other findings filled in."""
    return [
        Recording(f"{i}.mp4", CLASSES[i % 3], "video", f"p{i}", "c", "x", 5, (64, 64), 9.0, {FINDINGS[2]: i < 10})
        for i in range(20)
    ]


def peak(name: str, patient: str, depth: float, predicted: str = "covid") -> Peak:
    return Peak(name, patient, 0, 0, "covid", predicted, 10, 10, depth)


def test_depths_are_compared_by_patient_not_by_frame() -> None:
    recordings = cohort()
    random = np.random.default_rng(0)
    middle = {r.path: (0.6 if i < 10 else 0.3) + 0.01 * i for i, r in enumerate(recordings)}
    peaks = [peak(r.path, r.patient, middle[r.path] + d) for r in recordings for d in (-0.01, 0, 0.01)]
    # A patient with a thousand frames counts as one, and what is declined not at all.
    peaks += [peak("0.mp4", "p0", middle["0.mp4"]) for _ in range(1000)]
    peaks += [peak("1.mp4", "p1", 0.0, UNINFORMATIVE) for _ in range(1000)]
    random.shuffle(peaks)
    (found,) = compare_depths(peaks, recordings, 500)
    assert found.finding == "b_lines"
    assert (found.present.groups, found.absent.groups) == (10, 10)
    present, absent = ([middle[r.path] for r in recordings if r.findings["b_lines"] == flag] for flag in (True, False))
    assert found.present.value == pytest.approx(np.median(present))
    assert found.absent.value == pytest.approx(np.median(absent))
    assert found.p_value == pytest.approx(mannwhitneyu(present, absent).pvalue)
    assert found.p_value < 1e-3
    assert found.present.low <= found.present.value <= found.present.high


def test_a_patient_with_the_finding_in_one_recording_has_it() -> None:
    recordings = cohort()
    recordings.append(Recording("20.mp4", "covid", "video", "p0", "c", "x", 5, (64, 64), 9.0, {"b_lines": False}))
    peaks = [peak(r.path, r.patient, 0.4) for r in recordings]
    (found,) = compare_depths(peaks, recordings, 50)
    assert (found.present.groups, found.absent.groups) == (10, 10)


def test_peaks_are_written_a_row_each(tmp_path: Path) -> None:
    path = write_peaks(tmp_path / "peaks.csv", [peak("a.mp4", "p", 0.25), peak("b.mp4", "q", 0.5, "healthy")])
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["predicted"], row["depth"]) for row in rows] == [
        ("a.mp4", "covid", "0.2500"),
        ("b.mp4", "healthy", "0.5000"),
    ]
