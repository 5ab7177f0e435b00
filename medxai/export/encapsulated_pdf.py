"""The case report as Encapsulated PDF (PS3.3 A.45.1), for archives and workstations that show documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medxai import __version__
from medxai.export.naming import NOTICE, ascii_text, stem
from medxai.export.placement import detached_reason
from medxai.export.provenance import (
    MANUFACTURER,
    MODEL_NAME,
    copy_patient_and_study,
    equipment,
    moment,
    settle,
    source_header,
    state_body_part,
    uid_of,
)
from medxai.export.slide import reduced
from medxai.files import write_dicom
from medxai.settings import ExportOptions
from medxai.study import Result

if TYPE_CHECKING:
    from pydicom import Dataset

ROLE = "encapsulated_pdf"

_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.104.1"


def applies(result: Result) -> str | None:
    """Return None for DICOM sources, otherwise the reason why not."""
    return detached_reason(result)


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write the document of all chosen explanations, named after the primary one, and return its path."""
    return [write_dicom(folder / f"{stem(ROLE, result.explanations[0])}.dcm", build(reduced(result), options))]


def build(result: Result, options: ExportOptions) -> Dataset:
    """Return the object: who the patient is stands in its attributes only, never in the document.

    Args:
        result: study, decision and maps.
        options: see `medxai.export.case_pdf`.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian

    from medxai.export.case_pdf import case_pdf

    primary, when = result.explanations[0], moment(result)
    source = source_header(result.study.volume.source[0])
    document = case_pdf(result, options)
    dataset = Dataset()
    copy_patient_and_study(source, dataset)
    dataset.SOPClassUID = _SOP_CLASS
    dataset.SOPInstanceUID = uid_of(result, ROLE, primary)
    dataset.SeriesInstanceUID = uid_of(result, ROLE, primary, "series")
    dataset.SeriesNumber = options.series_number_base + 500
    dataset.SeriesDescription = ascii_text(f"Case report: {NOTICE}", 64)
    dataset.Modality = "DOC"
    dataset.ConversionType = "WSD"
    dataset.InstanceNumber = 1
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    dataset.DeviceSerialNumber = result.prediction.model_sha256[:16]
    dataset.SoftwareVersions = __version__
    dataset.ContentDate, dataset.ContentTime = when.strftime("%Y%m%d"), when.strftime("%H%M%S")
    dataset.AcquisitionDateTime = ""
    # The document holds no patient's name, but words are burnt into its pictures.
    dataset.BurnedInAnnotation = "YES"
    dataset.SourceInstanceSequence = [_reference(header) for header in result.study.volume.source]
    dataset.DocumentTitle = ascii_text(f"Explanation of {result.prediction.label}: {NOTICE}", 1024)
    title, code = codes.DCM.ImagingMeasurementReport, Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = title.value, title.scheme_designator, title.meaning
    dataset.ConceptNameCodeSequence = [code]
    dataset.VerificationFlag = "UNVERIFIED"
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    dataset.EncapsulatedDocumentLength = len(document)
    dataset.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    dataset.ContributingEquipmentSequence = equipment(result)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    state_body_part(dataset, result, source)
    settle(dataset, result)
    return dataset


def _reference(header: Dataset) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item
