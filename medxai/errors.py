"""The error tree: every message names the study or file, the tag or cause, and what to do about it."""

from __future__ import annotations


class MedxaiError(Exception):
    """Base of every error that a user can act on; the command line prints its message as one line.

    Args:
        reason: one line that names the cause and, where there is one, the way out. Never patient data.
        study: pseudonymous study key or a file name that the user gave; prefixed to the message.
    """

    #: Short machine-readable word stored in quarantine records.
    code = "error"

    def __init__(self, reason: str, *, study: str | None = None) -> None:
        self.reason = " ".join(str(reason).split())
        self.study = study
        super().__init__(self.reason if study is None else f"{study}: {self.reason}")

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by reason and study, so that the error survives process boundaries unchanged."""
        return (_rebuild, (type(self), self.reason, self.study))

    def about(self, study: str) -> MedxaiError:
        """Return the same error naming `study`, unless it already names one."""
        return self if self.study else type(self)(self.reason, study=study)


def _rebuild(kind: type[MedxaiError], reason: str, study: str | None) -> MedxaiError:
    return kind(reason, study=study)


class IngestError(MedxaiError):
    """A file or series cannot be read as an image."""

    code = "ingest"


class TileError(IngestError):
    """One tile of a whole slide is damaged; the others can still be read."""

    code = "tile"


class GeometryError(IngestError):
    """A series is not a regular grid in the patient: tilt, gaps, duplicates, mixed orientations."""

    code = "geometry"


class IdentifierError(IngestError):
    """DICOM identifiers are missing or invalid; `medxai repair` can derive valid ones."""

    code = "identifiers"


class BundleError(MedxaiError):
    """A model bundle is malformed, not on the allow-list, or would need code execution to load."""

    code = "bundle"


class MismatchError(MedxaiError):
    """The study does not fit the bundle: modality, body part or dimensionality."""

    code = "mismatch"


class ExplainError(MedxaiError):
    """No map can be computed for this model, layer or target."""

    code = "explain"


class ExportError(MedxaiError):
    """An output object cannot be written for this study."""

    code = "export"


class DeliveryError(MedxaiError):
    """A destination refused or did not answer."""

    code = "delivery"


class SettingsError(MedxaiError):
    """A configuration file or option is wrong."""

    code = "settings"


class WorklistError(MedxaiError):
    """The worklist is in a state that forbids the operation."""

    code = "worklist"


class TrustError(MedxaiError):
    """A map cannot be judged: no truth to compare with, no cases to learn thresholds from."""

    code = "trust"


class CollapseError(MedxaiError):
    """A clustering lost a cluster, or what its features say of the images, and was stopped."""

    code = "collapse"
