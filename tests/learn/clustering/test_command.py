"""The comparison as a command: pieces done once, the page and its figures, tiles without labels, and the flow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows.cluster import cluster_flow
from medxai.cli import app
from medxai.errors import SettingsError
from medxai.learn.clustering.comparison import relevant, result
from medxai.learn.clustering.page import page
from medxai.learn.clustering.report import collect, spread
from medxai.learn.clustering.settings import load_dceac
from sample_cases.synthetic_textures import textures, write

SHIPPED = Path("configs/dceac.yaml")


def config(folder: Path, **changes: object) -> Path:
    content: dict[str, object] = {
        "name": "textures",
        "output": str(folder / "work"),
        "data": {"count": 60, "patients": 10, "size": 32},
        "network": {"widths": [4, 6, 8, 10]},
        "autoencoder": {"epochs": 2, "batch_size": 8},
        "refinement": {"updates": 2, "batch_size": 8},
        "supervised_epochs": 1,
        "seeds": [0, 1],
        "permutations": 20,
    }
    file = folder / "dceac.yaml"
    file.write_text(yaml.safe_dump(content | changes))
    return file


def test_the_shipped_settings_are_what_the_page_speaks_of() -> None:
    settings = load_dceac(SHIPPED)
    assert settings.name == "textures"
    assert settings.refinement.gamma == 0.1
    assert settings.refinement.tolerance == 0.001
    assert len(settings.seeds) == settings.data.folds
    histology = load_dceac(Path("configs/dceac_histology.yaml")).of_folders([Path("a"), Path("b")])
    assert histology.name == "histology"
    assert histology.network.clusters == 2
    assert settings.of_folders([Path("a")]).name == "own"
    assert relevant(histology)["data"]["folders"] == ["a", "b"]
    assert "seeds" not in relevant(settings)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="size"):
        load_dceac(config(tmp_path, data={"size": 100}))
    with pytest.raises(SettingsError, match="arms"):
        load_dceac(config(tmp_path, arms=["everything"]))
    with pytest.raises(SettingsError, match="nothing is trained yet"):
        collect(load_dceac(config(tmp_path)))


def test_spread_leaves_undefined_values_out() -> None:
    assert spread([0.5, None, 0.7]) == {
        "mean": pytest.approx(0.6),
        "sd": pytest.approx(0.1414, abs=1e-4),
        "values": [0.5, None, 0.7],
    }
    assert spread([None])["mean"] is None


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    """Every arm, the page and the picture; a second call and the flow do nothing again."""
    file, docs = config(tmp_path), tmp_path / "docs"
    command = ["train", "dceac", "-c", str(file), "--report", str(docs)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert first.output.count(": done") == 8
    found = json.loads((docs / "evidence" / "dceac.json").read_text())["textures"]
    assert set(found["rows"]) == {
        "attention/refined",
        "attention/kmeans",
        "no_attention/refined",
        "no_attention/kmeans",
        "rgb/kmeans",
        "supervised/network",
    }
    main = found["rows"]["attention/refined"]
    assert main["pooled_accuracy"]["n"] == 24  # two of five folds of 60
    assert main["accuracy"]["mean"] == pytest.approx(main["pooled_accuracy"]["value"], abs=1e-3)
    assert main["maps"]["identity"] < 1e-4
    text = (docs / "dceac.md").read_text()
    assert f"{main['accuracy']['mean']:.3f}" in text
    assert "missed" in text  # such small networks do not find the patterns
    assert page({"textures": found}) == text
    with Image.open(docs / "images" / "dceac.png") as picture:
        assert np.asarray(picture).std() > 10
    second = CliRunner().invoke(app, command)
    assert second.exit_code == 0
    assert "begins" not in second.output
    listed = CliRunner().invoke(app, [*command, "--list"])
    assert listed.output.count("done ") == 8
    assert cluster_flow(load_dceac(file)) == 8
    with pytest.raises(SettingsError, match="made with other settings"):
        result(load_dceac(config(tmp_path, supervised_epochs=2)), "rgb", 0)


@pytest.mark.slow
def test_folders_with_labels_and_without(tmp_path: Path) -> None:
    labelled, plain = tmp_path / "labelled", tmp_path / "plain"
    drawn = textures(45, 1, 32, patients=9)
    write(drawn, labelled)
    plain.mkdir()
    for number, tile in enumerate(drawn):
        Image.fromarray(tile.pixels).save(plain / f"tile_{number}.png")
    for folder, words in ((labelled, "accuracy"), (plain, "tiles by cluster")):
        out = tmp_path / f"out_{folder.name}"
        file = config(tmp_path, data={"size": 32, "tissue": 0}, seeds=[0], arms=["attention", "rgb"])
        command = ["train", "dceac", "-c", str(file), "-d", str(folder), "--work", str(tmp_path / f"w_{folder.name}")]
        made = CliRunner().invoke(app, [*command, "--report", str(out), "--clusters", "4"])
        assert made.exit_code == 0, made.output
        assert words in (out / "dceac.md").read_text()
        assert (out / "images" / "dceac_own.png").exists()
        found = json.loads((out / "evidence" / "dceac.json").read_text())["own"]
        assert len(found["rows"]["attention/refined"]["shares"][0]) == 4
