"""Diffusion MRI: known tensors, flipped gradients, a bundle between two regions, and real scans."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medxai.errors import IngestError, MismatchError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.prepare.brain.atlas import Atlas, Placed
from medxai.prepare.brain.dwi import Dwi, dwi_of_studies, read_dwi
from medxai.prepare.brain.gradients import FRAMES, check_gradients, coherence
from medxai.prepare.brain.image import Image
from medxai.prepare.brain.settings import DiffusionOptions
from medxai.prepare.brain.tensor import fit_tensor
from medxai.prepare.brain.tracts import structural_connectivity
from tests.tools import require_data


def directions(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(count, 3))
    return found / np.linalg.norm(found, axis=1)[:, None]


def signal(principal: np.ndarray, b: np.ndarray, g: np.ndarray, along: float = 1.7e-3, across: float = 0.3e-3):  # type: ignore[no-untyped-def]
    """Signal of a tensor with the given principal directions ``[..., 3]``: ``[..., G]``."""
    cosine = principal @ g.T
    return 1000 * np.exp(-b * (across + (along - across) * cosine**2))


def arc(shape: tuple[int, int, int], spacing: np.ndarray, noise: float = 0, count: int = 30) -> tuple[Dwi, np.ndarray]:
    """A bundle that bends in all three axes through isotropic tissue, on an anisotropic oblique grid."""
    b = np.array([0.0, 0.0] + [1000.0] * count)
    g = np.concatenate([np.zeros((2, 3)), directions(count)])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * spacing
    t = np.linspace(0, 1, 400)[:, None]
    extent = np.array(shape) * spacing
    line = np.concatenate([0.2 + 0.3 * t + 0.25 * t**2, 0.8 - 0.25 * t - 0.35 * t**3, 0.15 + 0.7 * t], 1) * extent
    tangent = np.gradient(line, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1)[:, None]
    distance = np.linalg.norm(index.reshape(-1, 1, 3) - line, axis=-1)
    near = distance.argmin(1)
    inside = distance.min(1).reshape(shape) < 5.0
    principal = tangent[near].reshape(*shape, 3)
    data = np.where(inside[..., None], signal(principal, b, g), 1000 * np.exp(-b * 0.9e-3))
    data = data + np.random.default_rng(1).normal(scale=noise, size=data.shape) if noise else data
    turn = np.linalg.qr(np.eye(3) + 0.2 * np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing)
    return Dwi(data.astype(np.float32), affine, b, g, "phantom"), line / spacing


def rings(noise: float) -> Dwi:
    """Two rings in different planes: no exchange or flip but the right one leads along both."""
    shape, spacing = (20, 24, 30), np.array([3.0, 2.0, 2.2])
    b = np.array([0.0, 0.0] + [1000.0] * 30)
    g = np.concatenate([np.zeros((2, 3)), directions(30)])
    place = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * spacing
    data = np.broadcast_to(1000 * np.exp(-b * 0.9e-3), (*shape, 32)).copy()
    for centre, (one, two, out) in (((30, 24, 12), (0, 1, 2)), ((30, 24, 46), (1, 2, 0))):
        away = place - np.array(centre)
        radius = np.hypot(away[..., one], away[..., two])
        inside = np.hypot(radius - 15, away[..., out]) < 5.5
        tangent = np.zeros((*shape, 3))
        tangent[..., one], tangent[..., two] = -away[..., two], away[..., one]
        tangent /= np.maximum(radius, 1e-6)[..., None]
        data[inside] = signal(tangent[inside], b, g)
    data += np.random.default_rng(1).normal(scale=noise, size=data.shape)
    return Dwi(data.astype(np.float32), np.diag([*spacing, 1.0]), b, g, "rings")


SHAPE, SPACING = (18, 24, 28), np.array([3.0, 2.0, 2.2])


def test_a_known_tensor() -> None:
    b = np.array([0.0] + [1000.0] * 20 + [3000.0] * 5)
    g = np.concatenate([np.zeros((1, 3)), directions(25)])
    principal = directions(2 * 3 * 4, 3).reshape(2, 3, 4, 3)
    data = signal(principal, b, g).astype(np.float32)
    data[..., -5:] = 500  # beyond the tensor's b-values; must not count
    found = fit_tensor(Dwi(data, np.eye(4), b, g, "x"))
    mean = (1.7 + 2 * 0.3) / 3
    spread = np.sqrt(1.5 * ((1.7 - mean) ** 2 + 2 * (0.3 - mean) ** 2) / (1.7**2 + 2 * 0.3**2))
    assert np.allclose(found.fa, spread, atol=1e-3)
    assert np.allclose(found.md, mean * 1e-3, atol=1e-6)
    assert np.allclose(np.abs((found.principal * principal).sum(-1)), 1, atol=1e-3)


def test_background_is_left_out() -> None:
    dwi, _ = arc(SHAPE, SPACING)
    dwi.data[:4] = 1
    found = fit_tensor(dwi)
    assert not found.mask[:4].any()
    assert found.mask[4:].all()
    assert found.fa[:4].max() == 0
    with pytest.raises(IngestError, match="mask of shape"):
        fit_tensor(dwi, np.zeros(SHAPE, bool))
    with pytest.raises(IngestError, match="0 weighted volumes have b up to 500"):
        fit_tensor(dwi, largest_b=500)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4, 9, 14, 23])
def test_a_flip_or_exchange_is_found_and_undone(number: int) -> None:
    dwi = rings(20)
    wrong = Dwi(dwi.data, dwi.affine, dwi.b, dwi.directions @ FRAMES[number].matrix, "x")  # undone by the frame itself
    tensor = fit_tensor(wrong)
    if number == 0:
        assert "directions fit the image" in check_gradients(wrong, tensor, fix=False)[2]
        return
    with pytest.raises(IngestError, match="fit the image better with " + FRAMES[number].words.split("(")[0].strip()):
        check_gradients(wrong, tensor, fix=False)
    fixed, again, note = check_gradients(wrong, tensor, fix=True)
    assert FRAMES[number].words in note
    assert np.allclose(np.abs((fixed.directions * dwi.directions).sum(1))[2:], 1)
    assert np.allclose(again.fa, tensor.fa)
    refitted = fit_tensor(fixed)
    strong = again.fa > 0.5
    assert np.allclose(np.abs((refitted.principal * again.principal).sum(-1))[strong], 1, atol=1e-3)


def test_frames_are_all_there_is() -> None:
    signs = {tuple(np.round(np.outer(f.matrix @ [1, 2, 3], f.matrix @ [1, 2, 3]).ravel(), 6)) for f in FRAMES}
    assert len(signs) == 24


def test_too_few_fibres_are_not_judged() -> None:
    b = np.array([0.0] + [1000.0] * 10)
    g = np.concatenate([np.zeros((1, 3)), directions(10)])
    dwi = Dwi(np.full((6, 6, 6, 11), 100, np.float32) * np.exp(-b * 1e-3).astype(np.float32), np.eye(4), b, g, "x")
    assert "not checked" in check_gradients(dwi, fit_tensor(dwi), fix=False)[2]


def ends(line: np.ndarray) -> Placed:
    """Regions at both ends of the bundle and three away from it."""
    labels = np.zeros(SHAPE, np.int32)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij"), -1)
    places = [line[0], [15, 20, 24], line[-1], [2, 2, 14], [16, 3, 3]]
    for n, place in enumerate(places):
        labels[np.linalg.norm((index - place) * SPACING, axis=-1) < 7] = n + 1
    names = tuple(f"r{n}" for n in range(5))
    atlas = Atlas(Image(labels, np.eye(4)), (1, 2, 3, 4, 5), names, ("",) * 5, "", "x")
    return Placed(labels, np.ones(5), (), atlas)


@pytest.mark.parametrize("model", ["tensor", "csa"])
def test_two_regions_joined_by_a_bundle(model: str) -> None:
    dwi, line = arc(SHAPE, SPACING, noise=10)
    tensor = fit_tensor(dwi)
    options = DiffusionOptions(model=model, stop_fa=0.3, seed_fa=0.4)  # type: ignore[arg-type]
    found = structural_connectivity(dwi, tensor, ends(line), options)
    joined = {(int(a), int(b)) for a, b in np.argwhere(found.counts)}
    assert joined == {(0, 2), (2, 0)}
    assert found.counts[0, 2] == found.counts[2, 0] == found.joined > 50
    assert found.fa[0, 2] == pytest.approx(0.8, abs=0.06)  # the tensor of the bundle has 0.80
    again = structural_connectivity(dwi, tensor, ends(line), options)
    assert np.array_equal(again.counts, found.counts)
    assert np.array_equal(again.fa, found.fa)


def test_wrong_gradients_break_the_bundle() -> None:
    dwi, line = arc(SHAPE, SPACING, noise=10)
    wrong = Dwi(dwi.data, dwi.affine, dwi.b, dwi.directions * [1, -1, 1], "x")
    options = DiffusionOptions(stop_fa=0.3, seed_fa=0.4)
    right = structural_connectivity(dwi, fit_tensor(dwi), ends(line), options).counts[0, 2]
    assert structural_connectivity(wrong, fit_tensor(wrong), ends(line), options).counts[0, 2] < 0.2 * right


def test_what_tracts_refuse() -> None:
    dwi, line = arc(SHAPE, SPACING, count=12)
    tensor = fit_tensor(dwi)
    with pytest.raises(MismatchError, match="12 weighted volumes are too few for constant solid angle"):
        structural_connectivity(dwi, tensor, ends(line), DiffusionOptions(model="csa"))
    with pytest.raises(MismatchError, match="no voxel has a fractional anisotropy above 1"):
        structural_connectivity(dwi, tensor, ends(line), DiffusionOptions(seed_fa=1.0))


def save(folder: Path, affine: np.ndarray, b: np.ndarray, vectors: np.ndarray, data: np.ndarray | None = None) -> Path:
    path = folder / "sub-1_dwi.nii.gz"
    values = np.full((3, 4, 5, len(b)), 100, np.float32) if data is None else data
    nibabel.Nifti1Image(values, affine).to_filename(path)
    np.savetxt(folder / "sub-1_dwi.bval", b[None], fmt="%g")
    np.savetxt(folder / "sub-1_dwi.bvec", vectors.T)
    return path


@pytest.mark.parametrize("first", [-2.0, 2.0])
def test_fsl_turns_x_where_the_determinant_is_positive(tmp_path: Path, first: float) -> None:
    b = np.array([0.0] + [1000.0] * 8)
    g = np.concatenate([np.zeros((1, 3)), directions(8)])
    path = save(tmp_path, np.diag([first, 2.0, 3.0, 1]), b, g)
    found = read_dwi(path)
    expected = g[:, ::-1] * [1, 1, -1 if first > 0 else 1]
    assert np.allclose(found.directions, expected, atol=1e-6)
    np.savetxt(tmp_path / "sub-1_dwi.bvec", g)
    assert np.allclose(read_dwi(path).directions, expected, atol=1e-6)


def test_missing_and_bad_gradients(tmp_path: Path) -> None:
    b = np.array([0.0] + [1000.0] * 8)
    g = np.concatenate([np.zeros((1, 3)), directions(8)])
    path = save(tmp_path, np.diag([2.0, 2.0, 3.0, 1]), b, g)
    (tmp_path / "sub-1_dwi.bvec").unlink()
    with pytest.raises(IngestError, match="no bvec beside the diffusion image: without gradients"):
        read_dwi(path)
    np.savetxt(tmp_path / "sub-1_dwi.bvec", g[:-1].T)
    with pytest.raises(IngestError, match=r"9 volumes, 9 b-values and directions of shape"):
        read_dwi(path)
    np.savetxt(tmp_path / "sub-1_dwi.bvec", 2 * g.T)
    with pytest.raises(IngestError, match="8 weighted volumes have a direction that is no unit vector"):
        read_dwi(path)
    (tmp_path / "sub-1_dwi.bvec").write_text("a b c")
    with pytest.raises(IngestError, match="no table of numbers"):
        read_dwi(path)
    with pytest.raises(IngestError, match="no volume without weighting"):
        read_dwi(save(tmp_path, np.diag([2.0, 2.0, 3.0, 1]), b + 900, np.where(g == 0, [1, 0, 0], g)))
    with pytest.raises(IngestError, match="has 1 different directions"):
        read_dwi(save(tmp_path, np.diag([2.0, 2.0, 3.0, 1]), b, np.where(b[:, None] > 0, [[0, 0, 1.0]], 0)))


@pytest.mark.data
@pytest.mark.parametrize("name", ["small_64D.nii", "small_101D.nii.gz"])
def test_published_scans_fit_and_their_flips_do_not(name: str) -> None:
    dwi = read_dwi(require_data("dti_nifti", name))
    tensor = fit_tensor(dwi)
    assert 0.6e-3 < np.median(tensor.md[tensor.mask]) < 1.1e-3
    assert "directions fit" in check_gradients(dwi, tensor, fix=False)[2]


@pytest.mark.data
def test_gradients_of_a_scanner(tmp_path: Path) -> None:
    folder = require_data("dti_dicom")
    studies = [read_study(source) for source in discover([folder], tmp_path).sources]
    dwi = dwi_of_studies(studies)
    assert dwi.data.shape == (20, 64, 64, 17)
    # dcm2niix's own file; it stores rows from below, so that y runs against ours.
    theirs = np.loadtxt(folder / "dti_tra_dir16_PA_rot_12_132222.bvec").T[:, ::-1] * [1, -1, 1]
    likeness = np.abs(dwi.directions[1:] @ theirs[1:].T)
    assert (likeness.max(1) > 0.999).all()
    assert len(set(likeness.argmax(1))) == 16
    tensor = fit_tensor(dwi)
    assert "directions fit" in check_gradients(dwi, tensor, fix=False)[2]
    scores, _ = coherence(tensor, dwi.spacing)
    assert scores.argmax() == 0
    for axis in range(3):
        wrong = Dwi(dwi.data, dwi.affine, dwi.b, dwi.directions * np.where(np.arange(3) == axis, -1, 1), "x")
        with pytest.raises(IngestError, match=f"better with {'zyx'[axis]} flipped"):
            check_gradients(wrong, fit_tensor(wrong), fix=False)


@pytest.mark.data
def test_functional_volumes_have_no_gradients(tmp_path: Path) -> None:
    studies = [read_study(s) for s in discover([require_data("fmri_mosaic_dicom")], tmp_path).sources]
    with pytest.raises(IngestError, match="4 of 4 volumes state no b-value"):
        dwi_of_studies(studies)
