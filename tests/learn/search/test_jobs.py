"""A whole small comparison by command: pieces done once, killed and resumed, by the command line and by the flow."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from medxai.cli import app
from medxai.errors import SettingsError
from medxai.learn.search.jobs import Job, folder, jobs, result
from medxai.learn.search.settings import load_search

SMALL = {
    "data": {"train": 12, "test": 12, "window": [8, 32, 64], "spacing_mm": [10, 10, 5], "search_window": [8, 32, 32]},
    "search": {"epochs": 4, "batch_size": 3, "warmup": 1},
    "ranking": {"candidates": 3, "cases": 6, "seeds": 1},
    "training": {"epochs": 2, "batch_size": 6},
    "arms": ["searched", "random", "shared_random", "published_strides", "small_densenet"],
    "seeds": [0],
}


def config(path: Path, out: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(SMALL | {"output": str(out)} | changes))
    return path


def test_the_shipped_configuration_lists_every_piece_after_what_it_needs() -> None:
    settings = load_search(Path("configs/search_chest_ct.yaml"), {"cost": {"front": [0.5]}})
    found = jobs(settings)
    assert len({job.name for job in found}) == len(found)
    for number, job in enumerate(found):
        assert job.needs is None or job.needs in found[:number]
    assert len(settings.seeds) >= 3
    assert Job("search", "front_0.5", settings.seeds[0]) in found


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"arms": ["resnet"]}, "arms"),
        ({"seeds": []}, "seeds"),
        ({"data": {"train": 1}}, "data.train"),
        ({"sarch": 1}, "sarch"),
        ({"search": {"last_temperature": 0}}, "search.last_temperature"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, change: dict[str, object], field: str) -> None:
    with pytest.raises(SettingsError, match=field):
        load_search(config(tmp_path / "c.yaml", tmp_path / "out", **change))


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.yaml.*cannot be read"):
        load_search(tmp_path / "none.yaml")


def test_results_of_other_settings_are_not_taken_for_ours(tmp_path: Path) -> None:
    settings = load_search(config(tmp_path / "c.yaml", tmp_path / "out"))
    job = Job("train", "small_densenet", 0)
    folder(settings, job).mkdir(parents=True)
    (folder(settings, job) / "result.json").write_text(json.dumps({"settings": {"data": "others"}}))
    with pytest.raises(SettingsError, match="other settings"):
        result(settings, job)


def _start(path: Path, module: str = "medxai") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", module, "search", "chest_ct", "--config", str(path)]
    if module != "medxai":
        command = [sys.executable, "-m", module, str(path)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_searches_end_the_same_and_the_flow_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle of the search, then the flow; its results are byte for byte those of a run in one go."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    path = config(tmp_path / "whole.yaml", whole)
    assert _start(path).wait() == 0  # with as many threads as the others, on which the last digits depend
    path = config(tmp_path / "killed.yaml", killed, arms=["searched", "random"])
    process = _start(path)
    log = killed / "seed_0" / "search_searched" / "search.csv"
    while not (log.exists() and len(log.read_text().splitlines()) >= 2):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (log.parent / "result.json").exists()
    resumed = _start(path, "flows.search")
    assert resumed.wait() == 0
    for name in ("search_searched/search.csv", "search_searched/weights.npy", "train_searched/model.safetensors"):
        assert (whole / "seed_0" / name).read_bytes() == (killed / "seed_0" / name).read_bytes()
    with (whole / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["arm"] for row in rows] == SMALL["arms"]
    assert all(0 <= float(row["auroc"]) <= 1 for row in rows)
    random, searched = (next(r for r in rows if r["arm"] == arm) for arm in ("random", "searched"))
    assert abs(int(random["parameters"]) / int(searched["parameters"]) - 1) <= 0.05
    assert (killed / "seed_0" / "search_searched" / "search.png").stat().st_size > 10_000
    listed = CliRunner().invoke(app, ["search", "chest_ct", "--config", str(path), "--list"])
    assert "open" not in listed.output
    assert listed.output.count("done") == len(jobs(load_search(path)))
    _check_page(tmp_path / "whole.yaml", tmp_path / "docs", rows)


def _check_page(path: Path, docs: Path, rows: list[dict[str, str]]) -> None:
    """The page of this comparison has its figures, its pictures and the operation of every cell."""
    done = CliRunner().invoke(app, ["validate", "chest_ct", "--config", str(path), "--out", str(docs)])
    assert done.exit_code == 0, done.output
    page = (docs / "chest_ct.md").read_text()
    assert "nan" not in page
    for row in rows:
        assert f"| 1 | {float(row['auroc']):.3f} | {float(row['auroc_mean']):.3f} |" in page
    searched = next(row for row in rows if row["arm"] == "searched")
    card = re.findall(r"^\| \d+ \| \d \| \d+ \| (\w+) \|", page[page.index("## Architecture") :], re.MULTILINE)
    assert card == searched["operations"].split("|")
    for name in re.findall(r"\]\((images/[a-z_]+\.png)\)", page):
        assert np.asarray(Image.open(docs / name).convert("L")).std() > 10
    place = json.loads((docs / "evidence" / "chest_ct_localisation.json").read_text())
    assert {row[1] for row in place["rows"]} == {"that keep depth", "as published"}
