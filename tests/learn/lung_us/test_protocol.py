from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, matthews_corrcoef

from medxai.errors import SettingsError
from medxai.learn.lung_us.cohort import CLASSES, UNINFORMATIVE
from medxai.learn.lung_us.protocol import accuracy_at, certainties, certainty, difference, score_network
from medxai.learn.lung_us.runs import FrameTable
from medxai.learn.lung_us.uncertainty import rejection_curve
from medxai.predict.confidence import believe

NAMES = (*CLASSES, UNINFORMATIVE)


def table(rows: list[tuple[str, str, int, int, list[float]]], kind: str = "video", fold: int = 0) -> FrameTable:
    """Frames from ``(recording, patient, place, label, logits)``; the source is the patient's first letter."""
    return FrameTable(
        classes=NAMES,
        recording=np.array([row[0] for row in rows]),
        place=np.array([row[2] for row in rows]),
        patient=np.array([row[1] for row in rows]),
        source=np.array([row[1][0] for row in rows]),
        kind=np.array([kind] * len(rows)),
        label=np.array([row[3] for row in rows]),
        fold=np.full(len(rows), fold),
        logits=np.array([row[4] for row in rows], dtype=np.float64),
        temperature=np.ones(len(rows)),
    )


def joined(*parts: FrameTable) -> FrameTable:
    names = [name for name in FrameTable.__dataclass_fields__ if name != "classes"]
    return replace(parts[0], **{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def drawn(seed: int, patients: int = 30, frames: int = 5) -> FrameTable:
    random = np.random.default_rng(seed)
    parts = []
    for fold in range(3):
        rows = []
        for p in range(patients):
            label = int(random.integers(0, 3))
            for t in range(frames):
                logits = random.normal(0, 1, 4)
                logits[label] += 1
                rows.append((f"{fold}-{p}.mp4", f"{'abc'[p % 3]}{fold}-{p}", t, label, logits.tolist()))
        rows += [(f"n{fold}-{i}.png", f"n{fold}-{i}", 0, 3, random.normal(0, 1, 4).tolist()) for i in range(8)]
        parts.append(table(rows, fold=fold))
    return joined(*parts)


def test_scores_are_those_of_scikit_learn_over_folds_and_in_all() -> None:
    frames = drawn(1)
    found = score_network(frames, resamples=100)
    lungs = frames.keep(frames.label < 3)
    each = [balanced_accuracy_score(lungs.label[lungs.fold == k], lungs.decided[lungs.fold == k]) for k in range(3)]
    spread = found.frames.folds["balanced_accuracy"]
    assert (spread.mean, spread.sd) == (pytest.approx(np.mean(each)), pytest.approx(np.std(each, ddof=1)))
    pooled = found.frames.pooled
    assert pooled["mcc_covid"].value == pytest.approx(matthews_corrcoef(lungs.label == 0, lungs.decided == 0))
    assert pooled["accuracy"].groups == 90
    assert pooled["accuracy"].low < pooled["accuracy"].value < pooled["accuracy"].high
    assert found.folds == (0, 1, 2)
    assert (found.recordings, found.patients) == (90, 90)
    assert sum(source.n for source in found.sources.values()) == 90
    assert found.videos["mean"].pooled["accuracy"].value > pooled["accuracy"].value  # five frames know more than one


def test_the_rules_disagree_where_one_sure_frame_stands_against_two_unsure_ones() -> None:
    sure, unsure = [6.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.3, 0.0]
    rows = [("a.mp4", "a", 0, 0, sure), ("a.mp4", "a", 1, 0, unsure), ("a.mp4", "a", 2, 0, unsure)]
    rows += [("b.mp4", "b", t, 2, unsure) for t in range(3)]
    found = score_network(table(rows), resamples=20)
    assert found.videos["mean"].pooled["sensitivity_covid"].value == 1
    assert found.videos["majority"].pooled["sensitivity_covid"].value == 0
    assert found.videos["majority"].pooled["sensitivity_healthy"].value == 1


def test_a_lung_that_is_called_uninformative_is_wrong() -> None:
    rows = [("a.mp4", "a", t, 0, [1.0, 0.0, 0.0, 2.0 * (t == 0)]) for t in range(4)]
    rows += [("n.png", "n", 0, 3, [0.0, 0.0, 0.0, 1.0]), ("m.png", "m", 0, 3, [1.0, 0.0, 0.0, 0.0])]
    found = score_network(table(rows), resamples=20)
    assert found.frames.pooled["accuracy"].value == pytest.approx(3 / 4)
    assert found.frames.pooled["accuracy"].n == 4  # pictures of something else are scored apart
    assert found.rejection is not None
    assert found.rejection.recognised.value == pytest.approx(1 / 2)
    assert found.rejection.lungs_declined.value == pytest.approx(1 / 4)
    assert found.rejection.by_source == {"m": (0, 1), "n": (1, 1)}


def test_stills_count_as_frames_and_sources_but_not_as_videos() -> None:
    clip = table([("a.mp4", "a", t, 0, [1.0, 0, 0, 0]) for t in range(2)])
    still = table([("b.png", "b", 0, 2, [1.0, 0, 0, 0])], kind="image")
    found = score_network(joined(clip, still), resamples=20)
    assert found.videos["mean"].pooled["accuracy"].n == 1
    assert found.frames.pooled["accuracy"].n == 3
    assert set(found.sources) == {"a", "b"}


def test_viral_clips_are_told_apart_for_every_network_that_was_asked() -> None:
    viral = [("v.mp4", "v", t, -1, [0.0, 2.0, 0.0, 0.0]) for t in range(3)]
    lungs = [("a.mp4", "a", 0, 0, [1.0, 0, 0, 0])]
    found = score_network(joined(table(lungs), table(viral), table(viral, fold=1)), resamples=20)
    assert [(clip.recording, clip.fold, clip.decided) for clip in found.apart] == [
        ("v.mp4", 0, "bacterial_pneumonia"),
        ("v.mp4", 1, "bacterial_pneumonia"),
    ]
    assert found.apart[0].probability == pytest.approx(np.exp(2) / (np.exp(2) + 3))
    assert found.frames.pooled["accuracy"].n == 1


def test_calibration_is_that_of_the_temperatures() -> None:
    frames = drawn(2)
    honest = score_network(replace(frames, logits=frames.logits), resamples=50).calibration
    loud = replace(frames, logits=frames.logits * 5, temperature=np.full(len(frames), 5.0))
    found = score_network(loud, resamples=50).calibration
    assert found.after.value == pytest.approx(honest.before.value)
    assert found.before.value > found.after.value + 0.1
    assert found.likelihood_before > found.likelihood_after
    assert found.temperatures == {0: 5.0, 1: 5.0, 2: 5.0}
    assert sum(bar.n for bar in found.bars) == frames.lungs.sum()


def test_nothing_to_score_is_said() -> None:
    with pytest.raises(SettingsError, match="no lung"):
        score_network(table([("n.png", "n", 0, 3, [0, 0, 0, 1.0])]), resamples=20)


def test_confidence_is_judged_by_what_it_says_of_right_and_wrong() -> None:
    random = np.random.default_rng(0)
    right = random.random(600) < 0.7
    told = certainty(0.5 + 0.4 * right, right, [str(i % 40) for i in range(600)], 100)
    assert told.correlation.value == pytest.approx(1)
    assert (told.right, told.wrong) == (pytest.approx(0.9), pytest.approx(0.5))
    blind = certainty(random.random(600), right, [str(i % 40) for i in range(600)], 100)
    assert blind.correlation.low < 0 < blind.correlation.high
    assert accuracy_at(told.kept, 0.5)[0] == 1
    assert accuracy_at(told.kept, 1.0)[0] == pytest.approx(right.mean())


def test_repeated_questions_are_judged_on_lungs_in_the_order_they_were_asked() -> None:
    frames = drawn(3, patients=12)
    rows = np.random.default_rng(0).permutation(len(frames))[:80]
    asked = frames.keep(rows)
    # Passes that agree exactly where the decision without them is right.
    wobble = np.where(asked.decided == asked.label, 0.0, 0.3)
    passes = np.stack([np.stack([0.5 + s * wobble, 0.5 - s * wobble], axis=1) for s in (-1, 1, -1, 1)])
    calm = believe(np.full((4, 80, 2), 0.5))
    found = certainties(frames, rows, believe(passes), calm, 50)
    assert found["aleatoric"].correlation.value == pytest.approx(1)
    assert found["aleatoric"].correlation.n == asked.lungs.sum()
    assert np.isnan(found["epistemic"].correlation.value)  # says the same of all
    assert found["combined"].wrong == pytest.approx((0.4 + 1) / 2)


def test_the_smallest_part_that_holds_the_share_is_taken() -> None:
    curve = rejection_curve([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0])
    assert accuracy_at(curve, 0.25) == (1.0, 0.9)
    assert accuracy_at(curve, 0.3) == (pytest.approx(2 / 3), 0.8)


def test_a_difference_of_splits_has_an_interval_over_patients() -> None:
    good, bad = drawn(4), drawn(5)
    bad = replace(bad, logits=np.roll(bad.logits, 1, axis=1))
    good, bad = (t.keep(t.lungs) for t in (good, bad))
    found = difference(good, bad, "accuracy", 200)
    expected = (good.decided == good.label).mean() - (bad.decided == bad.label).mean()
    assert found.value == pytest.approx(expected)
    assert 0 < found.low < found.value < found.high
    same = difference(good, good, "accuracy", 200)
    assert same.low < 0 < same.high
