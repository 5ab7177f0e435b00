from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from medxai.errors import SettingsError
from medxai.export import ExportOptions
from medxai.export.sets import objects_for
from medxai.settings import ROLES, SETS, USUAL_ROLES, Destination, make_settings, read_set
from medxai.study import OutputFile
from tests.studies import command, dicom_study

NAMES = ("legacy_pacs", "ohif", "research", "slicer")
RUN = {"inputs": ["a"], "output": "b", "bundle": "c"}
OUTPUTS = tuple(OutputFile(role, f"{role}.dcm", "0" * 64, 1) for role in ROLES)


def test_the_shipped_sets_are_these_and_every_one_loads():
    assert tuple(sorted(path.stem for path in SETS.glob("*.yaml"))) == NAMES
    for name in NAMES:
        options = ExportOptions(output_set=name)
        given = yaml.safe_load((SETS / f"{name}.yaml").read_text())
        assert options.formats == tuple(given["formats"])
        assert options.output_set == name


def test_what_is_said_beside_a_set_wins():
    assert not ExportOptions(output_set="ohif").labelmap
    assert ExportOptions(output_set="ohif", labelmap=True).labelmap
    assert ExportOptions(output_set="ohif", formats=("nifti",)).formats == ("nifti",)


def test_without_a_set_the_usual_ones_are_written():
    assert ExportOptions().formats == USUAL_ROLES


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_the_way_through_a_scheduler(name):
    settings = make_settings({**RUN, "export": {"output_set": name}})
    assert make_settings(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("viewer", "never"),
    [
        ("ohif", {"fractional_segmentation", "volumetric_report", "presentation_state", "key_objects"}),
        ("legacy_pacs", {"parametric_map", "segmentation", "fractional_segmentation", "volumetric_report"}),
    ],
)
def test_no_set_sends_what_its_viewer_was_seen_to_fail_on(viewer, never):
    assert not never & {output.role for output in objects_for(viewer, OUTPUTS)}


def test_objects_of_a_set_in_the_order_of_the_outputs():
    assert objects_for(None, OUTPUTS) == OUTPUTS
    roles = [output.role for output in objects_for("ohif", OUTPUTS)]
    assert roles == [role for role in ROLES if role in ExportOptions(output_set="ohif").formats]


def test_a_site_brings_its_own_set(tmp_path: Path):
    path = tmp_path / "ward.yaml"
    path.write_text("formats: [secondary_capture]\nbands: [0.5]\n")
    options = make_settings({**RUN, "export": {"output_set": str(path)}}).export
    assert (options.formats, options.bands) == (("secondary_capture",), (0.5,))
    assert [output.role for output in objects_for(str(path), OUTPUTS)] == ["secondary_capture"]


@pytest.mark.parametrize("text", ["- a\n- b\n", "output_set: ohif\n", "a: [", ""])
def test_a_file_that_is_no_set_is_one_line(text, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        make_settings({**RUN, "export": {"output_set": str(path)}})
    assert "\n" not in str(caught.value)
    assert "output set" in str(caught.value)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SettingsError, match="shipped sets: legacy_pacs, ohif, research, slicer"):
        make_settings({**RUN, "export": {"output_set": "pacs"}})
    with pytest.raises(ValueError, match="shipped sets"):
        Destination(name="a", kind="dimse", host="h", aet="A", output_set="pacs")
    with pytest.raises(ValueError, match="no output set"):
        read_set("../ohif")


def test_the_command_line_takes_a_set(capfd, tmp_path):
    study = dicom_study(tmp_path / "in")
    done = command(
        capfd, "run", study, "-b", "phantom_ct", "-o", tmp_path / "out", "--set", "legacy_pacs", "--send-withheld"
    )
    assert done.code == 0, done.err
    (manifest,) = (tmp_path / "out").glob("*/manifest.json")
    written = {output["role"] for output in json.loads(manifest.read_text())["outputs"]}
    assert written == set(ExportOptions(output_set="legacy_pacs").formats)
    refused = command(capfd, "run", study, "-b", "phantom_ct", "-o", tmp_path / "out", "--set", "nowhere")
    assert refused.code == 2
    assert "shipped sets" in refused.errors[0]
