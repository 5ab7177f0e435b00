from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from torch import nn

from medxai.errors import SettingsError
from medxai.learn.loop import Batch
from medxai.learn.lung_us.cohort import CLASSES, Recording, class_indices, read_recordings
from medxai.learn.lung_us.features import FeaturePlan, changed_copies, frame_table, recording_key
from medxai.learn.lung_us.folds import patient_folds
from medxai.learn.lung_us.frames import VGG_SPEC, chosen_frames, prepared_frames, read_recording
from medxai.learn.lung_us.guide import FoldGuide, Guidance, all_priors, guided_part, moved_copies
from medxai.learn.lung_us.heads import LITE_SPEC, fresh_network
from medxai.learn.lung_us.pleura import find_pleura
from medxai.learn.lung_us.pleura_priors import Prior, lung_region, prior_of, visible_a_lines
from medxai.learn.lung_us.train_fold import RECIPE, train_fold
from medxai.learn.prior_guided import MODES, to_grid
from medxai.networks.efficientnet_lite import IMAGENET_MEAN, IMAGENET_STD

Array = npt.NDArray[np.float64]


def scan(
    shape: tuple[int, int], row: Array, *, noise: float = 0.3, a_lines: int = 0, seed: int = 0, sector: bool = False
) -> Array:
    """A frame with a layered wall, a bright line in the given row of each column, and a fading field below it."""
    random = np.random.default_rng(seed)
    height, width = shape
    y = np.arange(height)[:, None] / height
    at = row[None] / height
    below = np.clip(y - at, 0, None)
    wall = 0.25 + 0.12 * np.sin(2 * np.pi * y / 0.05)
    frame = np.where(y < at, wall, 0.22 * np.exp(-below / 0.3))
    for number in range(a_lines + 1):
        frame = frame + (0.8 if number == 0 else 0.3) * np.exp(-0.5 * ((y - at * (1 + number)) / 0.012) ** 2)
    speckle = ndimage.gaussian_filter(random.standard_normal(shape), (0.6, 1.5))
    frame = frame * (1 + noise * speckle / speckle.std())
    if sector:
        half = 0.25 + 0.4 * y
        frame = frame * (np.abs(np.arange(width)[None] / width - 0.5) < half)
    return np.clip(frame, 0, 1)


def a_row(shape: tuple[int, int], depth: float, slope: float, bend: float) -> Array:
    """Row of a line: its depth, its fall from left to right and its bend, as shares of the height."""
    x = np.linspace(-1, 1, shape[1])
    found: Array = (depth + slope * x / 2 + bend * x**2) * shape[0]
    return found


@settings(max_examples=40)
@given(
    st.sampled_from([(224, 224), (160, 260), (300, 180)]),
    st.floats(0.15, 0.4),
    st.floats(-0.1, 0.1),
    st.floats(-0.05, 0.05),
    st.floats(0.05, 0.4),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_line_is_found_where_it_is(
    shape: tuple[int, int], depth: float, slope: float, bend: float, noise: float, sector: bool, seed: int
) -> None:
    row = a_row(shape, depth, slope, bend)
    line = find_pleura(scan(shape, row, noise=noise, seed=seed, sector=sector))
    assert line is not None
    assert line.rows.shape == line.skin.shape == (shape[1],)
    known = np.isfinite(line.rows)
    assert known.mean() > 0.4
    off = np.abs(line.rows - row)[known] / shape[0]
    assert np.median(off) < 0.02
    assert np.quantile(off, 0.9) < 0.06


@settings(max_examples=25)
@given(st.sampled_from([(224, 224), (160, 260)]), st.floats(0.5, 6), st.booleans(), st.integers(0, 999))
def test_speckle_has_no_line(shape: tuple[int, int], grain: float, sector: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    frame = 0.3 + 0.15 * ndimage.gaussian_filter(random.standard_normal(shape), grain) * grain * 3
    if sector:
        y = np.arange(shape[0])[:, None] / shape[0]
        frame = frame * (np.abs(np.arange(shape[1])[None] / shape[1] - 0.5) < 0.25 + 0.4 * y)
    assert find_pleura(np.clip(frame, 0, 1)) is None


def test_units_of_brightness_do_not_matter_and_a_mirrored_frame_has_the_mirrored_line() -> None:
    shape = (200, 240)
    frame = scan(shape, a_row(shape, 0.25, 0.08, 0.02))
    line, bright, mirrored = find_pleura(frame), find_pleura(255 * frame), find_pleura(frame[:, ::-1])
    assert line is not None
    assert bright is not None
    assert mirrored is not None
    assert np.array_equal(line.rows, bright.rows, equal_nan=True)
    assert np.nanmedian(np.abs(mirrored.rows[::-1] - line.rows)) < 3


@pytest.mark.parametrize(
    "frame", [np.zeros((64, 64)), np.ones((64, 64)), np.full((64, 64), np.nan), np.ones((8, 9)), np.ones((3, 64, 64))]
)
def test_frames_without_anything_in_them_have_no_line(frame: Array) -> None:
    assert find_pleura(frame) is None


def test_priors_lie_where_the_findings_of_their_class_do() -> None:
    shape = (200, 240)
    row = a_row(shape, 0.25, 0.06, 0.0)
    frame = scan(shape, row, noise=0.1)
    line = find_pleura(frame)
    distance = (np.arange(shape[0])[:, None] - row[None]) / shape[0]
    covid, bacterial, healthy = (prior_of(label, frame, line) for label in CLASSES)
    assert covid is not None
    assert bacterial is not None
    assert healthy is not None
    for prior in (covid, bacterial, healthy):
        assert prior.values.shape == shape
        assert prior.values.min() >= 0
        assert 0.9 < prior.values.max() <= 1
        assert prior.values[distance < -0.15].max() < 0.05  # never in the chest wall
    assert covid.values[np.abs(distance) < 0.005].mean() > 0.8
    assert covid.values[distance > 0.5].max() < 0.05
    assert bacterial.values[(distance > 0.05) & (distance < 0.3)].min() > 0.9
    assert bacterial.values[distance > 0.6].max() < 0.05
    assert (covid.only_where, bacterial.only_where, healthy.only_where) == (False, False, True)
    assert healthy.values[distance > 0.02].min() == 1
    assert prior_of("viral_pneumonia", frame, line) is prior_of("uninformative", frame, line) is None
    assert prior_of("covid", frame, None) is None


@pytest.mark.parametrize("count", [0, 2])
def test_a_lines_are_seen_at_multiples_of_the_depth(count: int) -> None:
    shape = (240, 200)
    row = a_row(shape, 0.22, 0.0, 0.0)
    frame = scan(shape, row, noise=0.1, a_lines=count)
    line = find_pleura(frame)
    assert line is not None
    assert line.depth == pytest.approx(0.22 * 240, abs=5)
    assert visible_a_lines(frame, line) == tuple(range(1, count + 1))
    prior = prior_of("healthy", frame, line)
    assert prior is not None
    assert prior.only_where == (count == 0)
    if count:
        assert prior.values[round(row[0] * 2), 50:150].min() > 0.5
        assert prior.values[round(row[0] * 1.5), 50:150].max() < 0.2


def test_the_region_of_the_lung_stays_in_the_fan() -> None:
    shape = (200, 200)
    line = find_pleura(scan(shape, a_row(shape, 0.3, 0.0, 0.0), sector=True, noise=0.1))
    assert line is not None
    region = lung_region(line, shape)
    assert region[:45].max() < 0.05
    assert region[80:, 100].min() == 1
    assert region[70, 0] == 0  # beside the sector


# Priors of a training


def still(folder: Path, name: str, label: str, seed: int, patient: str) -> Recording:
    shape = (224, 224)
    frame = scan(shape, a_row(shape, 0.2 + 0.02 * (seed % 6), 0.05, 0.0), noise=0.1, seed=seed)
    Image.fromarray((255 * frame).astype(np.uint8)).save(folder / name)
    return Recording(name, label, "image", patient, "clinic", "x", 1, shape)


def test_a_prior_moves_with_its_copy(tmp_path: Path) -> None:
    recording = still(tmp_path, "a.png", "covid", 3, "p")
    plan = FeaturePlan(LITE_SPEC, copies=5)
    lines: list[str] = []
    (priors,) = all_priors(tmp_path, [recording], plan, "outside", tmp_path / "w", lines.append)
    assert lines == ["1/1 frames have a prior"]
    assert priors.values.shape == (5, 1, 28, 28)
    volume = read_recording(tmp_path, recording)
    (grey,) = prepared_frames(volume, (0,), VGG_SPEC).mean(1)
    line = find_pleura(grey)
    assert line is not None
    region = torch.from_numpy(lung_region(line, (224, 224)))
    assert np.allclose(priors.values[0, 0], to_grid(region, (28, 28)).numpy(), atol=2e-3)
    # A prior that is the picture itself stays the picture of every copy.
    frames = torch.from_numpy(prepared_frames(volume, (0,), LITE_SPEC))
    key = recording_key(tmp_path, recording)
    moved = moved_copies([Prior(grey.astype(np.float64), False)], (224, 224), plan, key)
    for copy, image in enumerate(changed_copies(frames, plan, key)):
        expected = to_grid((image[0, 0] * IMAGENET_STD + IMAGENET_MEAN) / 255, (28, 28))
        assert np.allclose(moved[copy, 0], expected.numpy(), atol=2e-3), copy
    assert len({priors.values[copy].tobytes() for copy in range(5)}) == 5

    kept = list((tmp_path / "w").rglob("*.npz"))
    before = kept[0].stat().st_mtime_ns
    again = all_priors(tmp_path, [recording], plan, "outside", tmp_path / "w", lines.append)
    assert np.array_equal(again[0].values, priors.values)
    assert kept[0].stat().st_mtime_ns == before
    other = all_priors(tmp_path, [replace(recording, label="healthy")], plan, "cam", tmp_path / "w", lines.append)
    assert other[0].only_where.tolist() == [True]


def test_frames_without_a_line_and_other_organs_have_no_prior(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(40, 120, (90, 90)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "n.png")
    blank = Recording("n.png", "covid", "image", "p", "clinic", "x", 1, (90, 90))
    organ = replace(still(tmp_path, "a.png", "covid", 1, "q"), label="uninformative")
    for mode in MODES:
        found = all_priors(tmp_path, [blank, organ], FeaturePlan(VGG_SPEC, 2), mode, tmp_path / "w", print)
        assert [priors.of(1, 0) for priors in found] == [None, None]
    recording, place = frame_table([priors.values for priors in found])
    guide = FoldGuide(found, recording, place, ([0, 1], [1, 1]))
    batch = Batch(0, [0, 1], torch.zeros(2), torch.zeros(2, 3), torch.zeros(2), 1.0)
    assert guide.values(batch) == [None, None]
    assert guide.only_where(batch) == [False, False]
    assert guide.coverage([0, 1]) == {"frames": 2, "with_prior": 0, "only_where": 0}


def test_every_network_of_frames_has_a_guided_layer_and_the_video_network_none(tmp_path: Path) -> None:
    for name, head in (("efficientnet_lite0", True), ("vgg_cam", True), ("vgg_base", False)):
        cut = fresh_network(name, 3, random_start=True)
        layer, linear = guided_part(cut)
        seen: list[torch.Size] = []
        layer.register_forward_hook(lambda _m, _i, output, seen=seen: seen.append(output.shape))
        with torch.inference_mode():
            cut.network.eval()(torch.zeros(1, 3, 224, 224))
        assert seen[-1][2:] == (7, 7)
        assert (linear is not None) == head
        if isinstance(linear, nn.Linear):
            assert linear.in_features == seen[-1][1]
    with pytest.raises(SettingsError, match="needs the linear layer"):
        FoldGuide([], np.zeros(0, int), np.zeros(0, int)).loss(fresh_network("vgg_base", 3, random_start=True),
                                                              Guidance("cam", 1.0))  # fmt: skip
    video = fresh_network("genesis", 3, random_start=True)
    with pytest.raises(SettingsError, match="networks of frames"):
        guided_part(video)
    with pytest.raises(SettingsError, match="video network has no guidance"):
        all_priors(tmp_path, [], FeaturePlan(VGG_SPEC, unit="clip"), "cam", tmp_path, print)


def test_a_guided_fold_lies_beside_the_one_that_is_not(tmp_path: Path) -> None:
    recordings = [still(tmp_path, f"{i}.png", CLASSES[i % 3], i, f"p{i}") for i in range(12)]
    recipe = replace(RECIPE, epochs=2, batch_size=4)
    found = {}
    for guidance in (None, Guidance("outside", 5.0)):
        found[guidance] = train_fold(
            "efficientnet_lite0", tmp_path, recordings, 1, tmp_path / "w", print,
            n_folds=2, plan_copies=2, recipe=recipe, random_start=True, guidance=guidance,
        )  # fmt: skip
    plain, guided = found.values()
    assert plain.parent.parent.name.startswith("efficientnet_lite0-patients-")
    assert guided.parent.parent.name.startswith("efficientnet_lite0-guided_outside-")
    assert len(list((tmp_path / "w" / "features").iterdir())) == 1  # the features are shared
    first, second = np.load(plain), np.load(guided)
    fold = patient_folds(recordings, class_indices(recordings), 2)
    assert first["recording"].tolist() == second["recording"].tolist() == np.flatnonzero(fold == 1).tolist()
    ends = [torch.load(path.with_name("epoch.ckpt"), weights_only=True)["network"] for path in (plain, guided)]
    assert any(not torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    from safetensors.torch import load_file

    about = json.loads((guided.parent / "guidance.json").read_text())
    trained = len(np.load(guided.parent / "training.npy"))
    assert {k: about[k] for k in asdict(Guidance("outside", 5.0))} == {"mode": "outside", "weight": 5.0}
    assert about["frames"] == trained
    assert about["with_prior"] == trained
    assert set(about["misalignment"]) == {"2"}  # the first epoch has weight 0
    assert not (plain.parent / "guidance.json").exists()
    shapes = [{k: v.shape for k, v in load_file(p.with_name("network.safetensors")).items()} for p in (plain, guided)]
    assert shapes[0] == shapes[1]


@pytest.mark.skipif(not os.environ.get("MEDXAI_DATA"), reason="MEDXAI_DATA names the folder of the open data sets")
def test_most_real_lungs_have_a_line_in_the_upper_half() -> None:
    data = Path(os.environ["MEDXAI_DATA"])
    recordings = [r for r in read_recordings(data) if r.label in CLASSES and r.frames < 200][::5]
    depths, found = [], []
    for recording in recordings:
        volume = read_recording(data, recording)
        frame = prepared_frames(volume, chosen_frames(recording, volume)[:1], VGG_SPEC)[0].mean(0)
        line = find_pleura(frame)
        found.append(line is not None)
        if line is not None:
            depths.append(float(np.nanmedian(line.rows)) / len(frame))
    assert len(found) > 15
    assert 0.6 < np.mean(found) <= 1
    assert np.mean(np.array(depths) < 0.5) > 0.8
