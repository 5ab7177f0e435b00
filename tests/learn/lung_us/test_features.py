from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medxai.errors import BundleError, IngestError, SettingsError
from medxai.learn.lung_us.cohort import Recording, read_recordings
from medxai.learn.lung_us.features import (
    FeaturePlan,
    all_features,
    feature_folder,
    frame_table,
    recording_features,
    trunk_hash,
)
from medxai.learn.lung_us.frames import CLIP_SPEC, VGG_SPEC, frame_indices, prepared_frames, read_recording
from medxai.learn.lung_us.heads import LITE_SPEC, NETWORKS, fresh_network
from medxai.networks.genesis3d import GenesisClassifier
from medxai.predict.confidence import prepared_fill
from medxai.prepare.spec import AffineIntensity
from tests.tools import require_data

PLAN = FeaturePlan(VGG_SPEC, copies=3)


def trunk(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 16, stride=16), nn.ReLU())
    with torch.no_grad():
        network[0].weight.mul_(scale)
    return network


def still(folder: Path, name: str, seed: int = 0) -> Recording:
    pixels = np.random.default_rng(seed).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return Recording(name, "covid", "image", f"p{name}", "clinic", "x", 1, (48, 40))


def test_the_first_copy_is_the_unchanged_frame_through_the_trunk(tmp_path: Path) -> None:
    recording = still(tmp_path, "a.png")
    found = recording_features(tmp_path, recording, trunk(), PLAN, tmp_path / "f")
    assert found.shape == (3, 1, 4, 14, 14)
    assert found.dtype == np.float16
    with torch.inference_mode():
        frames = torch.from_numpy(prepared_frames(read_recording(tmp_path, recording), (0,), VGG_SPEC))
        expected = trunk()(frames).numpy()
    assert np.allclose(found[0], expected, atol=2e-3)
    assert np.abs(found[1] - found[2]).max() > 0.01


def test_what_is_kept_is_used_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    calls = []

    class Counting(nn.Module):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            calls.append(len(inputs))
            if len(calls) == 4:
                raise KeyboardInterrupt
            return inputs.mean(dim=(2, 3))

    recordings = [still(tmp_path, f"{name}.png", seed) for seed, name in enumerate("abc")]
    folder = tmp_path / "f"
    with pytest.raises(KeyboardInterrupt):
        all_features(tmp_path, recordings, Counting(), PLAN, folder, print)
    assert len(list(folder.iterdir())) == 1  # the first is whole, the second left nothing behind
    calls.clear()
    calls += [0] * 10
    resumed = all_features(tmp_path, recordings, Counting(), PLAN, folder, print)
    assert len(calls) == 10 + 2 * PLAN.copies
    # In another order, into another folder: the same.
    fresh = all_features(tmp_path, recordings[::-1], Counting(), PLAN, tmp_path / "g", print)[::-1]
    assert all(np.array_equal(a, b) for a, b in zip(resumed, fresh, strict=True))
    recording, place = frame_table(resumed)
    assert (recording.tolist(), place.tolist()) == ([0, 1, 2], [0, 0, 0])


def test_other_weights_files_or_plans_are_other_features(tmp_path: Path) -> None:
    assert trunk_hash(trunk(), PLAN) == trunk_hash(trunk(), FeaturePlan(VGG_SPEC, copies=3))
    others = [
        trunk_hash(trunk(1.01), PLAN),
        trunk_hash(trunk(), FeaturePlan(VGG_SPEC, copies=4)),
        trunk_hash(trunk(), FeaturePlan(LITE_SPEC, copies=3)),
        trunk_hash(nn.Sequential(trunk()[0], nn.ELU()), PLAN),
    ]
    assert len({trunk_hash(trunk(), PLAN), *others}) == 5
    folder = feature_folder(tmp_path, "tiny", trunk(), PLAN)
    about = json.loads((folder / "about.json").read_text())
    assert about["sha256"].startswith(folder.name.removeprefix("tiny-"))
    assert (about["copies"], about["spec"]["window"]) == (3, [224, 224])
    recording_features(tmp_path, still(tmp_path, "a.png"), trunk(), PLAN, folder)
    before = set(folder.glob("*.npy"))
    recording_features(tmp_path, still(tmp_path, "a.png", seed=9), trunk(), PLAN, folder)
    assert len(set(folder.glob("*.npy")) - before) == 1


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    recording = still(tmp_path, "a.png")
    with pytest.raises(SettingsError, match="exceed float16"):
        recording_features(tmp_path, recording, trunk(1e7), PLAN, tmp_path / "f")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(IngestError, match="damaged"):
        recording_features(tmp_path, recording, trunk(), PLAN, tmp_path / "f")
    assert not list((tmp_path / "f").glob("*"))
    assert prepared_fill(VGG_SPEC) == 0
    assert prepared_fill(LITE_SPEC) == pytest.approx(-127 / 128)
    uneven = VGG_SPEC.model_copy(update={"intensity": AffineIntensity(mean=(1, 2, 3), std=(1, 1, 1))})
    with pytest.raises(SettingsError, match="no single value of what lies outside"):
        prepared_fill(uneven)


def test_a_clip_is_changed_as_a_whole_and_a_still_has_none(tmp_path: Path) -> None:
    pytest.importorskip("av")
    frames = [Image.fromarray(np.full((48, 48), 20 + 4 * t, np.uint8)) for t in range(24)]
    for image in frames:
        image.paste(250, (0, 0, 16, 16))  # a bright corner that moves with the picture
    frames[0].save(tmp_path / "v.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    video = Recording("v.gif", "covid", "video", "p", "clinic", "x", 24, (48, 48), 10.0)
    plan = FeaturePlan(CLIP_SPEC, copies=4, unit="clip")
    found = recording_features(tmp_path, video, nn.Identity(), plan, tmp_path / "f")
    assert found.shape == (4, 2, 1, 32, 64, 64)  # every second frame, five to a clip
    # Frames differ by their brightness outside the corner: changed alike, they differ by multiples of one picture.
    first, second, last = (found[1:, :, 0, at].astype(np.float32) for at in (0, 6, 31))
    assert np.allclose((last - first) / 4, second - first, atol=2e-3)
    assert np.ptp(second - first, axis=(2, 3)).min() > 0.02
    assert np.abs(first[0] - first[1]).max() > 0.3
    empty = recording_features(tmp_path, still(tmp_path, "a.png"), nn.AdaptiveAvgPool3d(1), plan, tmp_path / "f")
    assert empty.shape == (4, 0, 1, 1, 1, 1)
    recording, place = frame_table([empty, found])
    assert (recording.tolist(), place.tolist()) == ([1, 1], [0, 1])


def test_a_pretrained_video_network_trains_its_head_alone(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"Genesis_Chest_CT\.pt, from its authors"):
        fresh_network("genesis", 3)
    torch.manual_seed(1)
    state = {f"module.{k}": v for k, v in GenesisClassifier(3).state_dict().items() if k.startswith("down_tr")}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "genesis.pt")
    cut = fresh_network("genesis", 3, weights=tmp_path / "genesis.pt")
    assert sum(p.numel() for p in cut.network.parameters() if p.requires_grad) == 528_387
    with torch.inference_mode():
        x = torch.rand(1, 1, 32, 64, 64)
        assert torch.allclose(cut.tail(cut.trunk.eval()(x)), cut.network.eval()(x), atol=1e-5)
    (tmp_path / "genesis.pt").write_bytes(b"no weights")
    with pytest.raises(BundleError, match="tensors and nothing else"):
        fresh_network("genesis", 3, weights=tmp_path / "genesis.pt")


@pytest.mark.parametrize("name", list(NETWORKS))
def test_trunk_and_tail_are_the_network(name: str) -> None:
    cut = fresh_network(name, 4, random_start=True, seed=2)
    for part in (cut.network, cut.trunk, cut.tail):
        part.eval()
    x = torch.rand(1, 1, 32, 64, 64) if cut.unit == "clip" else torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.allclose(cut.tail(cut.trunk(x)), cut.network(x), atol=1e-5)
    assert not any(p.requires_grad for p in cut.trunk.parameters())
    assert all(p.requires_grad for p in cut.tail.parameters())
    # Every parameter is in one part, and the parts are the network's own.
    own = {id(p) for p in cut.network.parameters()}
    parts = [id(p) for part in (cut.trunk, cut.tail) for p in part.parameters()]
    assert len(parts) == len(set(parts)) == len(own)
    assert set(parts) == own


@pytest.mark.data
def test_a_real_clip_gives_one_row_of_features_per_chosen_frame(tmp_path: Path) -> None:
    data = require_data("us_lung").parent
    recording = next(r for r in read_recordings(data) if r.path.endswith("Pneu_liftl_pneu_case3_clip3.mp4"))
    found = recording_features(data, recording, trunk(), PLAN, tmp_path)
    assert found.shape[:2] == (3, len(frame_indices(recording.frames, recording.frame_rate or 0)))


def test_features_kept_by_earlier_versions_are_found_again() -> None:
    plain = nn.Linear(2, 1)
    nn.init.zeros_(plain.weight)
    nn.init.zeros_(plain.bias)
    # Written by a version whose specification had no `fit`.
    assert trunk_hash(plain, FeaturePlan(VGG_SPEC, copies=4)) == (
        "23ca66237f0601a51e8d74065d61492131baa1e114bdf5827ff6f2e6947e7827"
    )
    cropped = VGG_SPEC.model_copy(update={"fit": "crop"})
    assert trunk_hash(plain, FeaturePlan(cropped, copies=4)) != trunk_hash(plain, FeaturePlan(VGG_SPEC, copies=4))
