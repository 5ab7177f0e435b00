"""A coarse map that is enlarged over the edge of the brain: nothing outside is written, nothing inside is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom import dcmread

from medxai.brain_inputs import atlas_for, read_series
from medxai.explain.brain_evidence import brain_evidence, sentences
from medxai.explain.synergistic import SynergisticOptions, synergistic_maps
from medxai.export.brain.maps import write_maps
from medxai.export.brain.objects import write_objects
from medxai.export.brain.subject_view import SubjectView
from medxai.prepare.brain.atlas import read_atlas
from medxai.prepare.brain.image import Image
from medxai.prepare.brain.onto import computed, resampled_within
from medxai.prepare.brain.settings import AtlasOptions
from medxai.prepare.brain.subject import SubjectFeatures
from tests.export import build
from tests.export.brain import cohort
from tests.export.brain.test_known_truth import bright
from tests.tools import dicom_errors

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(features: SubjectFeatures) -> SubjectFeatures:
    """The same subject, its grid turned about the middle of the head, with another step along each axis."""
    assert features.alff is not None
    affine = np.eye(4)
    affine[:3, :3] = build.rotation(11.0, -17.0)[:, [2, 1, 0]] * [13.0, 10.0, 11.0]
    affine[:3, 3] = np.array([0.0, 18.0, 18.0]) - affine[:3, :3] @ ((np.array(features.alff.shape) - 1) / 2)
    return replace(features, affine=affine)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edge")
    planted = replace(cohort.SMALL, grid=(10, 13, 9))
    people = cohort.fewer(cohort.people(2, planted=planted), 12)
    people = [replace(person, features=oblique(person.features)) for person in people]
    model = cohort.load(*cohort.write_bundle(folder, people))
    return people[1].features, model, folder, brain_evidence(model, people[1].features)


def seen_from(features: SubjectFeatures, mm: np.ndarray) -> np.ndarray:
    """Whether the cell of the features at each place ``[3, n]`` in patient mm has an ALFF."""
    index = np.rint(np.linalg.inv(features.affine) @ np.r_[mm, np.ones((1, mm.shape[1]))])[:3].astype(int)
    inside = ((index >= 0) & (index < np.array(features.alff.shape)[:, None])).all(0)
    found = np.zeros(mm.shape[1], bool)
    found[inside] = features.alff[tuple(index[:, inside])] != 0
    return found


def test_evidence_ends_where_alff_was_computed(case):
    """The network's own map spills over the edge; what is kept is the same inside and nothing outside."""
    features, model, _, found = case
    brain = features.alff != 0
    network = model.network()
    batch, _ = model.scaling().inputs([features])
    inputs = {name: batch[name] for name in network.modalities}
    calls = network.target_calls(tuple(inputs), **model.layers)
    raw = synergistic_maps(network, inputs, model.positive, SynergisticOptions(**model.marking),
                           calls).maps["alff"].numpy()  # fmt: skip
    assert raw[~brain].sum() > 0.1 * raw.sum()
    assert not found.maps["alff"][~brain].any()
    np.testing.assert_allclose(found.maps["alff"][brain], raw[brain], atol=1e-5)
    assert found.outside == pytest.approx(raw[~brain].sum() / raw.sum(), abs=1e-4)
    assert any("lay outside the brain" in line for line in sentences(found))
    assert not any("lay outside the brain" in line for line in sentences(replace(found, outside=0.02)))


def test_a_constant_map_stays_constant_up_to_the_edge():
    """On a finer oblique grid: 1 in every cell of the ellipsoid, 0 in every other, whatever the map was outside."""
    shape = (9, 14, 11)
    d, h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    mask = (d / 0.9) ** 2 + (h / 0.7) ** 2 + (w / 0.8) ** 2 < 1
    affine = np.eye(4)
    affine[:3, :3] = build.rotation(20.0, 8.0)[:, [2, 1, 0]] * [4.0, 3.0, 3.5]
    fine = np.eye(4)
    fine[:3, :3] = build.rotation(-7.0, 13.0)[:, [2, 1, 0]] * [1.7, 1.1, 1.3]
    fine[:3, 3] = affine[:3, 3] - 3.0
    image = Image(np.where(mask, 1.0, 5.0).astype(np.float32), affine)
    found = resampled_within(image, mask, (21, 37, 29), fine)
    places = np.indices(found.shape).reshape(3, -1)
    index = np.linalg.inv(affine) @ fine @ np.r_[places, np.ones((1, places.shape[1]))]
    cell = np.rint(index[:3]).astype(int)
    sure = (np.abs(index[:3] - np.floor(index[:3]) - 0.5) > 1e-3).all(0)  # not on the border of two cells
    inside = ((cell >= 0) & (cell < np.array(shape)[:, None])).all(0)
    wanted = np.zeros(places.shape[1])
    wanted[inside] = mask[tuple(cell[:, inside])]
    assert 0.05 < wanted[sure].mean() < 0.95
    np.testing.assert_allclose(found.reshape(-1)[sure], wanted[sure], atol=1e-5)


@pytest.mark.parametrize("regions", [True, False])
def test_no_output_shows_evidence_outside_the_brain(case, tmp_path: Path, regions: bool):
    features, model, folder, found = case
    atlas = labels = None
    if regions:
        image, table = cohort.write_atlas(folder / "atlas", features)  # boxes over the whole grid, air included
        atlas = read_atlas(AtlasOptions(image=image, table=table))
        labels = atlas_for(atlas, features)
        assert not labels[features.alff == 0].any()
    even = np.where(computed(features.alff), 1.0, 0.0).astype(np.float32)  # the same everywhere in the brain
    view = SubjectView(features, replace(found, maps={**found.maps, "alff": even}), "untrained 0.1.0", model.sha256,
                       "cd" * 32, "ef" * 32, False, 2.0, atlas, labels)  # fmt: skip
    cohort.write_series(tmp_path / "mr", (17, 30, 26))
    study, _ = read_series(tmp_path / "mr", features.subject, ("x",))
    write_objects(view, study, None, tmp_path, created="2024-01-02T03:04:05", top=12, series_number=9100,
                  parameters={"gamma": 1.0}, layer="layer1", send_withheld=True)  # fmt: skip
    write_maps(view, tmp_path)
    for name in ("parametric_map.dcm", "segmentation.dcm"):
        mm = bright(tmp_path / name, 0.0)
        assert mm.shape[1] > 500
        assert seen_from(features, mm).all(), name
        assert dicom_errors(tmp_path / name) == []
    # Nothing inside is lost either: every voxel of the series in a cell with ALFF has the one value.
    size = np.array(study.volume.shape)
    index = np.indices(size).reshape(3, -1)
    mm = (study.volume.affine @ np.r_[index, np.ones((1, index.shape[1]))])[:3]
    assert int(seen_from(features, mm).sum()) == bright(tmp_path / "parametric_map.dcm", 0.999).shape[1]
    for name in ("alff_map", "alff_map_subject"):
        nifti = nibabel.load(tmp_path / f"{name}.nii.gz")
        places = np.argwhere(nifti.get_fdata() > 0)
        mm = (_LPS_TO_RAS @ nifti.affine @ np.c_[places, np.ones(len(places))].T)[:3]
        assert len(places) > 100
        assert seen_from(features, mm).all(), name
    if regions:
        ranked = view.ranked()["alff"]
        assert {item.value for item in ranked} == {1.0}  # air has no share in a region's mean
        everywhere = cohort.atlas_labels(features)
        here = set(everywhere[features.alff != 0].tolist())
        assert {item.index + 1 for item in ranked} == here
        assert dcmread(tmp_path / "segmentation.dcm").SegmentSequence[0].SegmentLabel.endswith("(explanation)")
