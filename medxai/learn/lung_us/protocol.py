"""The scores of the published protocol, from the stored predictions of the folds of a network.

Born et al. 2021 (arXiv:2009.06116): frames, and clips by the mean probability of their frames or by their majority;
mean and standard deviation over folds. Beside them intervals over patients, of all folds together. Scores are those of
lungs; in runs with a fourth output a lung that is called uninformative is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medxai.errors import SettingsError
from medxai.learn.lung_us.calibration import (
    ReliabilityBin,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
)
from medxai.learn.lung_us.cohort import UNINFORMATIVE
from medxai.learn.lung_us.metrics import (
    GroupScore,
    Rule,
    Spread,
    by_source,
    decide_recordings,
    over_folds,
    pooled,
    scores,
)
from medxai.learn.lung_us.runs import FrameTable
from medxai.learn.lung_us.uncertainty import (
    RejectionCurve,
    combined_confidence,
    correctness_correlation,
    rejection_curve,
)
from medxai.learn.metrics import Interval, bootstrap
from medxai.predict.confidence import Belief

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Shares of frames that are kept, at which the accuracy is told.
KEPT = (1.0, 0.9, 0.8, 0.7, 0.5)


@dataclass(frozen=True)
class Level:
    """Scores of frames or of clips.

    Attributes:
        folds: score by name, mean and standard deviation over folds.
        pooled: score by name over all folds, with its interval over patients.
    """

    folds: dict[str, Spread]
    pooled: dict[str, Interval]


@dataclass(frozen=True)
class Clip:
    """What one clip was decided to be.

    Attributes:
        recording: path.
        fold: whose network decided.
        decided: class name by the mean probability of the frames.
        probability: of that class.
    """

    recording: str
    fold: int
    decided: str
    probability: float


@dataclass(frozen=True)
class Rejection:
    """How pictures of something else, and lungs, are declined.

    Attributes:
        recognised: share of the uninformative pictures that are called so; interval over their groups.
        lungs_declined: share of the lung frames that are called uninformative; interval over patients.
        by_source: source of the pictures -> how many of how many were recognised.
    """

    recognised: Interval
    lungs_declined: Interval
    by_source: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Calibration:
    """Whether the probabilities of lung frames are what they claim.

    Attributes:
        before: expected calibration error of the softmax; interval over patients.
        after: the same at each fold's temperature, which its inner validation set gave.
        likelihood_before: mean negative log-likelihood in nats.
        likelihood_after: the same at the temperatures.
        temperatures: by fold.
        bars: reliability diagram at the temperatures.
        bars_before: the same without.
        kept: accuracy of the frames that are kept when the least sure are put aside.
    """

    before: Interval
    after: Interval
    likelihood_before: float
    likelihood_after: float
    temperatures: dict[int, float]
    bars: tuple[ReliabilityBin, ...]
    bars_before: tuple[ReliabilityBin, ...]
    kept: RejectionCurve


@dataclass(frozen=True)
class Certainty:
    """How well a kind of confidence tells right from wrong frames.

    Attributes:
        correlation: Pearson's r of confidence with being right; interval over patients.
        right: mean confidence of frames that are decided right.
        wrong: of those that are not.
        kept: accuracy of what is kept, by confidence.
    """

    correlation: Interval
    right: float
    wrong: float
    kept: RejectionCurve


@dataclass(frozen=True)
class NetworkScores:
    """All scores of one network.

    Attributes:
        frames: of single frames (of clips of five frames for the video network).
        videos: by rule, of the recordings that are clips.
        sources: source group -> scores of its recordings, stills included, by mean probability.
        apart: clips of viral pneumonia, decided by the network of every fold.
        rejection: None for three outputs, or without such pictures.
        calibration: of lung frames.
        folds: that are finished.
        recordings: lungs among the held-out recordings.
        patients: of these.
    """

    frames: Level
    videos: dict[Rule, Level]
    sources: dict[str, GroupScore]
    apart: tuple[Clip, ...]
    rejection: Rejection | None
    calibration: Calibration
    folds: tuple[int, ...]
    recordings: int
    patients: int


def score_network(table: FrameTable, resamples: int = 2000) -> NetworkScores:
    """Score the predictions of a network's folds.

    Args:
        table: all frames that were predicted.
        resamples: of every bootstrap.

    Raises:
        SettingsError: no lung among them.
    """
    lungs = table.keep(table.lungs)
    if not len(lungs):
        msg = "no lung among the predictions; nothing to score"
        raise SettingsError(msg)
    clips = lungs.keep(lungs.kind == "video")
    rules: tuple[Rule, ...] = ("mean", "majority")
    videos = {rule: _level(*_recordings(clips, rule), lungs.classes, resamples) for rule in rules if len(clips)}
    truth, decided, patient, source, _ = _recordings(lungs, "mean")
    return NetworkScores(
        frames=_level(lungs.label, lungs.decided, lungs.patient, lungs.source, lungs.fold, lungs.classes, resamples),
        videos=videos,
        sources=by_source(truth, decided, source.tolist(), patient.tolist(), lungs.classes),
        apart=_apart(table),
        rejection=_rejection(table, resamples),
        calibration=_calibration(lungs, resamples),
        folds=table.folds,
        recordings=len(truth),
        patients=len(np.unique(patient)),
    )


def certainty(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, patients: Sequence[str], resamples: int = 2000
) -> Certainty:
    """Judge a confidence by what it says of right and wrong decisions.

    Args:
        confidence: ``[N]``.
        correct: ``[N]`` whether the decision is right.
        patients: who each is of.
        resamples: of the bootstrap.
    """
    c, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=bool)
    return Certainty(
        correctness_correlation(c, right, patients, resamples=resamples),
        float(c[right].mean()) if right.any() else float("nan"),
        float(c[~right].mean()) if not right.all() else float("nan"),
        rejection_curve(c, right),
    )


def certainties(
    table: FrameTable, rows: IntArray, changed: Belief, dropped: Belief, resamples: int = 2000
) -> dict[str, Certainty]:
    """Judge aleatoric, epistemic and combined confidence on lung frames; decisions are those without repetition.

    Args:
        table: all frames.
        rows: those of `table` that were asked again.
        changed: what changed pictures say of `rows`.
        dropped: what dropout says of `rows`.
        resamples: of the bootstrap.
    """
    asked = table.keep(rows)
    keep = asked.lungs
    right = (asked.decided == asked.label)[keep]
    patients = asked.patient[keep].tolist()
    kinds = {
        "aleatoric": changed.confidence,
        "epistemic": dropped.confidence,
        "combined": combined_confidence(changed, dropped),
    }
    return {name: certainty(values[keep], right, patients, resamples) for name, values in kinds.items()}


def accuracy_at(curve: RejectionCurve, kept: float) -> tuple[float, float]:
    """Return the accuracy of the smallest part that holds at least a share `kept`, and its threshold."""
    index = int(np.searchsorted(curve.kept, kept - 1e-9))
    return float(curve.accuracy[index]), float(curve.threshold[index])


def difference(first: FrameTable, second: FrameTable, score: str, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return a frame score of `first` less that of `second`; patients of both are resampled independently.

    Args:
        first: lung frames.
        second: lung frames of the same folds of another split.
        score: one of `medxai.learn.lung_us.metrics.score_names`.
        resamples: of the bootstrap.
        seed: of its draws.
    """
    drawn = [_drawn(table, score, resamples, seed + number) for number, table in enumerate((first, second))]
    low, high = np.nanpercentile(drawn[0][1] - drawn[1][1], [2.5, 97.5]).tolist()
    groups = len(np.unique(np.concatenate([first.patient, second.patient])))
    return Interval(drawn[0][0] - drawn[1][0], low, high, len(first) + len(second), groups)


def _drawn(table: FrameTable, score: str, resamples: int, seed: int) -> tuple[float, FloatArray]:
    names, member = np.unique(table.patient, return_inverse=True)
    members = [np.flatnonzero(member == i) for i in range(len(names))]
    random = np.random.default_rng(seed)
    decided, values = table.decided, []
    for _ in range(resamples):
        chosen = np.concatenate([members[i] for i in random.integers(0, len(names), len(names))])
        values.append(scores(table.label[chosen], decided[chosen], table.classes)[score])
    return scores(table.label, decided, table.classes)[score], np.array(values)


def _level(
    truth: IntArray,
    decided: IntArray,
    patient: Array,
    _source: Array,
    fold: IntArray,
    classes: Sequence[str],
    resamples: int,
) -> Level:
    each = [scores(truth[fold == number], decided[fold == number], classes) for number in np.unique(fold)]
    return Level(over_folds(each), pooled(truth, decided, patient.tolist(), classes, resamples=resamples))


def _recordings(table: FrameTable, rule: Rule) -> tuple[IntArray, IntArray, Array, Array, IntArray]:
    """Truth, decision, patient, source and fold of each recording."""
    _, first, member = np.unique(table.recording, return_index=True, return_inverse=True)
    _, decided, _ = decide_recordings(table.probabilities(), member.tolist(), rule)
    return table.label[first], decided.astype(np.int64), table.patient[first], table.source[first], table.fold[first]


def _apart(table: FrameTable) -> tuple[Clip, ...]:
    found = []
    rest = table.keep(table.label < 0)
    for number in np.unique(rest.fold).tolist():
        mine = rest.keep(rest.fold == number)
        names, member = np.unique(mine.recording, return_inverse=True)
        _, decided, means = decide_recordings(mine.probabilities(), member.tolist())
        for name, label, mean in zip(names.tolist(), decided.tolist(), means, strict=True):
            found.append(Clip(name, number, table.classes[label], float(mean[label])))
    return tuple(found)


def _rejection(table: FrameTable, resamples: int) -> Rejection | None:
    if UNINFORMATIVE not in table.classes:
        return None
    index = table.classes.index(UNINFORMATIVE)
    others = table.keep(table.label == index)
    if not len(others):
        return None
    declined = others.decided == index
    return Rejection(
        _share(declined, others.patient, resamples),
        _share(table.decided[table.lungs] == index, table.patient[table.lungs], resamples),
        {
            name: (int(declined[others.source == name].sum()), int((others.source == name).sum()))
            for name in np.unique(others.source).tolist()
        },
    )


def _share(values: Array, groups: Array, resamples: int) -> Interval:
    given = np.asarray(values, dtype=np.float64)
    return bootstrap(lambda _truth, v: float(np.mean(v.astype(np.float64))), given, given, groups.tolist(), n=resamples)


def _calibration(lungs: FrameTable, resamples: int) -> Calibration:
    def error(truth: Array, probabilities: Array) -> float:
        return expected_calibration_error(probabilities, truth)

    raw, tempered = lungs.probabilities(calibrated=False), lungs.probabilities()
    patients = lungs.patient.tolist()
    return Calibration(
        before=bootstrap(error, lungs.label, raw, patients, n=resamples),
        after=bootstrap(error, lungs.label, tempered, patients, n=resamples),
        likelihood_before=negative_log_likelihood(lungs.logits, lungs.label),
        likelihood_after=negative_log_likelihood(lungs.logits / lungs.temperature[:, None], lungs.label),
        temperatures={int(f): float(lungs.temperature[lungs.fold == f][0]) for f in np.unique(lungs.fold)},
        bars=reliability(tempered, lungs.label),
        bars_before=reliability(raw, lungs.label),
        kept=rejection_curve(tempered.max(axis=1), lungs.decided == lungs.label),
    )
