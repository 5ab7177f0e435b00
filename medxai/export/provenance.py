"""Who made an object, from what and when: parts shared by all DICOM outputs, a function of the result alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from medxai import __version__
from medxai.errors import ExplainError, ExportError
from medxai.explain.cells import cells_of
from medxai.explain.registry import get_method
from medxai.export.naming import SEVERAL_INPUTS, ascii_text, method_title
from medxai.identity import derive_uid
from medxai.study import Explanation, Result

if TYPE_CHECKING:
    from highdicom import AlgorithmIdentificationSequence, ContributingEquipment
    from pydicom import Dataset
    from pydicom.sr.coding import Code

MANUFACTURER = "medxai"
MODEL_NAME = "medxai explain"

#: Cells smaller than this are stated in micrometres.
_SMALL_MM = 0.1
#: Implementation of the files (PS3.7 annex D.3.3.2): a UID of the product, not of a run.
IMPLEMENTATION_CLASS_UID = derive_uid("medxai", "implementation class")
IMPLEMENTATION_VERSION_NAME = f"medxai {__version__}"[:16]

#: Patient, study and series attributes that derived objects take over when the source has them; the series
#: ones are those that describe the body, not the acquisition (PS3.3 C.7.1.1, C.7.2.1, C.7.2.2, C.7.3.1).
PATIENT_STUDY = (
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "PatientName", "PatientID", "IssuerOfPatientID",
    "PatientBirthDate", "PatientSex", "OtherPatientIDsSequence", "EthnicGroup", "PatientComments",
    "PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence", "StudyInstanceUID",
    "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "StudyDescription", "ReferencedStudySequence", "ProcedureCodeSequence",
    "PatientAge", "PatientSize", "PatientWeight", "MedicalAlerts", "Allergies", "PregnancyStatus",
)  # fmt: skip
TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime",
    "ReferringPhysicianName", "StudyID", "AccessionNumber",
)  # fmt: skip


@dataclass(frozen=True)
class Maker:
    """What made an object and when; of those that show no decision, a `Result` says it.

    Attributes:
        key: of the study.
        model: bundle name and version.
        model_sha256: hash of the bundle.
        created: see `Result`.
        task: what the network did, in words.
    """

    key: str
    model: str
    model_sha256: str
    created: str
    task: str = "Classification and visual explanation"


def maker(result: Result) -> Maker:
    """What made the objects of a result."""
    return Maker(result.study.key, result.prediction.model, result.prediction.model_sha256, result.created)


def moment(made: Result | Maker) -> datetime:
    """Return `created` as a date and time.

    Raises:
        ExportError: it is not ISO 8601.
    """
    by = made if isinstance(made, Maker) else maker(made)
    try:
        return datetime.fromisoformat(by.created)
    except ValueError:
        raise ExportError(f"created is not an ISO 8601 date: {by.created!r}", study=by.key) from None


def uid_of(result: Result, role: str, explanation: Explanation, *parts: str) -> str:
    """Return the derived UID of one object (or, by other `parts`, of its series)."""
    return derive_uid(*result.identity, role, explanation.method, str(explanation.class_index), *parts)


def shallow(dataset: Dataset) -> Dataset:
    """Return a new data set with copies of the elements, sharing their values.

    ``copy.copy`` and ``Dataset(other)`` share the table of elements, and setting an attribute changes an existing
    element in place: either way a change would reach the study's headers.
    """
    from pydicom.dataset import Dataset

    out = Dataset()
    for element in dataset:
        out.add(copy.copy(element))
    return out


def source_header(header: Dataset) -> Dataset:
    """Return a shallow copy of a source header in which type 2 attributes exist and have legal values.

    Derived objects copy them; real files leave some out or hold a sex outside M, F, O (PS3.3 C.7.1.1). An empty
    first character set is legal and common, but highdicom wants its name (PS3.3 C.12.1.1.2).
    """
    clean = shallow(header)
    for keyword in TYPE_2:
        if keyword not in clean or clean.get(keyword) is None:
            setattr(clean, keyword, "")
    if clean.get("PatientIdentityRemoved") == "YES" and not clean.get("DeidentificationMethod"):
        # Required then (PS3.3 C.7.1.1), and an error in every object that copies the module.
        clean.DeidentificationMethod = "not stated by the source"
    if clean.PatientSex not in ("M", "F", "O"):
        clean.PatientSex = ""
    sets = clean.get("SpecificCharacterSet")
    if sets and not isinstance(sets, str) and not sets[0]:
        clean.SpecificCharacterSet = ["ISO 2022 IR 6", *sets[1:]]
    return clean


def copy_patient_and_study(source: Dataset, target: Dataset) -> None:
    """Copy the patient and study attributes of `source`; type 2 ones become empty when missing."""
    for keyword in PATIENT_STUDY:
        if keyword in source:
            target.add(source[keyword])
    for keyword in TYPE_2:
        if keyword not in target:
            setattr(target, keyword, "")


def concept(method: str) -> Code:
    """Return the standard code of what a map measures (PS3.16 CID 217, parametric-map quantities).

    Only Grad-CAM and its direct relatives weight activations by gradients; others are class activation.
    """
    from pydicom.sr.codedict import codes

    try:
        family = SEVERAL_INPUTS[method][1] if method in SEVERAL_INPUTS else get_method(method).INFO.family
    except ExplainError:  # a stored result of a method that this version no longer has
        return codes.DCM.Saliency
    if family == "gradient_cam":
        return codes.DCM.GradientWeightedClassActivation
    if family in ("activation_cam", "score_cam"):
        return codes.DCM.ClassActivation
    return codes.DCM.Saliency


def cell_text(result: Result, explanation: Explanation) -> str:
    """Return the size of one cell of the native map, for example ``8x16x16 mm``; see `_unit`."""
    unit, scale = _unit(result, explanation)
    sizes = [f"{v * scale:.3g}" for v in explanation.cell_mm if v > 0]
    return f"{'x'.join(sizes)} {unit}" if sizes else "of unknown size"


def grid_text(result: Result, explanation: Explanation) -> str:
    """Return the native grid of a map, for example ``map of 4 x 8 x 8 cells of 64 x 45 x 45 mm``; see `_unit`."""
    unit, scale = _unit(result, explanation)
    cells = cells_of(explanation)
    each = "frame" if result.study.volume.axes == "THW" else "window" if result.prediction.tiles is None else "tile"
    return replace(cells, size=tuple(v * scale for v in cells.size)).text(unit=unit, each=each)


def _unit(result: Result, explanation: Explanation) -> tuple[str, float]:
    """Unit of a cell and how many of it are a millimetre: micrometres for those of slides, pixels when uncalibrated."""
    if not result.study.volume.calibrated:
        return "pixels", 1.0
    return ("um", 1000.0) if max(explanation.cell_mm) < _SMALL_MM else ("mm", 1.0)


def peak(explanation: Explanation) -> float:
    """Return the maximum of the map before normalisation."""
    return float(explanation.map.max(initial=0.0))


def derivation_text(result: Result, explanation: Explanation) -> str:
    """Return how the map came about, for DerivationDescription (ST, 1024 characters)."""
    flags = ", ".join(sorted(explanation.flags)) or "none"
    parameters = ", ".join(f"{k}={v}" for k, v in sorted(explanation.parameters.items())) or "none"
    text = (
        f"{method_title(explanation.method)} of class {explanation.class_label} at layer {explanation.layer}; "
        f"score {explanation.score:.6g}; divided by its maximum {peak(explanation):.6g} over the whole study; "
        f"native cell {cell_text(result, explanation)} (d, h, w), interpolated to the source grid; flags {flags}; "
        f"model {result.prediction.model} sha256 {explanation.model_sha256[:16]}; "
        f"configuration sha256 {result.config_sha256[:16]}; parameters {parameters}"
    )
    return ascii_text(text, 1024)


def equipment(made: Result | Maker) -> list[ContributingEquipment]:
    """Return the algorithm as contributing equipment.

    IHE AI Results asks for every algorithm in ContributingEquipmentSequence, with a Device UID that changes
    with the model: it is derived from the hash of the bundle.
    """
    from highdicom import ContributingEquipment
    from pydicom.sr.codedict import codes

    by = made if isinstance(made, Maker) else maker(made)
    item = ContributingEquipment(
        manufacturer=MANUFACTURER,
        purpose_of_reference=codes.DCM.ProcessingEquipment,
        manufacturer_model_name=ascii_text(by.model, 64),
        software_versions=__version__,
        device_serial_number=by.model_sha256[:16],
        contribution_datetime=moment(by).replace(tzinfo=None),
        contribution_description=f"{by.task} by a neural network",
    )
    item.DeviceUID = derive_uid("model", by.model_sha256)
    return [item]


def algorithm(result: Result, explanation: Explanation) -> AlgorithmIdentificationSequence:
    """Return the algorithm identification of a segment (PS3.3 table 10-19, family of CID 7162)."""
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    parameters = {"layer": explanation.layer, "class": explanation.class_label, "model": result.prediction.model}
    return AlgorithmIdentificationSequence(
        name=ascii_text(method_title(explanation.method), 64),
        family=codes.DCM.ArtificialIntelligence,
        version=ascii_text(f"medxai {__version__}", 64),
        source=MANUFACTURER,
        parameters={key: ascii_text(value, 256).replace(",", ";") for key, value in parameters.items()},
    )


def device(made: Result | Maker) -> dict[str, str]:
    """Return the equipment arguments of highdicom constructors (PS3.3 C.7.5.2, all type 1)."""
    by = made if isinstance(made, Maker) else maker(made)
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": MODEL_NAME,
        "software_versions": __version__,
        "device_serial_number": by.model_sha256[:16],
    }


def dates(made: Result | Maker) -> dict[str, Any]:
    """Return content and series dates for highdicom constructors, from the result and never from the clock."""
    when = moment(made)
    return {"content_date": when.date(), "content_time": when.time().replace(microsecond=0)}


def finish(dataset: Dataset, result: Result, explanation: Explanation, body: Dataset) -> None:
    """Complete an image object in place: body part, derivation, and what `settle` does.

    Args:
        dataset: object to complete.
        result: what it was made from.
        explanation: the map it shows.
        body: source header with BodyPartExamined and Laterality.
    """
    dataset.DerivationDescription = derivation_text(result, explanation)
    state_body_part(dataset, result, body)
    settle(dataset, result)
    _derive_organisation(dataset, derive_uid(str(dataset.SOPInstanceUID), "dimension organization"))


def state_body_part(dataset: Dataset, result: Result, body: Dataset) -> None:
    """Take over what the series says of the body, in place; validators ask for a side unless the part has none."""
    part = result.study.volume.body_part or str(body.get("BodyPartExamined", "") or "")
    if part:
        dataset.BodyPartExamined = ascii_text(part, 16).upper()
    if dataset.Modality != "SEG":
        # A segmentation tells the side per segment, and its series has none. Elsewhere it is type 2C: without a
        # body part nobody can tell that it is unpaired, so the answer "unknown" is due.
        if "Laterality" in body:
            dataset.Laterality = body.Laterality
        elif not part:
            dataset.Laterality = ""


def settle(dataset: Dataset, made: Result | Maker) -> None:
    """Replace everything that a library took from the clock, and name the implementation, in place."""
    when = moment(made)
    dataset.InstanceCreationDate = when.strftime("%Y%m%d")
    dataset.InstanceCreationTime = when.strftime("%H%M%S")
    if "ContentLabel" in dataset and "ContentCreatorName" not in dataset:
        dataset.ContentCreatorName = ""  # type 2 (PS3.3 table 10-12); nobody did
    fixed = when.strftime("%Y%m%d%H%M%S")
    for item in dataset.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in item:
            item.ContributionDateTime = fixed
    meta = dataset.file_meta
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME


def _derive_organisation(dataset: Dataset, uid: str) -> None:
    for keyword in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in dataset.get(keyword, []):
            item.DimensionOrganizationUID = uid
