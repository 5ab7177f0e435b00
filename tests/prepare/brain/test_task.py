"""Block experiments: labels by hand, planted conditions, label shuffles, and four real volumes that are too few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medxai.errors import IngestError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.prepare.brain.bold import Bold, bold_of_studies
from medxai.prepare.brain.features import brain_mask
from medxai.prepare.brain.task import Block, decode_task, design, label_volumes, read_events
from tests.tools import require_data

GRID = (4, 6, 5)


def blocks() -> list[Block]:
    return [Block(("face", "house")[n % 2], 12.0 + 30 * n, 28.0 + 30 * n) for n in range(8)]


def planted(strength: float, seed: int = 0) -> Bold:
    """Faces raise the first slice, houses the second, through the design's own response."""
    generator = np.random.default_rng(seed)
    matrix, columns = design(blocks(), 130, 2.0)
    data = 1000 + generator.normal(size=(*GRID, 130))
    data[0] += strength * matrix[:, columns.index("face")]
    data[1] += strength * matrix[:, columns.index("house")]
    return Bold(data.astype(np.float32), np.eye(4), 2.0, "x")


def test_events_become_blocks(tmp_path: Path) -> None:
    path = tmp_path / "events.tsv"
    path.write_text("onset\tduration\ttrial_type\n1.0\t0.9\ta\n2.0\t0.9\ta\n3.0\t1\tb\n20\t1\tb\n0\t.5\tb\n")
    found = read_events(path)
    assert found == [Block("b", 0, 0.5), Block("a", 1.0, 2.9), Block("b", 3.0, 4.0), Block("b", 20, 21)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("onset\tduration\n1\t2\n", "no trial_type"),
        ("onset\tduration\ttrial_type\nx\t1\ta\n", "no number"),
        ("", "no onset"),
    ],
)
def test_bad_events(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "events.tsv"
    path.write_text(text)
    with pytest.raises(IngestError, match=words):
        read_events(path)


def test_labels_lag_by_five_seconds() -> None:
    labels, numbers = label_volumes([Block("a", 4, 8), Block("b", 10, 12)], 10, 2.0)
    # Middles of the volumes less five seconds: -4, -2, 0, 2, 4, 6, 8, 10, 12, 14
    assert labels == ("", "", "", "", "a", "a", "", "b", "", "")
    assert numbers == (-1, -1, -1, -1, 0, 0, -1, 1, -1, -1)
    assert label_volumes([Block("a", 4, 8), Block("b", 10, 12)], 7, 2.0, dropped=3)[0] == labels[3:]


def test_planted_conditions_are_found() -> None:
    found = decode_task(planted(3.0), blocks(), np.ones(GRID, bool))
    assert found.refused == {}
    assert found.accuracy is not None
    assert found.accuracy > 0.9
    assert found.chance == pytest.approx(0.5, abs=0.05)
    assert found.maps["face"][0].min() > 5
    assert abs(found.maps["face"][1:].mean()) < 0.7
    assert found.maps["house"][1].min() > 5


def test_noise_is_at_chance() -> None:
    scores = [decode_task(planted(0.0, seed), blocks(), np.ones(GRID, bool)).accuracy for seed in range(6)]
    assert abs(np.mean([s for s in scores if s is not None]) - 0.5) < 0.12


def test_a_short_scan_says_what_it_lacks() -> None:
    bold = planted(3.0)
    short = Bold(bold.data[..., :25], bold.affine, 2.0, "x")
    found = decode_task(short, blocks(), np.ones(GRID, bool))
    assert found.accuracy is None
    assert "25 volumes (50 s) show 2 blocks of 8" in found.refused["decoder"]
    assert "face" in found.maps


@pytest.mark.data
def test_four_volumes_of_a_real_experiment(tmp_path: Path) -> None:
    folder = require_data("fmri_dicom")
    bold = bold_of_studies([read_study(source) for source in discover([folder], tmp_path).sources])
    found = read_events(folder / "events.tsv")
    assert len(found) == 12
    result = decode_task(bold, found, brain_mask(bold))
    assert result.design.shape[0] == 4
    assert set(result.labels) == {""}  # the first block begins after twelve seconds
    assert result.accuracy is None
    assert result.maps == {}
    assert "4 volumes (8 s) show 0 blocks of 12" in result.refused["decoder"]
    assert "show 0 of 6 conditions" in result.refused["maps"]
