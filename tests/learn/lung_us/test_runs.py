from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medxai.errors import SettingsError
from medxai.learn.lung_us.cohort import CLASSES, UNINFORMATIVE, Recording, class_indices
from medxai.learn.lung_us.runs import FrameTable, find_runs, read_frames, read_run, write_frames


def cohort() -> tuple[list[Recording], list[Recording]]:
    lungs = [
        Recording(
            f"us_lung/{i}.mp4", CLASSES[i % 3], "video", f"us_lung:{i // 2}", f"clinic{i % 4}", "x", 9, (8, 8), 9.0
        )
        for i in range(12)
    ]
    viral = Recording("us_lung/v.mp4", "viral_pneumonia", "video", "us_lung:v", "atlas", "x", 9, (8, 8), 9.0)
    others = [Recording(f"b/{i}.png", UNINFORMATIVE, "image", f"b:{i}", "b", "x", 1, (8, 8)) for i in range(4)]
    return [*lungs, viral], others


def store(
    folder: Path, fold: int, recordings: list[Recording], held_out: list[int], *, width: int = 4, frames: int = 3
) -> None:
    """Predictions of a fold, right where the place is even."""
    labels = class_indices(recordings, uninformative=width == 4)
    which = np.repeat(held_out, frames)
    place = np.tile(np.arange(frames), len(held_out))
    truth = np.array(labels)[which]
    logits = np.zeros((len(which), width), dtype=np.float32)
    logits[np.arange(len(which)), (truth + place % 2) % width] = 2 + fold
    (folder / f"fold{fold}").mkdir(parents=True)
    np.savez(
        folder / f"fold{fold}" / "predictions.npz",
        logits=logits,
        labels=truth,
        recording=which,
        place=place,
        temperature=np.array(1.5 + fold),
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lungs, others = cohort()
    folder = tmp_path / "work" / "efficientnet_lite0-patients-0a1b2c3d"
    for fold in range(2):
        store(folder, fold, [*lungs, *others], [*range(fold, 12, 2), 12, 13 + fold, 15 + fold])
    return folder


def test_frames_are_lined_up_with_what_is_known_of_their_recordings(run: Path) -> None:
    lungs, others = cohort()
    table = read_run(run, lungs, others)
    assert table.classes == (*CLASSES, UNINFORMATIVE)
    assert len(table) == 2 * 9 * 3
    assert table.folds == (0, 1)
    for i in range(len(table)):
        recording = next(r for r in (*lungs, *others) if r.path == table.recording[i])
        assert (table.patient[i], table.source[i], table.kind[i]) == (
            recording.patient,
            recording.source_group,
            recording.kind,
        )
        named = "viral_pneumonia" if table.label[i] < 0 else table.classes[table.label[i]]
        assert named == recording.label
    assert table.lungs.sum() == 12 * 3
    assert (table.label < 0).sum() == 2 * 3  # the networks of both folds were asked about viral pneumonia
    assert (table.decided == table.label)[table.lungs].mean() == pytest.approx(2 / 3)


def test_temperature_changes_probabilities_and_no_decision(run: Path) -> None:
    table = read_run(run, *cohort())
    raw, calibrated = table.probabilities(calibrated=False), table.probabilities()
    assert np.allclose(raw.sum(1), 1)
    assert np.array_equal(raw.argmax(1), calibrated.argmax(1))
    odds = calibrated.max(1) / calibrated.min(1)
    assert np.allclose(np.log(odds), (2 + table.fold) / (1.5 + table.fold))


def test_a_table_is_read_as_it_was_written(run: Path, tmp_path: Path) -> None:
    table = read_run(run, *cohort())
    confidence = np.linspace(0, 1, len(table))
    confidence[3] = np.nan
    path = write_frames(tmp_path / "frames.csv", table, {"aleatoric": confidence})
    again, extra = read_frames(path, ["aleatoric"])
    for name in FrameTable.__dataclass_fields__:
        if name == "classes":
            assert again.classes == table.classes
        else:
            assert np.array_equal(getattr(again, name), getattr(table, name)), name
    assert np.allclose(extra["aleatoric"], confidence, atol=1e-4, equal_nan=True)
    with pytest.raises(SettingsError, match="epistemic"):
        read_frames(path, ["epistemic"])
    with pytest.raises(SettingsError, match="not found"):
        read_frames(tmp_path / "other.csv")


def test_other_tables_than_in_training_are_refused(run: Path) -> None:
    lungs, others = cohort()
    with pytest.raises(SettingsError, match="other tables"):
        read_run(run, lungs[::-1], others)
    with pytest.raises(SettingsError, match="other tables"):
        read_run(run, lungs, [])
    (run / "empty-patients-12345678").mkdir()
    with pytest.raises(SettingsError, match="no finished fold"):
        read_run(run / "empty-patients-12345678", lungs, others)


def test_of_several_runs_the_one_with_most_folds_is_taken(run: Path) -> None:
    lungs, _ = cohort()
    work = run.parent
    store(work / "efficientnet_lite0-patients-ffffffff", 0, lungs, [0, 1], width=3)
    store(work / "vgg_cam-leaking-00000000", 0, lungs, [0, 1], width=3)
    (work / "vgg_base-patients-00000000" / "fold0").mkdir(parents=True)
    assert find_runs(work) == {
        ("efficientnet_lite0", "patients"): run,
        ("vgg_cam", "leaking"): work / "vgg_cam-leaking-00000000",
    }
