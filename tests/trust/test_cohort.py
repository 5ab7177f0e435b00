"""The full profile on pictures whose evidence is planted: the oracle wins, chance loses, nothing is a silent hit."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from medxai.cli import app
from medxai.errors import ExplainError, TrustError
from medxai.trust.cohort.leaderboard import make_leaderboard
from medxai.trust.cohort.measures import FAITH, PLACE
from medxai.trust.cohort.page import make_page
from medxai.trust.cohort.plan import Plan
from medxai.trust.cohort.run import Cohort, run_cohort
from medxai.trust.cohort.table import read_table
from medxai.trust.cohort.write import write_leaderboard
from medxai.trust.controls import NAMES as CONTROLS
from tests.trust.planted import SIZE, Spot, SpotBundle, pictures

#: Blurring keeps the brightness that the network reads, so it removes nothing here.
PLAN = Plan(methods=("gradcam", "layercam", "saliency", "eigencam", "occlusion"), masking=("mean", "zero"))


def silent(_what: str, _step: int, _steps: int) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, Path]:
    """Sixteen pictures of eight patients, measured."""
    folder = tmp_path_factory.mktemp("cohort")
    rows = pictures(folder / "data", 16)
    return run_cohort(SpotBundle(), Spot().eval(), rows, PLAN, folder / "out", silent), folder


def test_the_oracle_wins_and_chance_loses(planted: tuple[Cohort, Path]) -> None:
    cohort, _ = planted
    assert len(cohort.results) == 16
    assert not cohort.skipped
    board = make_leaderboard(cohort.results, PLAN, "gradcam", cohort.skipped)
    by_name = {line.name: line for line in board.lines}
    oracle = by_name["gradcam"]
    assert oracle.measures["mass_lift"].value > 8
    assert oracle.measures["pointing_game"].value == 1
    assert oracle.measures[PLACE].value > 0.9
    assert oracle.measures[FAITH].value > 0.5
    assert oracle.beats_controls(FAITH)
    assert oracle.beats_controls(PLACE)
    assert by_name["random"].measures["mass_lift"].value == pytest.approx(1, abs=0.15)
    assert by_name["random"].measures[PLACE].value < 0.2
    assert abs(by_name["random"].measures[FAITH].value) < 0.25
    assert by_name["random"].relation is None
    assert board.winner(PLACE) in PLAN.methods
    assert oracle.measures["stability"].value > 0.9
    assert {case.patient for case in cohort.results}.isdisjoint({f"p{i}" for i in range(8)})  # pseudonyms


def test_the_same_again_is_equal(planted: tuple[Cohort, Path], tmp_path: Path) -> None:
    cohort, folder = planted
    again = run_cohort(SpotBundle(), Spot().eval(), pictures(tmp_path, 16)[:3], PLAN, tmp_path / "out", silent)
    before = sorted((folder / "out" / "cases" / "spot").glob("*.json"))
    for path in (tmp_path / "out" / "cases" / "spot").glob("*.json"):
        assert path.read_bytes() == next(p for p in before if p.name == path.name).read_bytes()
    assert repr(again.results) == repr(cohort.results[:3])


class _Counted(Spot):
    seen = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _Counted.seen += len(x)
        return super().forward(x)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    rows = pictures(tmp_path / "data", 4)
    network = _Counted().eval()
    plan = replace(PLAN, methods=("gradcam",))
    first = run_cohort(SpotBundle(), network, rows[:2], plan, tmp_path, silent)
    _Counted.seen = 0
    whole = run_cohort(SpotBundle(), network, rows, plan, tmp_path, silent)
    assert whole.taken == 2
    assert repr(whole.results[:2]) == repr(first.results)
    cost = _Counted.seen
    _Counted.seen = 0
    run_cohort(SpotBundle(), network, rows, plan, tmp_path, silent)
    assert _Counted.seen == 0
    damaged = sorted((tmp_path / "cases" / "spot").glob("*.json"))[0]
    damaged.write_text("{")
    assert run_cohort(SpotBundle(), network, rows, plan, tmp_path, silent).taken == 3
    assert _Counted.seen == cost / 2
    other = run_cohort(SpotBundle(), network, rows, replace(plan, steps=4), tmp_path, silent)
    assert other.taken == 0
    assert run_cohort(SpotBundle(sha256="b" * 64), network, rows, plan, tmp_path, silent).taken == 0


def test_further_methods_are_measured_alone(tmp_path: Path) -> None:
    """Rows that are there stay as they are, whatever else is asked; options and limits make a row anew."""
    rows = pictures(tmp_path / "data", 2)
    network = _Counted().eval()
    at_once = run_cohort(SpotBundle(), network, rows, PLAN, tmp_path / "at_once", silent)
    folder = tmp_path / "in_turn"
    run_cohort(SpotBundle(), network, rows, PLAN.only(["eigencam", "occlusion"]), folder, silent)
    in_turn = run_cohort(SpotBundle(), network, rows, PLAN, folder, silent)
    assert in_turn.taken == 0
    assert repr(in_turn.results) == repr(at_once.results)
    _Counted.seen = 0
    fewer = run_cohort(SpotBundle(), network, rows, PLAN.only(["saliency"]), folder, silent)
    assert (fewer.taken, _Counted.seen) == (2, 0)
    assert [list(case.rows) for case in fewer.results] == [["saliency", *CONTROLS]] * 2
    assert run_cohort(SpotBundle(), network, rows, replace(PLAN, forwards=200), folder, silent).taken == 2
    dear = replace(PLAN, methods=("gradcam", "rise"), options={"rise": {"samples": 40}}, forwards=30)
    refused = run_cohort(SpotBundle(), network, rows, dear, folder, silent)
    assert "more than the limit of 30" in refused.results[0].rows["rise"].reasons[PLACE]
    assert run_cohort(SpotBundle(), network, rows, dear, folder, silent).taken == 2
    allowed = run_cohort(SpotBundle(), network, rows, replace(dear, forwards=300), folder, silent)
    assert allowed.taken == 0
    assert not math.isnan(allowed.results[0].rows["rise"].values["mass_lift"])
    finer = replace(PLAN, options={"occlusion": {"window": 6}})
    again = run_cohort(SpotBundle(), network, rows, finer, folder, silent)
    assert again.taken == 0
    before, after = in_turn.results[0].rows, again.results[0].rows
    assert repr(before["gradcam"]) == repr(after["gradcam"])
    assert repr(before["occlusion"]) != repr(after["occlusion"])


def test_what_cannot_be_measured_is_counted(tmp_path: Path) -> None:
    rows = pictures(tmp_path / "data", 6)
    Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(rows[0].mask)  # type: ignore[arg-type]
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(rows[1].mask)  # type: ignore[arg-type]
    Path(rows[2].image).write_text("no picture")
    rows[3] = replace(rows[3], mask=None)
    rows[4] = replace(rows[4], image=tmp_path / "nowhere.png")
    plan = replace(PLAN, methods=("gradcam", "chefer", "rise"))
    found = run_cohort(SpotBundle(), Spot().eval(), rows, plan, tmp_path / "out", silent)
    assert len(found.results) == 2
    assert sum(found.skipped.values()) == 4
    assert found.skipped["the table names no mask"] == 1
    assert found.skipped["the image of the table is not there"] == 1
    assert any("cannot be aligned" in reason for reason in found.skipped)
    board = make_leaderboard(found.results, plan, "gradcam", found.skipped)
    line = next(line for line in board.lines if line.name == "gradcam")
    assert (line.measures[PLACE].n, line.measures[FAITH].n) == (1, 2)
    assert line.undefined[PLACE] == {"the mask is empty": 1}
    assert line.undefined["pointing_game_10mm"] == {"the image has no millimetres": 2}
    assert set(board.columns.failed) == {"chefer", "rise"}
    assert "more than the limit of 300" in board.columns.failed["rise"]
    page = make_page(board, "Title", {})
    assert "the table names no mask" in page
    assert "the mask is empty (1)" in page
    assert not board.choices[0].method
    assert "cannot be halved" in board.choices[0].reason


def test_an_empty_map_is_no_zero(tmp_path: Path) -> None:
    """Nothing speaks for the dark class: no figure at all, and the reason."""
    rows = [replace(row, label="dark") for row in pictures(tmp_path / "data", 2)]
    found = run_cohort(SpotBundle(), Spot().eval(), rows, replace(PLAN, methods=("gradcam",)), tmp_path, silent)
    for case in found.results:
        assert (case.explained, case.decided, case.correct) == ("dark", "bright", False)
        row = case.rows["gradcam"]
        assert all(math.isnan(value) for value in row.values.values())
        assert row.reasons[PLACE] == "the map has no positive evidence"
        assert row.reasons[FAITH] == "the map is zero everywhere"
        assert not math.isnan(case.rows["random"].values[FAITH])
    stored = json.loads(next((tmp_path / "cases" / "spot").glob("*.json")).read_text())
    assert stored["rows"]["gradcam"]["values"][FAITH] is None
    decided = replace(PLAN, methods=("gradcam",), target="decision")
    found = run_cohort(SpotBundle(), Spot().eval(), rows, decided, tmp_path, silent)
    assert {case.explained for case in found.results} == {"bright"}


def test_one_logit_and_one_class(tmp_path: Path) -> None:
    rows = pictures(tmp_path / "data", 16)
    plan = replace(PLAN, methods=("gradcam", "layercam"))
    found = run_cohort(SpotBundle(logits=1), Spot(1).eval(), rows, plan, tmp_path, silent)
    board = make_leaderboard(found.results, plan, "gradcam")
    assert [choice.label for choice in board.choices] == [""]
    assert board.choices[0].method in plan.methods
    assert all(math.isnan(case.rows["gradcam"].values["specificity"]) for case in found.results)  # the other is empty
    assert min(case.rows["gradcam"].values[PLACE] for case in found.results) > 0.8


class _Broken(Spot):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * torch.nan


def test_a_network_that_gives_nan_is_said(tmp_path: Path) -> None:
    rows = pictures(tmp_path / "data", 2)
    found = run_cohort(SpotBundle(), _Broken().eval(), rows, PLAN, tmp_path, silent)
    assert not found.results
    assert found.skipped == {"the network gives NaN or infinite logits for this image": 2}


def test_plans_that_make_no_sense() -> None:
    with pytest.raises(TrustError, match="two ways"):
        Plan(("gradcam",), masking=("blur", "blur"))
    with pytest.raises(TrustError, match="steps"):
        Plan(("gradcam",), steps=1)
    with pytest.raises(TrustError, match="prepared"):
        Plan(("gradcam",), prepared="yes")  # type: ignore[arg-type]
    with pytest.raises(TrustError, match="target"):
        Plan(("gradcam",), target="both")  # type: ignore[arg-type]
    with pytest.raises(ExplainError, match="unknown explanation method"):
        Plan(("gradcamm",))
    with pytest.raises(ExplainError, match="unknown masking operator"):
        Plan(("gradcam",), masking=("blur", "grey"))


def test_tables(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,mask,label,duplicate_group\na.png,b.png,bright,7\nc.png,,dark,\n")
    rows = read_table(table, tmp_path)
    assert [(row.label, row.patient) for row in rows] == [("bright", "7"), ("dark", "c.png")]
    assert (rows[0].mask, rows[1].mask) == (tmp_path / "b.png", None)
    table.write_text("path,label\na.png,bright\n")
    with pytest.raises(TrustError, match="mask is not there"):
        read_table(table, tmp_path)
    with pytest.raises(TrustError, match="cannot be read"):
        read_table(tmp_path / "none.csv", tmp_path)


def test_files(planted: tuple[Cohort, Path], tmp_path: Path) -> None:
    cohort, _ = planted
    board = make_leaderboard(cohort.results, PLAN, "gradcam")
    paths = write_leaderboard(board, tmp_path, "Spots")
    assert [path.name for path in paths] == [
        "leaderboard.json", "cases.csv", "leaderboard.md", "leaderboard.png", "relation.png",
    ]  # fmt: skip
    content = json.loads(paths[0].read_text())
    assert content["cases"] == 16
    assert content["patients"] == 8
    assert content["decided_right"] == {"share": 1.0, "n": 16}
    assert {line["name"] for line in content["methods"] if line["control"]} == set(CONTROLS)
    with paths[1].open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 16 * (len(PLAN.methods) + len(CONTROLS))
    assert "(control)" in paths[2].read_text()
    for path in paths[3:]:
        with Image.open(path) as image:
            assert image.width > 800
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in write_leaderboard(board, tmp_path, "Spots")] == first


def test_command(tmp_path: Path) -> None:
    from medxai.predict.bundle import AllowList
    from tests.predict.build import tiny_bundle
    from tests.studies import nifti_study

    path, _ = tiny_bundle(tmp_path)
    allow = tmp_path / "allow.json"
    allow.write_text(json.dumps(AllowList.of(path).hashes))
    data = tmp_path / "data"
    lines = ["path,mask,label,patient"]
    for number in range(3):
        nifti_study(data / f"{number}.nii.gz", seed=number)
        _mask_like(data / f"{number}.nii.gz", data / f"{number}_mask.nii.gz")
        lines.append(f"{number}.nii.gz,{number}_mask.nii.gz,lesion,p{number}")
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    given = ["trust", "validate", "-b", str(path), "-d", str(data), "-o", str(tmp_path / "out"), "--allow", str(allow),
             "-m", "gradcam,layercam", "--steps", "3"]  # fmt: skip
    done = CliRunner().invoke(app, [*given, "--limit", "2"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "layercam" in done.output
    whole = CliRunner().invoke(app, given)
    assert whole.exit_code == 0, (whole.output, whole.exception)
    assert "of 3 cases had been measured before" in whole.output
    content = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    assert content["cases"] == 3
    row = next(line for line in content["methods"] if line["name"] == "random")
    assert row["measures"]["pointing_game_10mm"]["n"] == 3  # it has millimetres
    for wrong, said in (
        (["-b", str(path), "-b", str(path)], "3 bundles"),
        (["--masking", "blur"], "two ways"),
        (["--labels", str(tmp_path / "none.csv")], "cannot be read"),
    ):
        failed = CliRunner().invoke(app, [*given, *wrong])
        assert isinstance(failed.exception, TrustError)
        assert said in str(failed.exception)


def _mask_like(image: Path, mask: Path) -> None:
    """All of a volume but its border."""
    import nibabel

    found = nibabel.load(image)
    values = np.zeros(found.shape, np.float32)
    values[tuple(slice(1, s - 1) for s in found.shape)] = 1
    nibabel.save(nibabel.Nifti1Image(values, found.affine), mask)
