"""Atlases: tables, networks, their place on a scan's grid, and what is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medxai.errors import IngestError, MismatchError
from medxai.prepare.brain.atlas import Atlas, place_atlas, read_atlas
from medxai.prepare.brain.networks import YEO7, canonical, network_of_name
from medxai.prepare.brain.settings import AtlasOptions
from tests.tools import require_data

RAS = np.array([[-2.0, 0, 0, 20], [0, 2, 0, -16], [0, 0, 3, -9], [0, 0, 0, 1]])


def blocks() -> np.ndarray:
    """Four regions of labels 3, 7, 8 and 40 in the quarters of a grid of 12 x 10 x 8 (x, y, z)."""
    data = np.zeros((12, 10, 8), np.int16)
    data[1:6, 1:5, 1:7], data[6:11, 1:5, 1:7], data[1:6, 5:9, 1:7], data[6:11, 5:9, 1:7] = 3, 7, 8, 40
    return data


def save(folder: Path, data: np.ndarray | None = None, name: str = "atlas_dseg.nii.gz") -> Path:
    nibabel.Nifti1Image(blocks() if data is None else data, RAS).to_filename(folder / name)
    return folder / name


def table(folder: Path, text: str) -> Path:
    path = folder / "atlas.tsv"
    path.write_text(text)
    return path


SCHAEFER = (
    "index\tname\n40\t7Networks_RH_Default_1\n3\t7Networks_LH_Vis_1\n7\t7Networks_LH_SalVentAttn_Med_2\n8\tThalamus\n"
)


def test_names_and_networks(tmp_path: Path) -> None:
    found = read_atlas(AtlasOptions(image=save(tmp_path), table=table(tmp_path, SCHAEFER)))
    assert found.labels == (3, 7, 8, 40)
    assert found.names[0] == "7Networks_LH_Vis_1"
    assert found.networks == ("Visual", "VentralAttn", "", "Default")


def test_a_column_of_networks_wins(tmp_path: Path) -> None:
    text = "ROI,Region,Yeo7,mine\n3,a,1,x\n7,b,Cont,y\n8,c,,z\n40,d,Dorsal Attention,n/a\n"
    options = AtlasOptions(image=save(tmp_path), table=table(tmp_path, text))
    assert read_atlas(options).networks == ("Visual", "Frontoparietal", "", "DorsalAttn")
    assert read_atlas(options.model_copy(update={"network_column": "mine"})).networks == ("x", "y", "z", "")


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("7Networks_LH_Vis_1", "Visual"),
        ("7Networks_RH_Cont_PFCl_3", "Frontoparietal"),
        ("17Networks_LH_DefaultA_IPL_1", "DefaultA"),
        ("7Networks_DorsAttn_1", "DorsalAttn"),
        ("Left-Thalamus", ""),
    ],
)
def test_network_in_a_name(name: str, network: str) -> None:
    assert network_of_name(name) == network


def test_all_seven_have_one_name() -> None:
    assert [canonical(str(n)) for n in range(1, 8)] == list(YEO7)
    assert [canonical(n) for n in YEO7] == list(YEO7)


def test_networks_by_the_majority_of_voxels(tmp_path: Path) -> None:
    networks = np.zeros((24, 20, 16), np.int16)  # half as large voxels, the same box
    finer = RAS.copy()
    finer[:3, :3] /= 2
    finer[:3, 3] += -RAS[:3, :3] @ [0.25, 0.25, 0.25]
    fine = np.kron(blocks(), np.ones((2, 2, 2), int))
    networks[fine == 3], networks[fine == 7] = 7, 2
    networks[(fine == 8) & (np.arange(24)[:, None, None] > 8)] = 4  # 3 of 10 planes: most of it lies in none
    networks[(fine == 40) & (np.arange(24)[:, None, None] > 15)] = 5
    networks[(fine == 40) & (np.arange(24)[:, None, None] <= 15)] = 6
    nibabel.Nifti1Image(networks, finer).to_filename(tmp_path / "yeo.nii.gz")
    options = AtlasOptions(image=save(tmp_path), network_image=tmp_path / "yeo.nii.gz")
    assert read_atlas(options).networks == ("Default", "Somatomotor", "", "Limbic")


def placed(atlas: Atlas, mask: np.ndarray, affine: np.ndarray, space: str = "", **more: object):  # type: ignore[no-untyped-def]
    return place_atlas(atlas, mask, affine, space, AtlasOptions(image=Path("x"), **more), "sub-1")


def test_onto_a_coarser_oblique_grid(tmp_path: Path) -> None:
    atlas = read_atlas(AtlasOptions(image=save(tmp_path)))
    angle = 0.1
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 1.5], [0, 2.5, 0], [2.0, 0, 0]])
    affine[:3, 3] = [-23, -8, -12]
    mask = np.ones((16, 16, 20), bool)
    found = placed(atlas, mask, affine)
    index = np.argwhere(mask)
    points = index @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(atlas.image.affine)
    seen = set()
    for (d, h, w), point in list(zip(index, points, strict=True))[::37]:
        k, j, i = np.rint((inverse @ [*point, 1])[:3]).astype(int)
        inside = 0 <= k < 8 and 0 <= j < 10 and 0 <= i < 12
        label = blocks()[i, j, k] if inside else 0
        seen.add(int(label))
        assert found.labels[d, h, w] == {0: 0, 3: 1, 7: 2, 8: 3, 40: 4}[int(label)]
    assert seen == {0, 3, 7, 8, 40}


def test_declared_spaces_are_compared(tmp_path: Path) -> None:
    path = save(tmp_path, name="tpl-MNI152NLin6Asym_atlas-X_dseg.nii.gz")
    atlas = read_atlas(AtlasOptions(image=path))
    mask = np.ones(atlas.image.grid, bool)
    with pytest.raises(MismatchError, match=r"scan is in MNI152NLin2009cAsym and the atlas .* MNI152NLin6Asym"):
        placed(atlas, mask, atlas.image.affine, "MNI152NLin2009cAsym")
    assert placed(atlas, mask, atlas.image.affine, "MNI152NLin2009cAsym", trust_space=True).missing == ()
    assert placed(atlas, mask, atlas.image.affine, "MNI152NLin6Asym").missing == ()
    assert placed(atlas, mask, atlas.image.affine, "").coverage.tolist() == [1, 1, 1, 1]


def test_no_overlap_is_another_space(tmp_path: Path) -> None:
    atlas = read_atlas(AtlasOptions(image=save(tmp_path)))
    away = atlas.image.affine.copy()
    away[:3, 3] += 100
    with pytest.raises(MismatchError, match="0% of the atlas"):
        placed(atlas, np.ones(atlas.image.grid, bool), away)


def test_regions_outside_are_listed(tmp_path: Path) -> None:
    atlas = read_atlas(AtlasOptions(image=save(tmp_path), table=table(tmp_path, SCHAEFER)))
    mask = np.ones(atlas.image.grid, bool)
    mask[atlas.image.data == 8] = False
    with pytest.raises(MismatchError, match=r"1 of 4 regions .*\(Thalamus\); at most 10% may"):
        placed(atlas, mask, atlas.image.affine)
    with pytest.raises(MismatchError, match="allow_missing makes them zeros"):
        placed(atlas, mask, atlas.image.affine, most_missing=0.5)
    found = placed(atlas, mask, atlas.image.affine, most_missing=0.5, allow_missing=True)
    assert found.missing == (2,)
    assert found.coverage.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\tb\n1\t2\n", "no column of names"),
        ("name\nx\ny\n", "2 rows and no column of indices .* 4 regions"),
        ("index\tname\n3\ta\n7\tb\n8\tc\n", r"1 of 4 labels of the image are not in the table \(\[40\]"),
        ("index\tname\nx\ta\n7\tb\n8\tc\n", "no number everywhere"),
        ("index\tname\n3\ta\n7\ta\n8\tc\n40\td\n", r"same name \(a\)"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(IngestError, match=words):
        read_atlas(AtlasOptions(image=save(tmp_path), table=table(tmp_path, text)))


def test_bad_images(tmp_path: Path) -> None:
    with pytest.raises(IngestError, match="no such file"):
        read_atlas(AtlasOptions(image=tmp_path / "none.nii.gz"))
    with pytest.raises(IngestError, match="no labels"):
        read_atlas(AtlasOptions(image=save(tmp_path, blocks().astype(np.float32) + 0.4)))
    with pytest.raises(IngestError, match="has 1 regions"):
        read_atlas(AtlasOptions(image=save(tmp_path, (blocks() == 3).astype(np.int16))))
    with pytest.raises(IngestError, match="no column nets"):
        read_atlas(AtlasOptions(image=save(tmp_path), table=table(tmp_path, SCHAEFER), network_column="nets"))


@pytest.mark.data
def test_names_of_a_published_atlas() -> None:
    import csv

    path = require_data("connectome", "funcLabels_ctx_schaefer_100.csv")
    names = [row[0] for row in csv.reader(path.open())]
    found = [network_of_name(name) for name in names]
    assert {n for n in found if n} <= set(YEO7)


def test_a_probabilistic_atlas(tmp_path: Path) -> None:
    weights = np.stack([(blocks() == n) * 0.5 for n in (3, 7, 8, 40)], -1).astype(np.float32)
    weights[..., 1][blocks() == 3] = 0.25
    path = save(tmp_path, weights, "probabilities.nii.gz")
    text = "component\tindex\tname\n" + "".join(
        f"x\t{n + 1}\t7Networks_LH_{name}_1\n" for n, name in enumerate(["Vis", "Cont", "Limbic", "Default"])
    )
    atlas = read_atlas(AtlasOptions(image=path, table=table(tmp_path, text)))
    assert atlas.probabilistic
    assert atlas.labels == (0, 1, 2, 3)
    assert atlas.networks == ("Visual", "Frontoparietal", "Limbic", "Default")
    mask = np.ones(atlas.image.grid, bool)
    found = placed(atlas, mask, atlas.image.affine)
    assert np.array_equal(found.labels, weights.transpose(2, 1, 0, 3))
    mask[blocks().transpose(2, 1, 0) == 40] = False
    with pytest.raises(MismatchError, match=r"1 of 4 regions .*\(7Networks_LH_Default_1\)"):
        placed(atlas, mask, atlas.image.affine)
    with pytest.raises(IngestError, match="negative weights"):
        read_atlas(AtlasOptions(image=save(tmp_path, -weights, "negative.nii.gz")))
