"""Features of a whole data set: each subject once, failures with their reason, resumed when killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from medxai.files import write_text
from medxai.identity import sha256_file, sha256_files, sha256_json
from medxai.prepare.brain.atlas import read_atlas
from medxai.prepare.brain.bids import Scans, scans_of, subjects
from medxai.prepare.brain.derivatives import read_index, write_dataset, write_subject
from medxai.prepare.brain.features import Clock, subject_features
from medxai.prepare.brain.outcome import Outcome, attempt, write_failures
from medxai.prepare.brain.scanner import scans_in
from medxai.prepare.brain.settings import AtlasOptions, FeatureSettings

Say = Callable[[str], None]


def run_subject(
    subject: str, settings: FeatureSettings, scans: Scans | None = None, say: Say = lambda _: None
) -> Outcome:
    """Compute and write one subject, or find that this was done before with the same files and settings.

    A failure is an outcome with its reason and stops nobody else.

    Args:
        subject: with its prefix, ``sub-01``.
        settings: of the data set.
        scans: its files; None looks them up in the BIDS data set.
        say: receives a line.
    """
    outcome = attempt(subject, lambda: _computed(subject, settings, scans), "computing")
    if outcome.state == "failed":
        say(f"{subject} failed: {outcome.reason}")
    else:
        say(f"{subject} done in {sum(outcome.seconds.values()):.1f} s")
    return outcome


def _computed(subject: str, settings: FeatureSettings, scans: Scans | None) -> Outcome:
    clock = Clock()
    scans = scans or scans_of(settings.input, subject, settings)
    inputs, chosen = sha256_files(scans.files), settings_hash(settings)
    index = read_index(settings.output, subject)
    if index and (index["inputs_sha256"], index["settings_sha256"]) == (inputs, chosen):
        root = settings.output / subject
        if all((root / f).is_file() and sha256_file(root / f) == digest for f, digest in index["files"].items()):
            return Outcome(subject, "done before")
    found = subject_features(scans, settings, clock)
    with clock.step("write"):
        write_subject(settings.output, found, settings.regional, settings.diffusion.weight, inputs, chosen)
    return Outcome(subject, "done", seconds={name: round(v, 3) for name, v in clock.seconds.items()})


def run_dataset(settings: FeatureSettings, say: Say = lambda _: None) -> list[Outcome]:
    """All subjects, one after the other; finished ones are skipped.

    Raises:
        MedxaiError: the input holds no scans, or an atlas cannot be read.
    """
    everyone = begin(settings)
    outcomes = []
    for number, (subject, scans) in enumerate(everyone.items(), 1):
        say(f"{number}/{len(everyone)} {subject}")
        outcomes.append(run_subject(subject, settings, scans, say))
    finish(settings, outcomes)
    return outcomes


def begin(settings: FeatureSettings) -> dict[str, Scans | None]:
    """Check what all subjects need, write the data set's own files, and name the subjects.

    Returns:
        By subject its files in a folder of DICOM, or None in a BIDS data set, where each subject is looked up later.

    Raises:
        MedxaiError: the input is no BIDS data set and holds no DICOM series of several volumes, or an atlas cannot be
            read.
    """
    everyone: dict[str, Scans | None]
    if settings.input.is_dir() and not any(settings.input.glob("sub-*/")):
        everyone = dict(scans_in(settings.input, settings.task))
    else:
        everyone = dict.fromkeys(subjects(settings.input))
    for options in (settings.atlas, settings.diffusion_atlas):
        if options is not None:
            read_atlas(options)
    write_dataset(settings.output, settings.input)
    return everyone


def finish(settings: FeatureSettings, outcomes: list[Outcome]) -> None:
    """Write failures.tsv, and add the seconds of each step to timings.json."""
    write_failures(settings.output, outcomes)
    path = settings.output / "timings.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    known |= {o.subject: dict(o.seconds) for o in outcomes if o.state == "done"}
    write_text(path, json.dumps(known, indent=1, sort_keys=True) + "\n")


def settings_hash(settings: FeatureSettings) -> str:
    """Hash of all settings that influence results; files of an atlas count by their content."""
    values = settings.model_dump(mode="json", exclude={"input", "output", "atlas", "diffusion_atlas"})
    return sha256_json([values, *(_atlas_hash(o) for o in (settings.atlas, settings.diffusion_atlas))])


def _atlas_hash(options: AtlasOptions | None) -> list[Any]:
    if options is None:
        return []
    files = [path for path in (options.image, options.table, options.network_image) if path is not None]
    rest = options.model_dump(mode="json", exclude={"image", "table", "network_image"})
    return [rest, *(sha256_file(path) if path.is_file() else "" for path in files), options.image.name]
