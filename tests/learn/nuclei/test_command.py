"""The comparison as a command: pieces done once, no mask for the arms with points, page, figures, bundle and flow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows.nuclei import main, nuclei_flow
from medxai.cli import app
from medxai.errors import BundleError, SettingsError
from medxai.learn.nuclei.comparison import fields_of, pieces, relevant, result, work
from medxai.learn.nuclei.page import page
from medxai.learn.nuclei.report import collect
from medxai.learn.nuclei.settings import ARMS, load_nuclei_settings
from medxai.predict.bundle import AllowList
from medxai.predict.nuclei import load_nuclei
from sample_cases.synthetic_nuclei import fields, write

SHIPPED = Path("configs/nuclei.yaml")
EVIDENCE = Path("docs/evidence/nuclei.json")


def config(folder: Path, **changes: object) -> Path:
    content: dict[str, object] = {
        "output": str(folder / "work"),
        "data": {"fields": 3, "tests": 2, "size": 64},
        "network": {"width": 0.125, "radius": 8.0, "tile": 64},
        "selection": {"warmup": 1, "every": 1, "guard": 0.0},
        "training": {"epochs": 2, "batch_size": 2, "crop": 64, "rate": 0.002},
        "seeds": [0],
    }
    file = folder / "nuclei.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    for changes, word in (
        ({"data": {"size": 100}}, "size"),
        ({"arms": ["everything"]}, "arms"),
        ({"selection": {"warmup": 2}}, "warm-up"),
        ({"training": {"epochs": 2, "crop": 128}}, "larger than the fields"),
        ({"data": {"train": "here"}}, "give both or none"),
    ):
        with pytest.raises(SettingsError, match=word):
            load_nuclei_settings(config(tmp_path, **changes))
    with pytest.raises(SettingsError, match="nothing is trained yet"):
        collect(load_nuclei_settings(config(tmp_path)))


def test_arms_with_points_never_open_a_mask(tmp_path: Path) -> None:
    """Masks of the training fields are taken away; only the upper bound misses them."""
    settings = load_nuclei_settings(config(tmp_path, arms=["fixed", "full", "supervised"]))
    folders = fields_of(settings)
    shutil.rmtree(folders.train / "masks")
    assert folders.strong is not None
    shutil.rmtree(folders.strong / "masks")
    with pytest.raises(SettingsError, match="holds no mask"):
        work(settings, lambda line: None)
    assert result(settings, "fixed", 0) is not None
    assert result(settings, "full", 0) is not None
    assert result(settings, "supervised", 0) is None


def test_fields_of_ones_own(tmp_path: Path) -> None:
    train, test = tmp_path / "train", tmp_path / "test"
    write(fields(2, 1, 96, radius=8.0), train)
    write(fields(2, 2, 96, radius=8.0), test)
    shutil.rmtree(train / "masks")
    (test / "points.csv").unlink()
    settings = load_nuclei_settings(
        config(tmp_path, arms=["kept", "fixed_jitter"], data={"train": str(train), "test": str(test)})
    )
    assert pieces(settings) == [("kept", 0)]
    assert relevant(settings)["data"]["train"] == "train"
    work(settings, lambda line: None)
    found = result(settings, "kept", 0)
    assert found is not None
    assert len(found["scores"]["aji"]) == 2


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """Every arm, the page, the pictures and the bundle; a second call and the flow do nothing again."""
    file, docs, bundles = config(tmp_path), tmp_path / "docs", tmp_path / "bundles"
    command = ["train", "nuclei", "-c", str(file), "--report", str(docs), "--out", str(bundles)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert first.output.count(": done") == len(ARMS) + 1  # and the shared warm-up
    found = json.loads((docs / "evidence" / "nuclei.json").read_text())
    assert set(found["arms"]) == set(ARMS)
    assert found["fields"]["test"] == 2
    row = found["arms"]["full"]["aji"]
    assert row["mean"] == pytest.approx(row["interval"]["value"], abs=1e-4)  # rounded
    text = (docs / "nuclei.md").read_text()
    assert f"{row['mean']:.3f}" in text
    assert page(found) == text
    for name in ("nuclei", "nuclei_labels", "nuclei_training"):
        with Image.open(docs / "images" / f"{name}.png") as picture:
            assert np.asarray(picture.convert("RGB")).std() > 10
    card = (bundles / "nuclei" / "docs" / "README.md").read_text()
    assert "Never tested against annotated real nuclei" in card
    network = load_nuclei(bundles / "nuclei", AllowList.read(bundles / "allow.json"))
    assert (network.radius, network.detects) == (8.0, True)
    with pytest.raises(BundleError, match="allow-list"):
        load_nuclei(bundles / "nuclei", AllowList({}))
    second = CliRunner().invoke(app, command[:4])
    assert second.exit_code == 0
    assert "begins" not in second.output
    assert CliRunner().invoke(app, [*command[:4], "--list"]).output.count("done ") == len(ARMS)
    assert nuclei_flow(load_nuclei_settings(file)) == len(ARMS)
    with pytest.raises(SettingsError, match="made with other settings"):
        result(load_nuclei_settings(config(tmp_path, network={"width": 0.25})), "full", 0)
    assert main([str(tmp_path / "absent.yaml")]) == 2


@pytest.mark.skipif(not EVIDENCE.exists(), reason="not trained")
def test_the_stored_figures_are_those_of_the_shipped_settings() -> None:
    """What the page must show, on the settings that the file has."""
    found, settings = json.loads(EVIDENCE.read_text()), load_nuclei_settings(SHIPPED)
    assert found["settings"] == settings.model_dump(mode="json", exclude={"output"})
    assert page(found) == Path("docs/nuclei.md").read_text()
    unfinished = [arm for arm in settings.arms if found["arms"].get(arm, {"seeds": 0})["seeds"] < len(settings.seeds)]
    assert all(f"of {arm}" in page(found) for arm in unfinished)  # said in so many words
