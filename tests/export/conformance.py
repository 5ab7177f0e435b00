"""The tables of docs/conformance_attributes.md, made from objects: ``python -m tests.export.conformance``.

Every kind of object is written twice for every kind of source, the second time by another model about another
patient on another day, so that what stays the same is fixed and what follows the source is copied.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.sequence import Sequence

from medxai.export import ExportOptions, export_all
from medxai.export.naming import uid_name
from medxai.export.nuclei_annotations import build as build_nuclei
from medxai.export.provenance import maker
from medxai.files import write_dicom
from medxai.predict.nuclei_masks import pack
from medxai.predict.slide_nuclei import SlideNuclei
from medxai.settings import ROLES
from medxai.study import Result, SlideTiles, TrustReport
from tests import slides
from tests.export import build

PAGE = Path(__file__).parent.parent.parent / "docs" / "conformance_attributes.md"
HEAD = """# Attributes of the written objects

Made by `python -m tests.export.conformance` from objects written for it; a test fails when this page is not what they
hold. Sources: CT series, enhanced CT, ultrasound stills in grey and colour, cine, and for annotations a level of a
slide; from two models, patients and days.

Presence: **ALWAYS** with a value, **EMPTY** always without one, **VNAP** value not always present, **ANAP** attribute
not always present. Source: **FIXED** (the value stands beside it), **COPY** of the source image's attribute, **CONFIG**
settings, **AUTO** generated. Attributes of sequence items begin with `>`, one for each level.

"""
#: Follows the release of the software, which a page should not be rewritten for.
_RELEASE = {"SoftwareVersions", "SecondaryCaptureDeviceSoftwareVersions", "AlgorithmVersion"}
#: The sources that the page is made from agree in these; nothing of ours decides them.
_OF_SOURCE = {
    "RescaleIntercept", "RescaleSlope", "RescaleType", "WindowCenter", "WindowWidth", "FrameTime", "PixelSpacing",
    "ImageOrientationPatient", "PixelPaddingValue", "LossyImageCompression", "SliceThickness", "SpacingBetweenSlices",
}  # fmt: skip
_NOT_DICOM = ("nifti", "picture", "movie", "page")
#: What settings decide.
_CONFIGURED = {"SeriesNumber", "ContentQualification"}
_TITLES = {
    "annotations": "Microscopy Bulk Simple Annotations, outlines of evidence (role `annotations`)",
    "nuclei_annotations": "Microscopy Bulk Simple Annotations, nuclei (`medxai slide nuclei`)",
    "encapsulated_pdf": "Encapsulated PDF",
    "segmentation_labelmap": "Segmentation, LABELMAP (switch `labelmap`)",
    "segmentation": "Segmentation, BINARY",
    "fractional_segmentation": "Segmentation, FRACTIONAL (role `fractional_segmentation`)",
    "structured_report": "Comprehensive 3D SR, planar groups",
    "volumetric_report": "Comprehensive 3D SR, volumetric groups (role `volumetric_report`)",
}


@dataclass
class Attribute:
    """What was seen of one attribute over all objects of a kind."""

    parents: int = 0
    seen: int = 0
    empty: int = 0
    copied: int = 0
    values: set[str] = field(default_factory=set)

    @property
    def presence(self) -> str:
        """Term of PS3.2 for how often it is there."""
        if self.seen < self.parents:
            return "ANAP"
        if self.empty == self.seen:
            return "EMPTY"
        return "VNAP" if self.empty else "ALWAYS"


def results() -> Iterator[tuple[Result, list[Dataset]]]:
    """Results of every kind of source, and of another model, patient and day."""
    trust = TrustReport("limited", ("slight noise in the image changes the map",), {"deletion": 0.25}, 0.6)
    for make in (
        lambda: build.ct_case(shape=(5, 40, 32), spacing=(3.0, 0.7, 0.5)),
        build.enhanced_case,
        lambda: build.us_case(cine=False),
        lambda: build.us_case(cine=True),
    ):
        case = make()
        first = replace(case.result, trust=(trust, trust))
        yield first, case.sources
        yield _other(first)


def _other(first: Result) -> tuple[Result, list[Dataset]]:
    """The same by another model, about another patient, on another day."""
    volume = first.study.volume
    headers = tuple(_other_patient(header) for header in volume.source)
    if volume.axes == "HW" and len(volume.pixels) == 1:  # the other still is a colour image
        for header in headers:
            header.SamplesPerPixel, header.PhotometricInterpretation, header.PlanarConfiguration = 3, "RGB", 0
        volume = replace(volume, pixels=np.repeat(volume.pixels, 3, axis=0))
    frame = volume.frame_of_reference and volume.frame_of_reference + ".1"
    volume = replace(volume, source=headers, body_part="KNEE", frame_of_reference=frame)
    study = replace(first.study, input_sha256="9" * 64, volume=volume)
    prediction = replace(
        first.prediction, model="other 7.0.0", model_sha256="8" * 64, labels=("a", "b", "c"),
        probabilities=first.prediction.probabilities[::-1].copy(),
    )  # fmt: skip
    explanations = tuple(
        replace(item, class_label="b", layer="blocks.1", score=0.5, parameters={}, map=item.map * 2)
        for item in first.explanations
    )
    other = replace(
        first, study=study, prediction=prediction, explanations=explanations, config_sha256="7" * 64,
        created="2023-01-02T03:04:05",
    )  # fmt: skip
    return other, list(headers)


def _other_patient(header: Dataset) -> Dataset:
    other = copy.deepcopy(header)
    other.PatientName, other.PatientID, other.PatientBirthDate, other.PatientSex = "Other^One", "X-1", "19610203", "M"
    other.StudyDate, other.StudyTime, other.AccessionNumber, other.StudyID = "20230102", "030405", "B2", "2"
    other.StudyInstanceUID += ".1"
    other.ReferringPhysicianName, other.PatientAge = "Doctor^Other", "062Y"
    other.SpecificCharacterSet, other.BodyPartExamined = "ISO_IR 192", "KNEE"
    other.Laterality = "R"
    if "FrameOfReferenceUID" in other:
        other.FrameOfReferenceUID += ".1"
    return other


def objects() -> dict[str, list[tuple[Dataset, list[Dataset]]]]:
    """Objects by kind, each with the headers of its source."""
    found: dict[str, list[tuple[Dataset, list[Dataset]]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        for number, (result, sources) in enumerate(results()):
            for labelmap in (False, True):
                formats = ("segmentation",) if labelmap else tuple(role for role in ROLES if role not in _NOT_DICOM)
                options = ExportOptions(formats=formats, labelmap=labelmap)
                folder = Path(name) / f"{number}{labelmap}"
                for output in export_all(result, folder, options):
                    if output.path.endswith(".dcm"):
                        kind = output.role + ("_labelmap" if labelmap else "")
                        found[kind].append((dcmread(folder / output.path), sources))
    return found


def slide_objects() -> dict[str, list[tuple[Dataset, list[Dataset]]]]:
    """Annotations of slides by kind: outlines of evidence, and nuclei with and without doubtful ones."""
    found: dict[str, list[tuple[Dataset, list[Dataset]]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        case = slides.slide_case(Path(name) / "in", size=(230, 310), levels=1)
        none = np.zeros(0, np.int64)
        tiles = SlideTiles(
            shape=(1, 1), numbers=np.zeros(1, np.int64), boxes=np.array([[0.0, 0.0, 64.0, 64.0]]),
            tissue=np.ones(1, np.float32), flags=("",), failed=(), shown=none, shown_as=(),
            pictures=np.zeros((0, 8, 8, 3), np.uint8),
        )  # fmt: skip
        first = replace(case.result, prediction=replace(case.result.prediction, tiles=tiles))
        for header in first.study.volume.source:
            header.PatientAge = "071Y"
        other, headers = _other(first)
        for header in headers:
            header.SOPInstanceUID, header.SeriesInstanceUID = (
                header.SOPInstanceUID + ".1",
                header.SeriesInstanceUID + ".1",
            )
            header.ContainerIdentifier = header.SpecimenDescriptionSequence[0].SpecimenIdentifier = "S-2"
            header.SpecimenDescriptionSequence[0].SpecimenUID += ".1"
        for number, (result, sources) in enumerate(
            ((first, list(first.study.volume.source)), (other, headers)),
        ):
            folder = Path(name) / str(number)
            for output in export_all(result, folder, ExportOptions(formats=("annotations",))):
                found[output.role].append((dcmread(folder / output.path), sources))
            made, flags = replace(maker(result), task="Segmentation and visual explanation"), ("", "merged?", "")
            nuclei = _nuclei(flags[: 3 - 2 * number])
            written = write_dicom(folder / "n.dcm", build_nuclei(nuclei, sources[0], made, result.identity))
            found["nuclei_annotations"].append((dcmread(written), sources))
    return found


def _nuclei(flags: tuple[str, ...]) -> SlideNuclei:
    count = len(flags)
    masks = pack([np.array([9 * n, 5]) for n in range(count)], [np.ones((4 + n, 3), bool) for n in range(count)])
    ones, whole = np.ones(count, np.float32), np.zeros(count, np.int64)
    return SlideNuclei(
        masks=masks, scale=np.ones(2), pixel_um2=0.25, centres=np.ones((count, 2)), flags=flags, agreement=ones,
        block=whole, evidence=ones, tiles=whole, numbers=np.zeros(1, np.int64), boxes=np.ones((1, 4)),
        tissue_mm2=np.ones(1), field_agreement=np.ones(1, np.float32), field_block=np.ones(1, np.int64),
    )  # fmt: skip


def attributes(pairs: list[tuple[Dataset, list[Dataset]]]) -> dict[tuple[str, ...], Attribute]:
    """Return what was seen by path of keywords; the trees of reports are left to `tree`."""
    seen: dict[tuple[str, ...], Attribute] = defaultdict(Attribute)
    parents: dict[tuple[str, ...], int] = defaultdict(int)
    for dataset, sources in pairs:
        _walk(dataset, sources[0], (), seen, parents)
    for path, item in seen.items():
        item.parents = parents[path[:-1]]
    return seen


def _walk(
    dataset: Dataset, source: Dataset | None, path: tuple[str, ...], seen: dict[tuple[str, ...], Attribute],
    parents: dict[tuple[str, ...], int],
) -> None:  # fmt: skip
    parents[path] += 1
    for element in dataset:
        here = seen[(*path, element.keyword)]
        here.seen += 1
        if isinstance(element.value, Sequence):
            here.empty += not element.value
            if element.keyword != "ContentSequence":
                for item in element.value:
                    _walk(item, None, (*path, element.keyword), seen, parents)
            continue
        here.empty += element.is_empty
        here.copied += (
            source is not None and element.keyword in source and source[element.keyword].value == element.value
        )
        here.values.add(_text(element.value))


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return "\\".join(str(v) for v in value) if not isinstance(value, str) and hasattr(value, "__iter__") else str(value)


def origin(keyword: str, item: Attribute, count: int) -> str:
    """FIXED with its value, COPY or AUTO."""
    if item.presence == "EMPTY":
        return ""
    if item.copied == item.seen and item.copied and len(item.values) > 1:
        return "COPY"
    if keyword in _OF_SOURCE:
        return "COPY"
    if keyword in _CONFIGURED:
        return "CONFIG"
    if (
        keyword in _RELEASE
        or keyword == "NumberOfFrames"
        or len(item.values) != 1
        or next(iter(item.values)).startswith("<")
    ):
        return "AUTO"
    (value,) = item.values
    if keyword.endswith("UID") and uid_name(value) == value:
        return "FIXED (of the product)"
    return f"FIXED `{value}`" + (f" {uid_name(value)}" if keyword.endswith("UID") else "")


def table(pairs: list[tuple[Dataset, list[Dataset]]]) -> list[str]:
    """Return the rows of one kind of object, in the order of tags."""
    seen = attributes(pairs)
    lines = ["| attribute | tag | VR | presence | source |", "|---|---|---|---|---|"]
    vrs = {element.keyword: element.VR for dataset, _ in pairs for element in dataset.iterall()}

    def order(path: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(int(tag_for_keyword(keyword) or 0) for keyword in path)

    for path in sorted(seen, key=order):
        keyword, item = path[-1], seen[path]
        tag = int(tag_for_keyword(keyword) or 0)
        name = ">" * (len(path) - 1) + (" " if len(path) > 1 else "") + dictionary_description(tag)
        vr = vrs.get(keyword, "")
        where = "" if vr == "SQ" else origin(keyword, item, len(pairs))
        lines.append(f"| {name} | ({tag >> 16:04X},{tag & 0xFFFF:04X}) | {vr} | {item.presence} | {where} |")
    return lines


def tree(pairs: list[tuple[Dataset, list[Dataset]]]) -> list[str]:
    """Return the content items of reports: one line for each different one, in the order of their first."""
    lines: dict[str, None] = {}

    def walk(items: Sequence, depth: int) -> None:
        for item in items:
            concept = item.get("ConceptNameCodeSequence", [None])[0]
            name = (
                f'({concept.CodeValue}, {concept.CodingSchemeDesignator}, "{concept.CodeMeaning}")' if concept else ""
            )
            template = item.get("ContentTemplateSequence")
            number = f" TID {template[0].TemplateIdentifier}" if template else ""
            line = f"| {'>' * depth} {item.RelationshipType} | {item.ValueType} | {name}{number} |"
            lines.setdefault(line)
            walk(item.get("ContentSequence", []), depth + 1)

    for dataset, _ in pairs:
        walk(dataset.ContentSequence, 1)
    return ["| relationship | value type | concept name |", "|---|---|---|", *lines]


def page() -> str:
    """Return the page."""
    parts = [HEAD.rstrip(), ""]
    for kind, pairs in (objects() | slide_objects()).items():
        classes = sorted({f"{uid_name(ds.SOPClassUID)} ({ds.SOPClassUID})" for ds, _ in pairs})
        syntaxes = sorted({uid_name(ds.file_meta.TransferSyntaxUID) for ds, _ in pairs})
        title = _TITLES.get(kind, kind.replace("_", " ").capitalize())
        parts += [f"## {title}", "", f"SOP class: {', '.join(classes)}. Transfer syntax: {', '.join(syntaxes)}.", ""]
        parts += [*table(pairs), ""]
        if "ContentSequence" in pairs[0][0]:
            parts += ["Content tree, every kind of item once:", "", *tree(pairs), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE}\n")
