"""Tracking identifiers: one name for one finding, in every object that speaks of it (PS3.3 C.8.20.4, PS3.16 TID 1410).

Segments, regions of both reports and outlines of one band of one map carry the same identifier, so that a viewer
can tell that they are the same thing. Two rules say how far "the same" reaches, chosen by `ExportOptions.tracking`:

``study``
    The evidence of one run on one study. Nothing is claimed about other studies.
``patient``
    The same finding in all studies of a patient. The identifier depends on the patient's pseudonym (made from
    PatientID and its issuer), the bundle's name, the class, the method, the band, and a rule of place: body part and
    side as the source headers state them. A prior and a current study of one patient therefore share it, and a left
    and a right breast do not.

The rule of place stays that coarse on purpose. Two studies share no coordinates (each has its own frame of
reference), so a finer rule would need a registration, and a guess that is wrong ties two different lesions
together. The bundle counts by its name and not by its version or hash: a finding stays the same one when the model is
trained anew; which model spoke is said by the Device UID, which does change. The method counts because
maps of two methods are different measurements. Sources without PatientID follow the rule ``study``, since they
would otherwise all be one patient.
"""

from __future__ import annotations

from medxai.export.naming import ascii_text
from medxai.identity import derive_uid, pseudonym
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result


def tracking(
    result: Result, explanation: Explanation, options: ExportOptions, band: float | None = None
) -> tuple[str, str]:
    """Return Tracking ID and Tracking UID of a map, or of one of its bands.

    Args:
        result: study and decision.
        explanation: the map.
        options: the rule.
        band: threshold of the band, None for the map as a whole.
    """
    what = f"{explanation.method}-{explanation.class_index}" + ("" if band is None else f"-{band:g}")
    parts = (explanation.method, str(explanation.class_index), "" if band is None else f"{band:g}")
    scope = _patient(result) if options.tracking == "patient" else None
    return ascii_text(what, 64), derive_uid("tracking", *(scope or result.identity), *parts)


def _patient(result: Result) -> tuple[str, ...] | None:
    """Patient, bundle and place; None when the source does not name a patient."""
    header = next(iter(result.study.volume.source), None)
    number = str(header.get("PatientID", "") or "").strip() if header is not None else ""
    if header is None or not number:
        return None
    patient = pseudonym("patient", str(header.get("IssuerOfPatientID", "") or "").strip(), number)
    bundle = result.prediction.model.rpartition(" ")[0] or result.prediction.model
    part = result.study.volume.body_part or str(header.get("BodyPartExamined", "") or "")
    side = str(header.get("ImageLaterality", "") or header.get("Laterality", "") or "")
    return (patient, bundle, part.strip().upper(), side.strip().upper())
