"""What became of a subject of a data set; a failure is an outcome with its reason and stops nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medxai.errors import MedxaiError
from medxai.files import write_text


@dataclass(frozen=True)
class Outcome:
    """What became of a subject: ``done``, ``done before`` or ``failed`` with the reason."""

    subject: str
    state: str
    code: str = ""
    reason: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)


def attempt(subject: str, make: Callable[[], Outcome], what: str) -> Outcome:
    """Do it; what goes wrong becomes an outcome.

    Args:
        subject: pseudonym.
        make: the work.
        what: is done, for errors that nobody foresaw: ``computing``.
    """
    try:
        return make()
    except MedxaiError as error:
        # Files of a BIDS data set are named by the subject's pseudonym; other names stay out of the table.
        file = f"{error.study}: " if error.study and error.study.startswith(f"{subject}_") else ""
        return Outcome(subject, "failed", error.code, file + error.reason)
    except (ValueError, ArithmeticError, LookupError, OSError, MemoryError, RuntimeError) as error:
        # What Python says may quote paths or header values; its kind and place do not.
        return Outcome(subject, "failed", "unexpected", f"{type(error).__name__} while {what}; report it")


def write_failures(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write ``failures.tsv``, the subjects and reasons of this run."""
    rows = [f"{o.subject}\t{o.code}\t{o.reason}" for o in outcomes if o.state == "failed"]
    return write_text(folder / "failures.tsv", "\n".join(["participant_id\tcode\treason", *rows]) + "\n")
