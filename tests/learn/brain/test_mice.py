"""Genotypes of mice: reading, statistics, and a permutation that keeps what edges share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medxai.errors import MedxaiError
from medxai.learn.brain.mice import (
    MouseRecipe,
    edge_statistics,
    linear_accuracy,
    mantel,
    mice,
    permutation_p,
    read_mice,
)
from tests.tools import require_data


def colony(folder: Path, regions: int = 16, per_strain: int = 4) -> Path:
    """Mice of two strains with a block that differs."""
    random = np.random.default_rng(0)
    (folder / "atlas.csv").write_text("ROI,Structure\n" + "".join(f"{n + 1},Area\n" for n in range(regions)))
    rows = ["participant_id,genotype,sex"]
    for number in range(2 * per_strain):
        name, strain = f"sub-{number}", ("A", "B")[number % 2]
        rows.append(f"{name},{strain},male")
        edges = []
        for a in range(2 * regions):
            for b in range(a + 1, 2 * regions):
                counts = random.poisson(20)
                if strain == "B" and a % regions < regions // 4 and regions // 2 <= b % regions < 3 * regions // 4:
                    counts *= 20
                edges.append(f"{a} {b} {counts}.0")
        (folder / f"{name}_ses-1_dti.edgelist").write_text("\n".join(edges) + "\n")
    (folder / "participants.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_hemispheres_are_averaged(tmp_path: Path) -> None:
    subjects, genotypes = read_mice(colony(tmp_path))
    assert genotypes == ["A", "B"] * 4
    fa = subjects[1].fa
    assert fa is not None
    assert fa.shape == (16, 16)
    edges = np.loadtxt(tmp_path / "sub-1_ses-1_dti.edgelist")
    left, right = (edges[(edges[:, 0] == 2 + s) & (edges[:, 1] == 9 + s), 2].item() for s in (0, 16))
    assert fa[2, 9] == fa[9, 2] == pytest.approx((np.log1p(left) + np.log1p(right)) / 2, rel=1e-6)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(MedxaiError, match=r"no participants\.csv"):
        read_mice(tmp_path)
    folder = colony(tmp_path)
    (folder / "sub-0_ses-1_dti.edgelist").write_text("0 99 1.0\n")
    with pytest.raises(MedxaiError, match="sub-0: edges are lines of two regions below 32"):
        read_mice(folder)


def test_every_mouse_is_left_out_once_and_resumed(tmp_path: Path) -> None:
    folder, work, said = colony(tmp_path, 48, 3), tmp_path / "work", []
    recipe = MouseRecipe(channels=8, width=16, epochs=2)
    found = mice(folder, work, said.append, recipe)
    assert found["n"] == 6
    assert found["linear_accuracy"] == 1.0
    genotypes = read_mice(folder)[1]
    assert found["accuracy"] == np.mean([a == b for a, b in zip(found["predicted"], genotypes, strict=True)])
    assert 0 < found["p"] <= 1
    before = len(said)
    assert mice(folder, work, said.append, recipe) == found
    assert len(said) == before


def test_edge_statistics_find_the_block(tmp_path: Path) -> None:
    subjects, genotypes = read_mice(colony(tmp_path))
    labels = np.array([g == "B" for g in genotypes]).astype(int)
    statistic = edge_statistics(np.stack([s.fa for s in subjects if s.fa is not None]), labels)
    block = np.zeros((16, 16), bool)
    block[:4, 8:12] = True
    block |= block.T
    assert statistic[block].min() > np.quantile(statistic[~block], 0.99)
    assert linear_accuracy(subjects, labels) == 1.0


def test_permutation_p() -> None:
    labels = np.repeat(np.arange(4), 8)
    assert permutation_p(labels, labels) == pytest.approx(1 / 2001)
    assert permutation_p(np.zeros(32, int), labels) == 1.0  # one answer for all is right as often in any order


def test_mantel_is_one_for_the_same_and_not_small_for_chance() -> None:
    random = np.random.default_rng(3)

    def symmetric() -> np.ndarray:
        upper = np.triu(random.standard_normal((20, 20)), 1)
        return upper + upper.T

    a = symmetric()
    same = mantel(a, np.exp(a), shuffles=99)
    assert same["spearman"] == pytest.approx(1.0)
    assert same["p"] == pytest.approx(0.01)
    p = [mantel(symmetric(), symmetric(), shuffles=99, seed=n)["p"] for n in range(40)]
    assert 0.3 < np.mean(p) < 0.7


def test_real_mice() -> None:
    subjects, genotypes = read_mice(require_data("connectome_mice"))
    assert len(subjects) == 32
    assert sorted(genotypes.count(name) for name in set(genotypes)) == [8] * 4
    assert all(s.fa is not None and s.fa.shape == (166, 166) for s in subjects)
