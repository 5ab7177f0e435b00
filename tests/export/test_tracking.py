from __future__ import annotations

from dataclasses import replace

import pytest
from highdicom.sr import srread

from medxai.export import ExportOptions, export_all
from medxai.export.tracking import tracking
from medxai.settings import ROLES
from tests.export import build
from tests.export.read import read

PATIENT = ExportOptions(tracking="patient")


def later(result, **header):
    """The same patient on another day: other files, other frame of reference, another configuration."""
    volume = result.study.volume
    sources = []
    for source in volume.source:
        copy = type(source)()
        for element in source:
            copy.add(element)
        copy.file_meta = source.file_meta
        copy.StudyDate = "20250305"
        for name, value in header.items():
            setattr(copy, name, value)
        sources.append(copy)
    study = replace(result.study, input_sha256="e" * 64, volume=replace(volume, source=tuple(sources)))
    return replace(result, study=study, config_sha256="f" * 64)


def uid(result, options=PATIENT, band=None):
    return tracking(result, result.explanations[0], options, band)[1]


@pytest.mark.parametrize("rule", ["study", "patient"])
def test_every_object_uses_the_same_identifiers(rule, tmp_path):
    result = build.ct_case().result
    outputs = export_all(result, tmp_path / "run", ExportOptions(formats=ROLES, tracking=rule))
    paths = {o.path: tmp_path / "run" / o.path for o in outputs if o.path.endswith(".dcm")}
    segments, drawn = {}, {}
    for name, path in paths.items():
        if name.startswith("segmentation"):
            segments |= {item.TrackingID: item.TrackingUID for item in read(path).SegmentSequence}
        if name.startswith("presentation_state"):
            for annotation in read(path).GraphicAnnotationSequence:
                drawn |= {item.TrackingID: item.TrackingUID for item in annotation.GraphicObjectSequence}
    planar = srread(next(p for n, p in paths.items() if n.startswith("structured_report"))).content
    solid = srread(next(p for n, p in paths.items() if n.startswith("volumetric_report"))).content
    regions = {g.tracking_identifier: g.tracking_uid for g in planar.get_planar_roi_measurement_groups()}
    volumes = {g.tracking_identifier: g.tracking_uid for g in solid.get_volumetric_roi_measurement_groups()}
    assert len(set(segments.values())) == len(segments) == 6
    assert segments == drawn == volumes
    assert segments.items() <= regions.items()
    fractional = read(paths["fractional_segmentation_gradcam_1-bleeding.dcm"])
    whole = {item.TrackingID: item.TrackingUID for item in fractional.SegmentSequence}
    assert whole.items() <= regions.items()
    assert regions.keys() - segments.keys() == {"gradcam-1", "layercam-2"}


def test_prior_and_current_of_one_patient_share_them_only_when_asked():
    prior = build.ct_case().result
    current = later(prior)
    for band in (None, 0.25, 0.5):
        assert uid(prior, band=band) == uid(current, band=band)
    assert uid(prior, ExportOptions()) != uid(current, ExportOptions())
    assert len({uid(prior, band=band) for band in (None, 0.25, 0.5)}) == 3


def test_a_model_trained_anew_goes_on_tracking_but_is_another_device():
    from medxai.export.provenance import equipment

    prior = build.ct_case().result
    newer = replace(later(prior), prediction=replace(prior.prediction, model="head_ct 2.0.0", model_sha256="d" * 64))
    assert uid(prior) == uid(newer)
    assert equipment(prior)[0].DeviceUID != equipment(newer)[0].DeviceUID


@pytest.mark.parametrize(
    "header",
    [
        {"PatientID": "OTHER"},
        {"IssuerOfPatientID": "another hospital"},
        {"Laterality": "R"},
        {"ImageLaterality": "L"},
    ],
)
def test_other_patients_and_sides_are_other_findings(header):
    prior = build.ct_case().result
    assert uid(prior) != uid(later(prior, **header))


def test_other_bundles_classes_methods_and_parts_are_other_findings():
    result = build.ct_case().result
    first = result.explanations[0]
    others = [
        replace(result, prediction=replace(result.prediction, model="other_ct 1.2.0")),
        replace(result, explanations=(replace(first, class_index=2),)),
        replace(result, explanations=(replace(first, method="layercam"),)),
        replace(result, study=replace(result.study, volume=replace(result.study.volume, body_part="CHEST"))),
    ]
    assert len({uid(other) for other in (result, *others)}) == 5


def test_without_a_patient_id_nothing_is_claimed_about_other_studies():
    nobody = later(build.ct_case().result, PatientID="")
    assert uid(nobody) != uid(replace(nobody, study=replace(nobody.study, input_sha256="a" * 64)))
    assert uid(nobody) == uid(nobody, ExportOptions())


def test_the_identifier_does_not_hold_the_patient_id():
    result = build.ct_case().result
    name, number = tracking(result, result.explanations[0], PATIENT)
    assert "SECRET" not in name + number
    assert len(number) <= 64
