"""Evidence planted at a known region, edge and window is the first in every output."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from medxai.brain_inputs import atlas_for, read_series
from medxai.errors import IngestError, MismatchError
from medxai.export.brain.maps import write_maps
from medxai.export.brain.objects import write_objects
from medxai.export.brain.sites import side, site
from medxai.export.brain.subject_view import SubjectView
from medxai.export.brain.tables import write_tables
from medxai.export.reporting import SCHEME
from medxai.prepare.brain.atlas import read_atlas
from medxai.prepare.brain.onto import own_grid, read_transform
from medxai.prepare.brain.settings import AtlasOptions
from tests.export.brain import cohort
from tests.export.brain.test_codes import listed
from tests.tools import dicom_errors, report_errors

NODE, OTHER = 31, 33  # both inside the simulated brain
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> SubjectView:
    folder = tmp_path_factory.mktemp("planted")
    people = cohort.people(2)
    features = people[1].features
    model = cohort.load(*cohort.write_bundle(folder, people))
    image, table = cohort.write_atlas(folder, features)
    atlas = read_atlas(AtlasOptions(image=image, table=table))
    evidence = cohort.planted_evidence(features, model, NODE, OTHER)
    return SubjectView(features, evidence, "untrained 0.1.0", model.sha256, "cd" * 32, "ef" * 32, False, 2.0, atlas,
                       atlas_for(atlas, features))  # fmt: skip


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(), delimiter="\t"))


def test_tables_begin_with_what_was_planted(view, tmp_path):
    write_tables(view, tmp_path)
    names, networks = view.features.regions, view.features.networks
    for modality in ("sfc", "dfc", "fa"):
        first = rows(tmp_path / f"edges_{modality}.tsv")[0]
        own = getattr(view.features, modality)[NODE, OTHER]
        value = float(np.mean(own))
        assert (first["region_a"], first["region_b"]) == (names[NODE], names[OTHER])
        assert (first["network_a"], first["network_b"]) == (networks[NODE], networks[OTHER])
        assert float(first["value"]) == pytest.approx(value, rel=1e-4)
        assert first["sign"] == {1: "+", -1: "-", 0: "0"}[int(np.sign(value))]
        top = max(rows(tmp_path / f"blocks_{modality}.tsv"), key=lambda r: float(r["mean_evidence"]))
        assert {top["network_a"], top["network_b"]} == {networks[NODE], networks[OTHER]}
    course = rows(tmp_path / "course_dfc.tsv")
    assert sorted(course, key=lambda r: -float(r["mean_evidence"]))[1]["window"] in ("5", "6")
    assert {r["window"] for r in course if float(r["mean_evidence"]) > 0.0101} == {"5", "6"}
    ranked = rows(tmp_path / "regions.tsv")
    assert next(r["region"] for r in ranked if r["modality"] == "alff") == names[NODE]
    for modality in ("sfc", "dfc", "fa"):
        assert {r["region"] for r in ranked if r["modality"] == modality and int(r["rank"]) <= 2} == {
            names[NODE], names[OTHER]
        }  # fmt: skip


def test_nifti_maps_lie_at_the_region(view, tmp_path):
    write_maps(view, tmp_path)
    labels = cohort.atlas_labels(view.features)
    for name, wanted in (("alff_map", {NODE + 1}), ("sfc_strength", {NODE + 1, OTHER + 1}),
                         ("dfc_strength", {NODE + 1, OTHER + 1}), ("fa_strength", {NODE + 1, OTHER + 1})):  # fmt: skip
        image = nibabel.load(tmp_path / f"{name}.nii.gz")
        data = image.get_fdata()
        places = np.argwhere(data > 0.9 * data.max())
        world = _LPS_TO_RAS @ image.affine @ np.c_[places, np.ones(len(places))].T  # RAS -> LPS mm
        index = np.rint(np.linalg.inv(view.features.affine) @ world)[:3].astype(int)
        assert set(labels[tuple(index)].tolist()) == wanted
        assert int(image.header["sform_code"]) == 1


def placed(view: SubjectView, folder: Path, series: Path, transform=None, **more) -> tuple[list[str], list[str]]:
    study, _ = read_series(series, view.features.subject, ("x",))
    paths, notes = write_objects(
        view, study, transform, folder, created="2024-01-02T03:04:05", top=3, series_number=9100,
        parameters={"gamma": 1.0}, layer="layer1", **more,
    )  # fmt: skip
    return [path.name for path in paths], notes


def bright(path: Path, share: float) -> np.ndarray:
    """``[3, n]`` patient mm of the centres of a map's voxels above a share of its maximum."""
    ds = dcmread(path)
    shared = ds.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row_mm, column_mm = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    if "FloatPixelData" in ds:
        frames = np.frombuffer(ds.FloatPixelData, np.float32).reshape(-1, ds.Rows, ds.Columns)
    else:
        frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    found = []
    for item, frame in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
        corner = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float)
        for r, c in np.argwhere(frame > share * frames.max()):
            found.append(corner + cosines[:3] * c * column_mm + cosines[3:] * r * row_mm)
    return np.array(found).T


def labels_at(view: SubjectView, mm: np.ndarray) -> set[int]:
    """Labels at places in mm; -1 beyond the grid."""
    index = np.rint(np.linalg.inv(view.features.affine) @ np.r_[mm, np.ones((1, mm.shape[1]))])[:3].astype(int)
    labels = cohort.atlas_labels(view.features)
    inside = ((index >= 0) & (index < np.array(labels.shape)[:, None])).all(0)
    return set(labels[tuple(index[:, inside])].tolist()) | (set() if inside.all() else {-1})


def test_a_map_that_is_no_evidence_is_withheld(view, tmp_path):
    """ALFF hardly moves the logit: no map and no region of it reaches the viewer, and the report says why."""
    cohort.write_series(tmp_path / "mr")
    values = {**view.evidence.values, "alff": 0.49}
    doubted = replace(view, evidence=replace(view.evidence, values=values))
    names, notes = placed(doubted, tmp_path, tmp_path / "mr")
    assert names == ["segmentation.dcm", "structured_report.dcm"]
    assert notes == ["Withheld, since they are no evidence: the map of ALFF, and its regions."]
    segments = dcmread(tmp_path / "segmentation.dcm").SegmentSequence
    assert {view.features.regions[n] for n in (NODE, OTHER)} <= {
        str(item.SegmentLabel).removesuffix(" (explanation)") for item in segments
    }
    assert not any("ALFF rank" in str(item.get("SegmentDescription", "")) for item in segments)
    report = (tmp_path / "structured_report.dcm").read_bytes()
    assert b"The ALFF map is no evidence: ALFF moves the logit of patient by +0.49, less than 0.5." in report
    (tmp_path / "all").mkdir()
    names, notes = placed(doubted, tmp_path / "all", tmp_path / "mr", send_withheld=True)
    assert "parametric_map.dcm" in names
    assert notes == []


def test_objects_lie_on_the_patient_of_an_oblique_series_and_are_valid(view, tmp_path):
    cohort.write_series(tmp_path / "mr")
    names, notes = placed(view, tmp_path, tmp_path / "mr")
    assert names == ["parametric_map.dcm", "alff_map_subject.nii.gz", "segmentation.dcm", "structured_report.dcm"]
    assert notes == []
    assert labels_at(view, bright(tmp_path / "parametric_map.dcm", 0.95)) == {NODE + 1}
    seg = dcmread(tmp_path / "segmentation.dcm")
    labels = [item.SegmentLabel for item in seg.SegmentSequence]
    assert labels[0] == f"{view.features.regions[NODE]} (explanation)"
    frames = seg.pixel_array
    number = [f.SegmentIdentificationSequence[0].ReferencedSegmentNumber for f in seg.PerFrameFunctionalGroupsSequence]
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row_mm, column_mm = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    mm = [
        np.array(f.PlanePositionSequence[0].ImagePositionPatient, float)
        + cosines[:3] * c * column_mm + cosines[3:] * r * row_mm
        for n, f, frame in zip(number, seg.PerFrameFunctionalGroupsSequence, frames, strict=True) if n == 1
        for r, c in np.argwhere(frame)
    ]  # fmt: skip
    assert labels_at(view, np.array(mm).T) == {NODE + 1}
    for name in ("parametric_map", "segmentation", "structured_report"):
        path = tmp_path / f"{name}.dcm"
        assert dicom_errors(path) == []
        assert str(dcmread(path).PatientID) == "HOSPITAL-77"  # what goes to the PACS keeps the source's identity
        codes = private(path)
        assert (len(codes) > 10) == (name == "structured_report")
        assert codes <= set(listed().items())
    errors = report_errors(tmp_path / "structured_report.dcm")
    # The validator holds every group of a report against TID 1410 as soon as one follows it.
    assert [line for line in errors if not re.search(r"Template 1410 .*Missing conditional content item", line)] == []
    again = tmp_path / "again"
    again.mkdir()
    placed(view, again, tmp_path / "mr")
    for name in names:
        assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


def private(path: Path) -> set[tuple[str, str]]:
    """Value and meaning of every private code in an object."""
    return {
        (str(ds.CodeValue), str(ds.CodeMeaning))
        for element in dcmread(path).iterall() if element.VR == "SQ"
        for ds in element.value if ds.get("CodingSchemeDesignator") == SCHEME and "CodeValue" in ds
    }  # fmt: skip


def texts(path: Path) -> str:
    return "\n".join(
        str(item.value) for item in dcmread(path).iterall() if item.keyword in ("TextValue", "CodeMeaning")
    )


def test_report_says_shares_missing_order_and_that_it_is_no_diagnosis(view, tmp_path):
    cohort.write_series(tmp_path / "mr")
    evidence = replace(view.evidence, missing=("fa",), modalities=("alff", "dfc", "sfc"), order={"sfc": 0.12},
                       pairs=np.zeros((3, 3)))  # fmt: skip
    features = replace(view.features, fa=None)
    placed(replace(view, evidence=evidence, features=features), tmp_path, tmp_path / "mr")
    said = texts(tmp_path / "structured_report.dcm")
    for words in ("Research marker, not a diagnosis", "MISSING: FA", "SFC map depends on the order", "0.12",
                  "Share of the evidence: ALFF", view.features.regions[NODE], "Missing, not seen"):  # fmt: skip
        assert words in said
    assert dicom_errors(tmp_path / "structured_report.dcm") == []
    codes = private(tmp_path / "structured_report.dcm")
    assert {"missing", "limit", "order_sfc", "shapley_dfc", "ranks"} <= {value for value, _ in codes}
    assert codes <= set(listed().items())


def test_template_is_refused_without_and_placed_with_a_transform(view, tmp_path):
    import SimpleITK

    cohort.write_series(tmp_path / "mr")
    template = replace(view, template=True)
    names, notes = placed(template, tmp_path, tmp_path / "mr")
    assert names == ["structured_report.dcm"]
    assert "template's space" in notes[0]
    assert "--transform" in notes[0]
    assert "POINT" not in texts(tmp_path / "structured_report.dcm")
    rigid = SimpleITK.Euler3DTransform((0.0, 18.0, 18.0), 0.1, -0.05, 0.15, (25.0, -20.0, 12.0))
    SimpleITK.WriteTransform(rigid, str(tmp_path / "to_patient.txt"))
    transform = read_transform(tmp_path / "to_patient.txt")
    names, _ = placed(template, tmp_path, tmp_path / "mr", transform)
    assert "parametric_map.dcm" in names
    mm = bright(tmp_path / "parametric_map.dcm", 0.95)
    back = np.array([rigid.TransformPoint(tuple(point)) for point in mm.T.tolist()]).T  # the patient's -> features'
    assert labels_at(view, back) == {NODE + 1}
    assert labels_at(view, mm) != {NODE + 1}
    _, grid = own_grid(view.features.alff.shape, view.features.affine, transform)
    np.testing.assert_allclose(
        transform @ grid, view.features.affine, atol=1e-6
    )  # of a rigid one, nothing is resampled


def test_transforms_that_bend_space_and_series_elsewhere_are_refused(view, tmp_path):
    import SimpleITK

    field = SimpleITK.Image([4, 4, 4], SimpleITK.sitkVectorFloat64)
    field.SetSpacing((60.0, 60.0, 60.0))
    field.SetOrigin((-90.0, -90.0, -90.0))
    field[1, 1, 1] = (20.0, 0.0, 0.0)
    bent = SimpleITK.DisplacementFieldTransform(field)
    SimpleITK.WriteTransform(bent, str(tmp_path / "bent.h5"))
    with pytest.raises(IngestError, match="bends space"):
        read_transform(tmp_path / "bent.h5")
    cohort.write_series(tmp_path / "mr")
    far = np.eye(4)
    far[:3, 3] = 400.0
    with pytest.raises(MismatchError, match="0% of the map lies within the series"):
        placed(view, tmp_path, tmp_path / "mr", far)


@pytest.mark.parametrize(("region", "code", "where"), [
    ("Hippocampus_L", "5366008", "L"), ("Left-Thalamus-Proper", "42695009", "L"), ("Precuneus_R", "16630005", "R"),
    ("Cuneus_R", "31065004", "R"), ("Frontal_Sup_Medial_L", "83251001", "L"),
    ("ctx-rh-superiortemporal", "78277001", "R"),
    ("7Networks_LH_Vis_1", "12738006", "L"), ("Fusiform_L", "12738006", "L"), ("Cingulum_Ant_L", "12738006", "L"),
    ("region_12", "12738006", ""),
])  # fmt: skip
def test_codes_are_given_where_the_name_is_honest(region, code, where):
    assert (site(region)[0].value, side(region)) == (code, where)


def test_atlas_of_other_regions_is_refused_with_both_numbers(view, tmp_path):
    from medxai.prepare.brain.image import Image, write_image

    labels = np.minimum(cohort.atlas_labels(view.features), 49)
    image = write_image(tmp_path / "other.nii.gz", Image(labels, view.features.affine), "fewer")
    with pytest.raises(MismatchError, match=r"has 49 regions and the features have 50"):
        atlas_for(read_atlas(AtlasOptions(image=image)), view.features)
