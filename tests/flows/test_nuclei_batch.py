"""Nuclei of many slides as a flow: a failing slide costs itself, and nothing is done twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.nuclei_batch import main
from medxai.nuclei_run import folder_of
from tests import nuclei as discs
from tests.studies import hashes, key_of

pytestmark = [pytest.mark.flow, pytest.mark.usefixtures("prefect_server")]


def test_the_rest_is_done_and_resumed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, shape = tmp_path / "slides", (120, 150)
    folder.mkdir()
    places = discs.grid_of_places(shape)
    for name, kept in (("a", places), ("b", places[:5])):
        Image.fromarray(discs.picture(shape, kept)).save(folder / f"{name}^NAME.png")
    Image.fromarray(np.full((*shape, 3), 246, np.uint8)).save(folder / "blank^NAME.png")
    keys = {path.name[0:2]: key_of(path, tmp_path / "w") for path in sorted(folder.iterdir())}
    (folder / "damaged^NAME.svs").write_bytes(b"II*\0 no slide")
    bundle, allow = discs.dark_bundle(tmp_path)
    asked = [str(folder), "-o", str(tmp_path / "out"), "-b", str(bundle), "--mpp", "0.5", "--allow", str(allow)]
    assert main(asked) == 2
    said = capfd.readouterr()
    assert f"{keys['a^']}: {len(places)} nuclei" in said.out
    assert f"{keys['b^']}: 5 nuclei" in said.out
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert any(line.startswith(f"error: {keys['bl']}: no tissue on") for line in errors)
    assert "NAME" not in said.out + said.err
    done = folder_of(tmp_path / "out", keys["a^"])
    assert json.loads((done / "manifest.json").read_text())["nuclei"] == len(places)

    before, written = hashes(done), (done / "nuclei.html").stat().st_mtime_ns
    (folder_of(tmp_path / "out", keys["b^"]) / "nuclei.tsv").unlink()
    (folder / "blank^NAME.png").unlink()
    (folder / "damaged^NAME.svs").unlink()
    assert main(asked) == 0
    assert hashes(done) == before
    assert (done / "nuclei.html").stat().st_mtime_ns == written
    assert (folder_of(tmp_path / "out", keys["b^"]) / "nuclei.tsv").is_file(), "what is missing is made again"


def test_no_such_bundle(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "-o", str(tmp_path / "out"), "-b", "none_such"]) == 2
    assert "error: there is no bundle none_such" in capfd.readouterr().err
