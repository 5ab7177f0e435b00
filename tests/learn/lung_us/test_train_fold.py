from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medxai.errors import SettingsError
from medxai.learn.lung_us.calibration import negative_log_likelihood
from medxai.learn.lung_us.cohort import CLASSES, Recording, class_indices
from medxai.learn.lung_us.folds import leaking_frame_folds, patient_folds
from medxai.learn.lung_us.metrics import scores
from medxai.learn.lung_us.train_fold import RECIPE, FrameSet, frame_set, logits_of, main, train_fold, train_head

QUICK = replace(RECIPE, epochs=6, learning_rate=0.02)


def head() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def patients(n: int, frames: int, *, by_class: float, by_patient: float, seed: int = 0) -> FrameSet:
    """Features ``[2, frames, 12]`` of `n` patients: a part that says the class, one that says who it is, noise."""
    random = np.random.default_rng(seed)
    of_class = random.normal(size=(3, 12))
    features = []
    for number in range(n):
        centre = by_class * of_class[number % 3] + by_patient * random.normal(size=12)
        features.append((centre + 0.1 * random.normal(size=(2, frames, 12))).astype(np.float16))
    return frame_set(features, [number % 3 for number in range(n)])


def indices(frames: FrameSet, recordings: range) -> list[int]:
    return np.flatnonzero(np.isin(frames.recording, list(recordings))).tolist()


def test_the_best_epoch_and_a_temperature_come_from_the_validation_frames(tmp_path: Path) -> None:
    frames = patients(30, 4, by_class=1.0, by_patient=0.3)
    tail = head()
    training, validation = indices(frames, range(21)), indices(frames, range(21, 30))
    temperature = train_head(tail, frames, training, validation, tmp_path, print, QUICK)
    logits, truth = logits_of(tail, frames, validation), frames.labels[validation]
    losses = [float(v) for v in json.loads((tmp_path / "epochs.json").read_text()).values()]
    assert len(losses) == QUICK.epochs
    assert negative_log_likelihood(logits, truth) == pytest.approx(min(losses), rel=1e-5)
    assert negative_log_likelihood(logits, truth, temperature) <= min(losses) + 1e-9
    assert (logits.argmax(1) == truth).mean() > 0.8
    assert not tail.training


@pytest.mark.parametrize("judged", [True, False])
def test_an_interrupted_training_ends_as_one_that_was_not(tmp_path: Path, judged: bool) -> None:
    frames = patients(18, 4, by_class=1.0, by_patient=0.5)
    training, validation = indices(frames, range(12)), indices(frames, range(12, 18))
    whole, broken = head(), head()
    first = train_head(whole, frames, training, validation, tmp_path / "a", print, QUICK)

    def stop(line: str) -> None:
        if line.startswith("epoch 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_head(broken, frames, training, validation, tmp_path / "b", stop, QUICK)
    if not judged:  # as if it had ended between the epoch and its judgement
        history = tmp_path / "b" / "epochs.json"
        losses = json.loads(history.read_text())
        assert list(losses) == ["1", "2", "3"]
        best = min(losses, key=losses.get)
        history.write_text(json.dumps({key: losses[key] for key in "12"}))
        if best == "3":
            (tmp_path / "b" / "best.pt").unlink()
    again = head()
    second = train_head(again, frames, training, validation, tmp_path / "b", print, QUICK)
    assert second == pytest.approx(first)
    assert json.loads((tmp_path / "b" / "epochs.json").read_text()) == pytest.approx(
        json.loads((tmp_path / "a" / "epochs.json").read_text())
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_frames_dealt_out_singly_promise_what_new_patients_do_not_keep(tmp_path: Path) -> None:
    # Features that only say who it is: nothing about a new patient can be learnt.
    frames = patients(45, 8, by_class=0.0, by_patient=1.0)
    recordings = [
        Recording(f"{i}.mp4", CLASSES[i % 3], "video", f"p{i}", "clinic", "x", 8, (64, 64), 25.0) for i in range(45)
    ]
    honest = patient_folds(recordings, class_indices(recordings))[frames.recording]
    leaking = leaking_frame_folds(frames.labels.tolist())
    found = {}
    for name, fold in (("honest", honest), ("leaking", leaking)):
        training, held_out = np.flatnonzero(fold > 1).tolist(), np.flatnonzero(fold == 0).tolist()
        tail = head()
        recipe = replace(QUICK, epochs=20)
        train_head(tail, frames, training, np.flatnonzero(fold == 1).tolist(), tmp_path / name, print, recipe)
        decided = logits_of(tail, frames, held_out).argmax(1)
        found[name] = scores(frames.labels[held_out], decided, CLASSES)["balanced_accuracy"]
    assert found["leaking"] > 0.9
    assert found["honest"] < 0.65


def test_a_training_that_diverges_is_said(tmp_path: Path) -> None:
    frames = patients(6, 2, by_class=1.0, by_patient=0.1)
    frames.features[4][:] = np.nan
    with pytest.raises(SettingsError, match="no epoch had a finite likelihood"):
        train_head(head(), frames, indices(frames, range(4)), indices(frames, range(4, 6)), tmp_path, print, QUICK)


def cohort(folder: Path) -> list[Recording]:
    """Twelve patients with a still each; bright, dark or striped by class."""
    random = np.random.default_rng(0)
    found = []
    for i in range(12):
        pixels = random.integers(0, 60, (40, 40)).astype(np.uint8)
        pixels[:, :: i % 3 + 2] += 150
        Image.fromarray(pixels).save(folder / f"{i}.png")
        found.append(Recording(f"{i}.png", CLASSES[i % 3], "image", f"p{i}", "clinic", "x", 1, (40, 40)))
    return [*found, replace(found[-1], label="viral_pneumonia", patient="v")]


def test_a_fold_from_files_to_predictions(tmp_path: Path) -> None:
    recordings = cohort(tmp_path)
    lines: list[str] = []
    options = {"n_folds": 2, "plan_copies": 2, "recipe": replace(RECIPE, epochs=1), "random_start": True}
    result = train_fold("efficientnet_lite0", tmp_path, recordings, 1, tmp_path / "w", lines.append, **options)  # type: ignore[arg-type]
    found = np.load(result)
    fold = patient_folds(recordings, class_indices(recordings), 2)
    assert found["recording"].tolist() == np.flatnonzero(fold != 0).tolist()  # held out, and those apart
    assert found["labels"].tolist() == [class_indices(recordings)[i] for i in found["recording"]]
    assert found["logits"].shape == (len(found["recording"]), 3)
    assert found["temperature"] > 0
    assert any("epoch 1/1" in line for line in lines)

    # The stored network is the one that predicted, from the files.
    from safetensors.torch import load_file

    from medxai.learn.lung_us.frames import prepared_frames, read_recording
    from medxai.learn.lung_us.heads import LITE_SPEC
    from medxai.networks.efficientnet_lite import EfficientNetLite0

    network = EfficientNetLite0(3).eval()
    network.load_state_dict(load_file(result.with_name("network.safetensors")))
    row = recordings[int(found["recording"][0])]
    with torch.inference_mode():
        logits = network(torch.from_numpy(prepared_frames(read_recording(tmp_path, row), (0,), LITE_SPEC)))
    assert np.allclose(logits.numpy()[0], found["logits"][0], atol=2e-2)

    lines.clear()
    assert train_fold("efficientnet_lite0", tmp_path, recordings, 1, tmp_path / "w", lines.append, **options) == result  # type: ignore[arg-type]
    assert not lines  # done is done


@pytest.mark.slow
def test_the_video_network_learns_from_a_limited_number_of_clips(tmp_path: Path) -> None:
    pytest.importorskip("av")
    recordings = []
    random = np.random.default_rng(0)
    for i in range(9):
        pictures = [Image.fromarray(random.integers(0, 255, (40, 40), dtype=np.uint8)) for _ in range(20)]
        pictures[0].save(tmp_path / f"{i}.gif", save_all=True, append_images=pictures[1:], duration=200, loop=0)
        recordings.append(Recording(f"{i}.gif", CLASSES[i % 3], "video", f"p{i}", "clinic", "x", 20, (40, 40), 5.0))
    lines: list[str] = []
    recipe = replace(RECIPE, epochs=1, batch_size=8)
    result = train_fold(
        "genesis",
        tmp_path,
        [*recordings, *cohort(tmp_path)[:3]],
        0,
        tmp_path / "w",
        lines.append,
        n_folds=3,
        plan_copies=1,
        recipe=recipe,
        random_start=True,
    )
    found = np.load(result)
    assert set(np.bincount(found["recording"])[found["recording"]].tolist()) == {4}  # all clips, and no stills
    assert sorted(set(found["labels"].tolist())) == [0, 1, 2]
    assert found["logits"].shape == (len(found["labels"]), 3)
    trained = np.load(next((tmp_path / "w").glob("genesis-*/fold0/training.npy")))
    # Four clips of a video, of which covid gives three.
    for i, place in trained.tolist():
        assert place < (3 if i % 3 == 0 else 4)
    assert {place for i, place in trained.tolist() if i % 3 == 0} == {0, 1, 2}
    assert {place for i, place in trained.tolist() if i % 3 == 1} == {0, 1, 2, 3}
    assert not set(trained[:, 0].tolist()) & set(found["recording"].tolist())


def test_a_fold_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["vgg_cam", "--fold", "5", "--data", str(tmp_path)])
    assert "between 0 and 4" in capsys.readouterr().err
