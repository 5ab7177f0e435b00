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
from medxai.explain.cluster_map import cluster_maps
from medxai.learn.clustering.bundle import names_of
from medxai.learn.clustering.comparison import relevant, result, trained
from medxai.learn.clustering.data import as_input
from medxai.learn.clustering.page import page
from medxai.learn.clustering.report import collect, spread
from medxai.learn.clustering.settings import load_dceac
from sample_cases.synthetic_textures import textures, write
from tests import tiffs

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


def test_names_of_clusters() -> None:
    """By class; clusters of one class are numbered, without labels all are."""
    assert names_of(np.array([1, 0, 2]), ("a", "b", "c"), 3) == (("a", "b", "c"), [1, 0, 2])
    assert names_of(np.array([1, 0, 1]), ("a", "b"), 3) == (("a", "b_1", "b_2"), [1, 0, 2])
    assert names_of(None, (), 2) == (("cluster_0", "cluster_1"), [0, 1])


@pytest.mark.slow
def test_a_slide_is_graded_by_the_bundle(tmp_path: Path) -> None:
    """The bundle's tiles have the shares that the clustering gives to the same pixels."""
    file, out = config(tmp_path, seeds=[0], arms=["attention"]), tmp_path / "bundles"
    refused = CliRunner().invoke(app, ["train", "dceac", "-c", str(file), "--out", str(out)])
    assert isinstance(refused.exception, SettingsError)
    assert "--out needs --mpp" in refused.exception.reason
    made = CliRunner().invoke(app, ["train", "dceac", "-c", str(file), "--out", str(out), "--mpp", "2"])
    assert made.exit_code == 0, made.output
    drawn = np.concatenate([np.concatenate([t.pixels for t in textures(8, n, 32)], 1) for n in range(6)])
    slide = np.pad(drawn, ((32, 32), (32, 32), (0, 0)), constant_values=244)
    (tmp_path / "in").mkdir()
    tiffs.write_pyramid(
        tmp_path / "in" / "a.tif", slide.shape[:2], tiffs.painter_of(slide), tile=32, factors=(1, 2), mpp=(2.0, 2.0),
        quality=100,
    )  # fmt: skip
    words = ["run", str(tmp_path / "in"), "-b", str(out / "dceac"), "--allow", str(out / "allow.json")]
    run = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "o"), "-m", "clustercam", "--send-withheld"])
    assert run.exit_code == 0, run.output
    (table,) = (tmp_path / "o").glob("*/slide_tiles.tsv")
    head, *rows = [line.split("\t") for line in table.read_text().splitlines()]
    columns = [n for n, name in enumerate(head) if name.startswith("p_")]
    assert len(columns) == 3
    settings = load_dceac(file)
    found = result(settings, "attention", 0)
    order = names_of(np.array(found["refined"]["names"]), ("a", "b", "c"), 3)[1]
    tile_set = []
    for row in rows:
        top, left = (round(float(v)) for v in row[1:3])
        tile_set.append(slide[top : top + 32, left : left + 32])
    x = as_input(np.stack(tile_set))
    expected = cluster_maps(trained(settings, "attention", 0), x).shares[:, order].numpy()
    got = np.array([[float(row[n]) for n in columns] for row in rows])
    assert np.abs(got - expected).mean() < 0.01  # the slide's tiles went through JPEG
    with Image.open(table.with_name("slide_tiles_classes.png")) as picture:
        assert np.asarray(picture).std() > 10
