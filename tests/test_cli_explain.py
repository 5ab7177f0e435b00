"""`medxai explain` and `medxai methods` as somebody types them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medxai.explain.registry import method_names
from tests.studies import dicom_study
from tests.test_cli import Capture, command, nifti_study


def test_explain_writes_map_picture_and_manifest(tmp_path: Path, capfd: Capture) -> None:
    """One image, three methods with options, another layer and class; the files are where they are said to be."""
    path = nifti_study(tmp_path / "volume.nii.gz")
    options = ("-m", "gradcam", "-m", "smoothgradcampp", "-m", "saliency", "--option", "smoothgradcampp.samples=2",
               "--class", "clean", "--layer", "features.denseblock1", "--seed", "3")  # fmt: skip
    done = command(capfd, "explain", path, "-b", "phantom_ct", "-o", tmp_path / "out", *options)
    assert done.code == 0, done.err
    files = [Path(line.strip()) for line in done.out.splitlines() if line.startswith("  ")]
    assert all(file.exists() for file in files)
    assert "gradcam at features.denseblock1 for clean" in done.out
    (folder,) = {file.parent for file in files}
    manifest = json.loads((folder / "manifest.json").read_text())
    names = [(e["method"], e["layer"], e["class"]) for e in manifest["explanations"]]
    assert names == [
        ("gradcam", "features.denseblock1", "clean"),
        ("smoothgradcampp", "features.denseblock1", "clean"),
        ("saliency", "input", "clean"),
    ]
    assert manifest["explanations"][1]["parameters"]["samples"] == 2
    assert manifest["explanations"][1]["parameters"]["seed"] == 3
    source = nibabel.load(path)
    placed = nibabel.load(next(folder.glob("nifti_saliency*original.nii.gz")))
    assert placed.shape[:3] == source.shape[:3]
    assert np.allclose(placed.affine, source.affine, atol=1e-4)
    with Image.open(next(folder.glob("picture_gradcam*.png"))) as picture:
        assert picture.size[0] > 200


def test_perturbation_over_windows(tmp_path: Path, capfd: Capture) -> None:
    """Methods that run the network again are answered for the explained class, with their figures in the manifest."""
    path = nifti_study(tmp_path / "volume.nii.gz")
    options = ("-m", "occlusion", "-m", "attention_rollout", "--masking", "air")
    done = command(capfd, "explain", path, "-b", "phantom_ct", "-o", tmp_path / "a", *options)
    assert done.code == 2
    assert "the network has none" in done.err
    options = ("-m", "occlusion", "--masking", "air", "--option", "occlusion.window=[12,16,16]",
               "--option", "occlusion.stride=[12,16,16]")  # fmt: skip
    done = command(capfd, "explain", path, "-b", "phantom_ct", "-o", tmp_path / "b", *options)
    assert done.code == 0, done.err
    (manifest,) = (tmp_path / "b").glob("*/manifest.json")
    (item,) = json.loads(manifest.read_text())["explanations"]
    assert item["parameters"]["report"]["masking"] == "air"
    assert item["parameters"]["report"]["forwards"] > 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-m", "grad-cam"), "did you mean gradcam"),
        (("--option", "gradcam.x=1"), "gradcam has no option 'x'"),
        (("--option", "nonsense"), "method.option=value"),
        (("--layer", "features.typo"), "has no layer 'features.typo'"),
        (("--class", "tumour"), "no class 'tumour'"),
        (("--masking", "fog"), "unknown masking operator 'fog'"),
        (("--prepared", "maybe"), "prepared"),
    ],
)
def test_explain_says_what_is_wrong_before_it_starts(
    tmp_path: Path, capfd: Capture, options: tuple[str, ...], reason: str
) -> None:
    """One line, exit code 2, nothing explained."""
    path = nifti_study(tmp_path / "volume.nii.gz")
    done = command(capfd, "explain", path, "-b", "phantom_ct", "-o", tmp_path / "out", *options)
    assert done.code == 2
    assert reason in done.err
    assert not list((tmp_path / "out").glob("*/manifest.json"))


def test_explain_takes_one_image(tmp_path: Path, capfd: Capture) -> None:
    """A folder of several is a case for `medxai run`."""
    dicom_study(tmp_path / "in" / "a")
    nifti_study(tmp_path / "in" / "b.nii.gz")
    done = command(capfd, "explain", tmp_path / "in", "-b", "phantom_ct", "-o", tmp_path / "out")
    assert done.code == 2
    assert "holds 2 images" in done.err


def test_methods_as_json_and_as_a_table(capfd: Capture) -> None:
    """Every method with what the documentation promises; class-agnostic ones say so."""
    done = command(capfd, "methods", "--json")
    rows = json.loads(done.out)
    assert {row["name"] for row in rows} == set(method_names())
    assert all({"name", "family", "dims", "tokens", "class_agnostic", "passes"} <= row.keys() for row in rows)
    agnostic = {row["name"] for row in rows if row["class_agnostic"]}
    assert agnostic == {"eigencam", "kpca_cam", "fem", "attention_rollout"}
    table = command(capfd, "methods", "--family", "activation_cam")
    assert table.code == 0
    assert "class-agnostic" in table.out
    assert "layer_mask" in table.out
    assert "gradcam " not in table.out
    assert command(capfd, "methods", "--family", "magic").code == 2
