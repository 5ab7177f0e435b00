"""The flow does what the command does, and each resumes the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.brain import features_flow, main
from medxai.prepare.brain.cohort import run_dataset
from medxai.prepare.brain.settings import FeatureSettings
from tests.export.brain import cohort
from tests.prepare.brain.test_cohort import atlas, functional
from tests.studies import command, hashes


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_flow_and_command_resume_each_other(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    functional(root, "sub-01", 1)
    functional(root, "sub-02", 2, volumes=40)
    settings = FeatureSettings(input=root, output=tmp_path / "out", atlas=atlas(tmp_path / "atlas"))
    assert [o.state for o in features_flow(settings)] == ["done", "failed"]
    assert [o.state for o in run_dataset(settings)] == ["done before", "failed"]
    assert "40 volumes" in (settings.output / "failures.tsv").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], list[str], str]:
    """Settings of both commands, subjects of the bundle's atlas and one of another."""
    folder = tmp_path_factory.mktemp("site")
    people = cohort.fewer(cohort.people(4), 6)
    bundle, allow = cohort.write_bundle(folder, people)
    other = cohort.fewer(cohort.people(6), 5)[5]
    features = cohort.write_cohort(folder / "features", [*people, other])
    settings = {"features": str(features), "bundle": str(bundle), "allow": str(allow)}
    return settings, [p.features.subject for p in people], other.features.subject


def written(path: Path, **settings: object) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_explaining_by_flow_and_by_command_resume_each_other(site, tmp_path: Path, capfd) -> None:
    settings, names, other = site
    out = tmp_path / "explained"
    config = written(tmp_path / "explain.yaml", **settings, output=str(out))
    assert main([str(config), "--do", "explain"]) == 2
    assert (out / "failures.tsv").read_text().count("\n") == 2
    assert f"{other}\t" in (out / "failures.tsv").read_text()
    assert all((out / name / "page.html").is_file() for name in names)
    before = hashes(out)
    capfd.readouterr()
    done = command(capfd, "brain", "explain", "--config", config)
    assert done.code == 2
    assert done.out.count("explained before") == done.out.count("written before") == 4
    (out / names[0] / "page.html").unlink()
    assert main([str(config), "--do", "explain"]) == 2
    assert capfd.readouterr().out.count("written before") == 3
    assert hashes(out) == before


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_ablating_by_flow_and_by_command_resume_each_other(site, tmp_path: Path, capfd) -> None:
    settings, names, other = site
    out = tmp_path / "ablation"
    config = written(tmp_path / "ablate.yaml", **settings, output=str(out), only=False, retrain="linear")
    assert main([str(config), "--do", "ablate"]) == 0
    said = capfd.readouterr().out
    assert f"{other} left out: sfc and dfc: the features have 5 regions" in said
    assert [line.split("\t")[0] for line in (out / "subjects.tsv").read_text().splitlines()[1:]] == names
    before = hashes(out)
    assert "done before" in command(capfd, "brain", "ablate", "--config", config).out
    (out / "networks.tsv").write_text("changed")
    done = command(capfd, "brain", "ablate", "--config", config)
    assert done.code == 0
    assert "sets of regions" not in done.out  # what the network answered is kept
    assert hashes(out) == before
    assert main([str(config), "--do", "ablate"]) == 0
    assert "done before" in capfd.readouterr().out


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_training_by_flow_and_by_command_resume_each_other(tmp_path: Path, capfd) -> None:
    config = written(
        tmp_path / "train.yaml", output=str(tmp_path / "work"), cohort={"subjects": 28},
        network={"channels": 8, "width": 16, "depth": 1, "heads": 2, "strides": [2, 2, 2]},
        training={"epochs": 1, "batch_size": 8}, maps={"subjects": 1, "published": 1, "chunk": 32},
        arms=["without_alff", "shuffled"], seeds=[0],
    )  # fmt: skip
    assert main([str(config), "--do", "train"]) == 0
    said = capfd.readouterr().out
    assert said.count(": done") == 3  # two networks and the evidence of the explained one
    assert "2 networks" in said
    done = command(capfd, "brain", "train", "--config", config)
    assert done.code == 0
    assert ": begins" not in done.out
