"""A BIDS data set with planted truth through the command line: written, read back, resumed, refused with reasons."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from medxai.cli import app
from medxai.errors import IngestError
from medxai.prepare.brain.bids import scans_of, subjects
from medxai.prepare.brain.cohort import run_dataset, settings_hash
from medxai.prepare.brain.derivatives import read_subject
from medxai.prepare.brain.settings import AtlasOptions, FeatureSettings
from tests.prepare.brain.test_dwi import SHAPE as DWI_SHAPE
from tests.prepare.brain.test_dwi import arc, ends

SHAPE = (14, 12, 10)  # x, y, z
AFFINE = np.array([[-3.5, 0, 0, 20], [0, 3.4, 0.5, -18], [0, -0.5, 3.9, -16], [0, 0, 0, 1.0]])
# Orthogonal columns, since NIfTI's qform has no shear.
AFFINE[:3, 1:3] = np.linalg.qr(AFFINE[1:3, 1:3])[0][[0, 0, 1]] * [[0, 0], [1, 1], [1, 1]] * [3.4, 3.9]
SPACE = "space-MNI152NLin2009cAsym"
VOLUMES, TR = 120, 2.0


def atlas_image() -> np.ndarray:
    labels = np.zeros(SHAPE, np.int16)
    labels[1:6, 1:6, 1:9], labels[7:13, 1:6, 1:9], labels[1:6, 7:11, 1:9], labels[7:13, 7:11, 1:9] = 1, 2, 3, 4
    return labels


def atlas(folder: Path) -> AtlasOptions:
    folder.mkdir(exist_ok=True)
    image = folder / "atlas-Four_dseg.nii.gz"
    nibabel.Nifti1Image(atlas_image(), AFFINE).to_filename(image)
    names = ("7Networks_LH_Vis_1", "7Networks_RH_Vis_1", "7Networks_LH_Default_1", "Putamen")
    table = folder / "atlas.tsv"
    table.write_text("index\tname\n" + "".join(f"{n + 1}\t{name}\n" for n, name in enumerate(names)))
    return AtlasOptions(image=image, table=table)


def band_noise(generator: np.random.Generator) -> np.ndarray:
    phases = generator.uniform(0, 2 * np.pi, 16)
    time = np.arange(VOLUMES) * TR
    return sum(np.cos(2 * np.pi * k / (VOLUMES * TR) * time + phases[k - 3]) for k in range(3, 19)) / np.sqrt(8)


def functional(root: Path, subject: str, seed: int, volumes: int = VOLUMES, seconds: float = TR) -> None:
    """Regions 1 and 2 go together, the others do not; region 3 varies twice as much; a spike of motion is in all."""
    generator = np.random.default_rng(seed)
    courses = [band_noise(generator) for _ in range(4)]
    courses[1] = 0.9 * courses[0] + np.sqrt(1 - 0.81) * courses[1]
    labels = atlas_image()
    data = np.full((*SHAPE, VOLUMES), 1000.0) + generator.normal(0, 1, (*SHAPE, VOLUMES))
    motion = np.cumsum(generator.normal(0, 0.05, VOLUMES))
    for n, course in enumerate(courses):
        data[labels == n + 1] += (20 if n == 2 else 10) * course
    data += 80 * motion
    folder = root / subject / "func"
    folder.mkdir(parents=True)
    stem = f"{subject}_task-rest_{SPACE}"
    image = nibabel.Nifti1Image(data[..., :volumes].astype(np.float32), AFFINE)
    image.header.set_xyzt_units("mm", "sec")
    image.header["pixdim"][4] = seconds
    image.to_filename(folder / f"{stem}_desc-preproc_bold.nii.gz")
    (folder / f"{stem}_desc-preproc_bold.json").write_text(json.dumps({"RepetitionTime": seconds}))
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:13, 1:11, 1:9] = 1
    nibabel.Nifti1Image(mask, AFFINE).to_filename(folder / f"{stem}_desc-brain_mask.nii.gz")
    names = [f"{k}_{a}" for k in ("trans", "rot") for a in "xyz"]
    values = np.column_stack([motion, *generator.normal(size=(5, VOLUMES)), generator.normal(size=(2, VOLUMES)).T])
    rows = [
        "\t".join([*names, "white_matter", "csf"]),
        *("\t".join(f"{v:.6f}" for v in row) for row in values[:volumes]),
    ]
    (folder / f"{subject}_task-rest_desc-confounds_timeseries.tsv").write_text("\n".join(rows) + "\n")


def diffusion(root: Path, subject: str) -> np.ndarray:
    dwi, line = arc(DWI_SHAPE, np.array([3.0, 2.0, 2.2]), noise=10)
    folder = root / subject / "dwi"
    folder.mkdir(parents=True)
    ras = np.diag([-1.0, -1, 1, 1]) @ dwi.affine[:, [2, 1, 0, 3]]
    path = folder / f"{subject}_dwi.nii.gz"
    nibabel.Nifti1Image(dwi.data.transpose(2, 1, 0, 3), ras).to_filename(path)
    np.savetxt(folder / f"{subject}_dwi.bval", dwi.b[None], fmt="%g")
    vectors = dwi.directions[:, ::-1] * ([-1, 1, 1] if np.linalg.det(ras[:3, :3]) > 0 else [1, 1, 1])
    np.savetxt(folder / f"{subject}_dwi.bvec", vectors.T)
    labels = nibabel.Nifti1Image(ends(line).labels.transpose(2, 1, 0).astype(np.int16), ras)
    labels.to_filename(root / "ends.nii.gz")
    return vectors


@pytest.fixture
def dataset(tmp_path: Path) -> FeatureSettings:
    root = tmp_path / "in"
    root.mkdir()
    (root / "participants.tsv").write_text("participant_id\tgroup\nsub-01\tCN\nsub-02\tMCI\nsub-03\tCN\n")
    functional(root, "sub-01", 1)
    diffusion(root, "sub-01")
    functional(root, "sub-02", 2)
    functional(root, "sub-03", 3, volumes=40)
    return FeatureSettings(
        input=root, output=tmp_path / "out", atlas=atlas(tmp_path / "atlas"),
        diffusion_atlas=AtlasOptions(image=root / "ends.nii.gz"),
        diffusion={"stop_fa": 0.3, "seed_fa": 0.4},  # type: ignore[arg-type]
    )  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: data for name, data in found.items() if name != "timings.json"}


def test_a_data_set_with_planted_truth(dataset: FeatureSettings, tmp_path: Path) -> None:
    lines: list[str] = []
    outcomes = run_dataset(dataset, lines.append)
    assert [o.state for o in outcomes] == ["done", "done", "failed"]
    found = read_subject(dataset.output, "01")
    assert found.present == ("alff", "dfc", "sfc", "fa")
    assert found.regions[0] == "7Networks_LH_Vis_1"
    assert found.networks == ("Visual", "Visual", "Default", "")
    assert found.sfc is not None
    assert found.dfc is not None
    assert found.alff is not None
    assert np.tanh(found.sfc[0, 1]) == pytest.approx(0.9, abs=0.12)  # of this one draw
    assert np.abs(found.sfc[[0, 0, 2], [2, 3, 3]]).max() < 0.6
    assert found.dfc.shape == (4, 4, 71)
    # Each window is the connectivity of its own volumes: strong where the whole is strong.
    assert np.tanh(found.dfc[0, 1]).min() > 0.5
    labels = atlas_image().transpose(2, 1, 0)
    ratio = found.alff[labels == 3].mean() / found.alff[labels == 4].mean()
    assert ratio == pytest.approx(2, rel=0.1)
    assert found.affine is not None
    lps = np.diag([-1.0, -1, 1, 1]) @ AFFINE[:, [2, 1, 0, 3]]
    assert np.allclose(found.affine, lps, atol=1e-4)
    assert found.fa is not None
    assert {tuple(int(v) for v in pair) for pair in np.argwhere(found.fa)} == {(0, 2), (2, 0)}
    assert found.fa[0, 2] == pytest.approx(0.8, abs=0.06)
    second = read_subject(dataset.output, "sub-02")
    assert second.fa is None
    assert second.fa_regions == ()
    assert "40 volumes of 2 s are too few for 0.01 to 0.08 Hz" in (dataset.output / "failures.tsv").read_text()
    with pytest.raises(IngestError, match=r"see failures\.tsv"):
        read_subject(dataset.output, "03")
    assert (dataset.output / "participants.tsv").read_bytes() == (dataset.input / "participants.tsv").read_bytes()
    described = json.loads((dataset.output / "dataset_description.json").read_text())
    assert described["GeneratedBy"][0]["Name"] == "medxai"
    timings = json.loads((dataset.output / "timings.json").read_text())
    assert set(timings) == {"sub-01", "sub-02"}
    assert {"alff", "reho", "connectivity", "tensor", "tracts", "write"} <= set(timings["sub-01"])

    first = tree(dataset.output)
    assert [o.state for o in run_dataset(dataset)] == ["done before", "done before", "failed"]
    assert tree(dataset.output) == first
    elsewhere = dataset.model_copy(update={"output": tmp_path / "again"})
    run_dataset(elsewhere)
    assert tree(elsewhere.output) == first  # the same bytes

    names = set(first)
    stem = f"sub-01/func/sub-01_task-rest_{SPACE}"
    assert {f"{stem}_alff.nii.gz", f"{stem}_alff.json", f"{stem}_falff.nii.gz", f"{stem}_reho.nii.gz"} <= names
    assert {f"{stem}_seg-Four_relmat.tsv", f"{stem}_seg-Four_desc-dynamic_relmat.nii.gz"} <= names
    side = json.loads(first[f"{stem}_seg-Four_relmat.json"])
    assert side["Regions"][3] == "Putamen"
    assert side["ConfoundsRemoved"] == sorted(
        [*(f"{k}_{a}" for k in ("rot", "trans") for a in "xyz"), "csf", "white_matter"]
    )
    numpy = np.loadtxt(dataset.output / f"{stem}_seg-Four_relmat.tsv")
    assert np.array_equal(numpy.astype(np.float32), found.sfc)
    cube = nibabel.load(dataset.output / f"{stem}_seg-Four_desc-dynamic_relmat.nii.gz")
    assert cube.shape == (4, 4, 1, 71)
    assert np.array_equal(np.asarray(cube.dataobj, np.float32)[:, :, 0], found.dfc)

    (dataset.output / f"{stem}_seg-Four_relmat.tsv").write_text("1\t2\n3\t4\n")
    with pytest.raises(IngestError, match=r"relmat\.tsv was changed or lost"):
        read_subject(dataset.output, "01")
    assert [o.state for o in run_dataset(dataset)] == ["done", "done before", "failed"]
    assert tree(dataset.output) == first


def test_other_settings_are_other_features(dataset: FeatureSettings, tmp_path: Path) -> None:
    assert settings_hash(dataset) == settings_hash(dataset.model_copy(update={"output": tmp_path / "x"}))
    assert settings_hash(dataset) != settings_hash(dataset.model_copy(update={"dummies": 2}))
    before = settings_hash(dataset)
    table = dataset.atlas.table
    assert table is not None
    table.write_text(table.read_text().replace("Putamen", "Pallidum"))
    assert settings_hash(dataset) != before


def test_the_command_line(dataset: FeatureSettings) -> None:
    arguments = ["brain", "features", str(dataset.input), "--atlas", str(dataset.atlas.image)]
    arguments += ["--labels", str(dataset.atlas.table), "--out", str(dataset.output), "--windows", "20"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert "2 of 3 subjects" in done.output
    assert "sub-03 failed: 40 volumes" in done.output
    found = read_subject(dataset.output, "01")
    assert found.dfc is not None
    assert found.dfc.shape == (4, 4, 20)
    assert found.fa is None  # no atlas of the diffusion scan was given: maps alone
    assert (dataset.output / "sub-01/dwi/sub-01_model-tensor_param-fa_dwimap.nii.gz").is_file()


def test_flipped_gradients_fail_the_subject_and_can_be_fixed(dataset: FeatureSettings) -> None:
    path = dataset.input / "sub-01/dwi/sub-01_dwi.bvec"
    np.savetxt(path, np.loadtxt(path) * [[1], [-1], [1]])
    outcomes = run_dataset(dataset)
    assert outcomes[0].state == "failed"
    assert "fit the image better with" in outcomes[0].reason
    fixed = dataset.model_copy(update={"diffusion": dataset.diffusion.model_copy(update={"fix_gradients": True})})
    assert run_dataset(fixed)[0].state == "done"
    fa = read_subject(fixed.output, "01").fa
    assert fa is not None
    assert fa[0, 2] > 0.7


def test_a_given_matrix(dataset: FeatureSettings) -> None:
    folder = dataset.input / "sub-02/dwi"
    folder.mkdir()
    matrix = np.zeros((5, 5))
    matrix[1, 3] = matrix[3, 1] = 0.4
    np.savetxt(folder / "sub-02_desc-fa_relmat.csv", matrix, delimiter=",")
    outcomes = run_dataset(dataset)
    assert outcomes[1].state == "done"
    fa = read_subject(dataset.output, "02").fa
    assert fa is not None
    assert np.array_equal(fa, matrix.astype(np.float32))


def test_which_files(dataset: FeatureSettings, tmp_path: Path) -> None:
    root = dataset.input
    assert subjects(root) == ("sub-01", "sub-02", "sub-03")
    extra = root / "sub-02/func/sub-02_task-rest_space-T1w_desc-preproc_bold.nii.gz"
    extra.write_bytes(b"")
    with pytest.raises(IngestError, match=r"2 functional files \(space-MNI152NLin2009cAsym, space-T1w\)"):
        scans_of(root, "sub-02", dataset)
    chosen = scans_of(root, "sub-02", dataset.model_copy(update={"space": "T1w"}))
    assert chosen.bold == extra
    assert chosen.mask is None
    with pytest.raises(IngestError, match="no functional or diffusion series with task-nback"):
        scans_of(root, "sub-02", dataset.model_copy(update={"task": "nback"}))
    with pytest.raises(IngestError, match=r"holds no sub-\* folder"):
        subjects(tmp_path / "atlas")
    with pytest.raises(IngestError, match="is no folder"):
        subjects(tmp_path / "nothing")


def test_without_table_and_mask_motion_and_brain_are_estimated(dataset: FeatureSettings) -> None:
    folder = dataset.input / "sub-02/func"
    for path in [*folder.glob("*confounds*"), *folder.glob("*mask*")]:
        path.unlink()
    path = next(folder.glob("*bold.nii.gz"))
    image = nibabel.load(path)
    data = np.asarray(image.dataobj)
    data[0], data[-1], data[:, 0], data[:, -1], data[:, :, 0], data[:, :, -1] = 5, 5, 5, 5, 5, 5  # air around the head
    nibabel.Nifti1Image(data, image.affine, image.header).to_filename(path)
    for other in ("sub-01", "sub-03"):
        (dataset.input / other).rename(dataset.input / f"not_{other}")
    outcome = run_dataset(dataset)[0]
    assert outcome.state == "done", outcome.reason
    assert {"motion", "mask"} <= set(outcome.seconds)
    sfc = read_subject(dataset.output, "02").sfc
    assert sfc is not None
    assert np.isfinite(sfc).all()


def test_tissue_means_come_from_probabilities_where_there_is_no_table(dataset: FeatureSettings) -> None:
    folder = dataset.input / "sub-02"
    next(folder.glob("func/*confounds*")).unlink()
    (folder / "anat").mkdir()
    for n, label in ((3, "WM"), (4, "CSF")):
        weights = np.where(atlas_image() == n, 1.0, 0.6).astype(np.float32)
        path = folder / "anat" / f"sub-02_{SPACE}_label-{label}_probseg.nii.gz"
        nibabel.Nifti1Image(weights, AFFINE).to_filename(path)
    for other in ("sub-01", "sub-03"):
        (dataset.input / other).rename(dataset.input / f"not_{other}")
    plain = dataset.nuisance.model_copy(update={"motion": "none"})
    outcome = run_dataset(dataset.model_copy(update={"nuisance": plain}))[0]
    assert outcome.state == "done", outcome.reason
    side = next((dataset.output / "sub-02/func").glob("*_alff.json"))
    assert json.loads(side.read_text())["ConfoundsRemoved"] == ["csf", "white_matter"]
    alff = read_subject(dataset.output, "02").alff
    assert alff is not None
    labels = atlas_image().transpose(2, 1, 0)
    # What the two regions share with their own mean is gone; the others keep their course.
    assert alff[labels == 3].mean() < 0.3 * alff[labels == 1].mean()
    assert alff[labels == 4].mean() < 0.3 * alff[labels == 1].mean()


def test_all_that_is_read_counts_as_input(dataset: FeatureSettings) -> None:
    scans = scans_of(dataset.input, "sub-02", dataset)
    assert scans.confounds is not None
    assert scans.mask is not None
    assert {scans.bold, scans.confounds, scans.mask} < set(scans.files)
    assert any(path.suffix == ".json" for path in scans.files)


def test_a_damaged_file_is_named_by_its_pseudonym(dataset: FeatureSettings) -> None:
    side = next((dataset.input / "sub-02/func").glob("*bold.json"))
    side.write_text("{")
    assert run_dataset(dataset)[1].reason == f"{side.name}: cannot be read as JSON"
    assert side.name in (dataset.output / "failures.tsv").read_text()
