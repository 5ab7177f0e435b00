"""The shortcut experiment: where the marker is, who carries it, and what the page says of known rows."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxai.learn.breast_us import LABELS, Cases
from medxai.learn.shortcut import FOLDS, MARKED, MARKERS, PLAIN, SEEDS, held_out, marker_mask, with_marker
from medxai.learn.shortcut_evidence import NONE, OTHER, TRAINED, MeanMap, Row, _asked
from medxai.learn.shortcut_page import PAGE, PICTURE, TABLE, page_of, picture_of, separation, write_evidence
from medxai.study import TrustReport, Volume, image_affine
from medxai.trust.body import graphics
from medxai.trust.gate.figures import NAMES


def still(rows: int = 60, columns: int = 80) -> Volume:
    pixels = np.random.default_rng(0).uniform(5, 200, (1, rows, columns)).astype(np.float32)
    return Volume(pixels, "HW", image_affine(), "US")


@pytest.mark.parametrize("kind", list(MARKERS))
def test_the_marker_changes_its_place_alone(kind: str) -> None:
    volume = still()
    made, where = with_marker(volume, kind), marker_mask(volume.shape)
    assert 0.01 < where.mean() < 0.02
    assert not where[:, 40:].any()
    assert (made.pixels[:, ~where] == volume.pixels[:, ~where]).all()
    np.testing.assert_allclose(made.pixels[:, where], MARKERS[kind] * volume.pixels.max())
    assert graphics(made.pixels)[where].all() == (kind == "bright")  # the gate's own rule finds one of them


def test_who_carries_it() -> None:
    volume, changed = still(), {}
    for label in range(len(LABELS)):
        for where, marker in ((NONE, ""), (TRAINED, "grey"), (OTHER, "grey")):
            changed[label, where] = _asked(volume, label, where, marker) is not volume
    assert [changed[label, TRAINED] for label in range(3)] == [label == MARKED for label in range(3)]
    assert [changed[label, OTHER] for label in range(3)] == [label != MARKED for label in range(3)]
    assert not any(changed[label, NONE] for label in range(3))


def test_held_out_images_share_no_group_with_the_others() -> None:
    labels = tuple(i % 3 for i in range(90))
    cases = Cases(tuple(f"{i}.png" for i in range(90)), labels, tuple(str(i // 2) for i in range(90)))
    assert set(SEEDS) <= set(range(FOLDS))
    parts = [set(held_out(cases, seed).tolist()) for seed in range(FOLDS)]
    assert not parts[0] & parts[1]
    for part in parts:
        inside, outside = ({cases.groups[i] for i in range(90) if (i in part) == side} for side in (True, False))
        assert not inside & outside


def row(
    network: str, number: int, *, where: str = NONE, marker: str = "", truth: int = MARKED, hit: bool = True
) -> Row:
    """An answer that is right or wrong for sure."""
    index = truth if hit else (truth + 1) % 3
    return Row(network, 0, marker, where, str(number), truth, tuple(float(i == index) for i in range(3)))


def rows() -> list[Row]:
    """A plain network that is always right, and one that needs the marker."""
    found = []
    for number in range(12):
        truth = number % 3
        found += [row(PLAIN, number, truth=truth), row("bright", number, truth=truth, hit=truth != MARKED)]
        found.append(row("bright", number, where=TRAINED, marker="bright", truth=truth))
        figures = dict.fromkeys(NAMES, 1.0) | {"outside": 0.1}
        for network, verdict, outside in ((PLAIN, "supported", 0.1), ("bright", "withheld", 0.7)):
            report = TrustReport(verdict, ("a reason",), figures | {"outside": outside + number / 100}, 0.5)  # type: ignore[arg-type]
            found.append(
                replace(row(network, number), on_marker=0.5 if network == "bright" else 0.01, points_at_marker=1.0,
                        on_lesion=0.2, share_marker=0.0144, share_lesion=0.1, trust=report)
            )  # fmt: skip
    return found


def test_the_page_holds_the_figures_of_known_rows(tmp_path: Path) -> None:
    text = page_of(rows())
    assert "| bright | bright on malignant | 1.000 (1.000-1.000) | 1.000 (1.000-1.000) | 12 |" in text
    assert "| bright | none | 0.667 (" in text
    assert "| 0.000 (0.000-0.000) | 12 |" in text
    assert "| bright | 0.500 (0.500-0.500) | 34.722 (34.722-34.722) | 1.000" in text
    assert "| bright | 0.000 (0.000-0.000) | 0.000 (0.000-0.000) | 1.000 (1.000-1.000) | 12 |" in text
    assert "| outside | 0.155 | 0.755 (1.00) |" in text
    assert "| stability | 1 | 1 (0.50) |" in text
    assert "| consensus | none | none |" in text
    maps = [MeanMap(kind, 0, np.full((48, 48), 1 / 48**2, np.float32), 12) for kind in (PLAIN, "bright")]
    write_evidence(rows(), maps, tmp_path)
    assert (tmp_path / PAGE).read_text() == text
    with (tmp_path / TABLE).open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(rows())
    assert {r["verdict"] for r in table} == {"", "supported", "withheld"}
    assert "png" not in (tmp_path / TABLE).read_text()  # no paths of images
    assert Image.open(tmp_path / PICTURE).width > 600
    assert picture_of(rows(), maps) == (tmp_path / PICTURE).read_bytes()
    assert Image.open(io.BytesIO(picture_of(rows(), maps))).format == "PNG"


def test_separation_knows_the_direction() -> None:
    good, bad = [row(PLAIN, i) for i in range(4)], [row("bright", i) for i in range(4)]
    value = {id(r): float(i) for i, r in enumerate([*good, *bad])}
    assert separation(bad, good, lambda r: value[id(r)], lower=True) == 1
    assert separation(bad, good, lambda r: value[id(r)], lower=False) == 0
