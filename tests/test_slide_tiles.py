"""`medxai run` of a whole slide tile by tile, with a network whose evidence is known: it answers to dark pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import Dataset, dcmread

from medxai.errors import IngestError
from medxai.explain import slide_shards
from medxai.explain.slide_map import explain_slide
from medxai.explain.slide_plane import place_cells, plane_affine
from medxai.explain.slide_shards import Progress
from medxai.explain.study_map import ExplainOptions
from medxai.ingest.read import read_study
from medxai.predict.bundle import AllowList, load_bundle
from medxai.predict.bundle_spec import SlideSpec
from medxai.study import Result, SourceFiles, Volume
from tests import slides, tiffs
from tests.studies import command
from tests.test_slide_run import dark_bundle, tile_block
from tests.tools import dicom_errors

Capture = pytest.CaptureFixture[str]
#: Micrometres per pixel of the finest level.
FINEST = 2.0


@pytest.fixture
def tiles(tmp_path: Path) -> tuple[Path, Path]:
    """The dark bundle, of tiles of 64 pixels at the resolution of the finest level, and its allow-list."""
    return dark_bundle(tmp_path, tile_block(SlideSpec(mpp=FINEST, tile=64, least_tissue=0.1)))


def where_dark(shape: tuple[int, int]) -> tuple[float, float]:
    """Centre of the dark spot as shares of height and width."""
    rows, columns = np.nonzero(slides.tissue(shape).mean(-1) < 120)
    return float(rows.mean() + 0.5) / shape[0], float(columns.mean() + 0.5) / shape[1]


def plane_of(ds: Dataset) -> np.ndarray:
    """``[H, W]`` of a tiled Parametric Map."""
    rows, columns = int(ds.TotalPixelMatrixRows), int(ds.TotalPixelMatrixColumns)
    down, across = -(-rows // ds.Rows), -(-columns // ds.Columns)
    frames = np.frombuffer(ds.FloatPixelData, "<f4").reshape(down, across, ds.Rows, ds.Columns)
    return frames.transpose(0, 2, 1, 3).reshape(down * ds.Rows, across * ds.Columns)[:rows, :columns]


def test_a_slide_goes_all_the_way(tmp_path: Path, capfd: Capture, tiles: tuple[Path, Path]) -> None:
    """The map lies on the dark spot of the level it is tiled like; a second run does nothing again."""
    sources = slides.pyramid(syntax="jpeg")
    slides.save([*sources, slides.label()], tmp_path / "in")
    bundle, allow = tiles
    words = ("run", tmp_path / "in", "-b", bundle, "-o", tmp_path / "out", "--allow", allow, "--send-withheld")
    done = command(capfd, *words)
    assert (done.code, done.err) == (0, "")
    (folder,) = [path.parent for path in (tmp_path / "out").glob("*/manifest.json")]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["decided"] == "dark"
    assert "level 3 of 3 of the slide, from the finest: 309 x 230 pixels" in manifest["notes"]
    assert manifest["explanations"][0]["parameters"]["failed"] == 0
    roles = {output["role"] for output in manifest["outputs"]}
    wanted = {"parametric_map", "segmentation", "secondary_capture", "structured_report", "picture", "page"}
    assert roles == wanted | {"slide_tiles", "annotations"}
    for path in folder.glob("*.dcm"):
        assert dicom_errors(path) == [], path.name
    (path,) = folder.glob("parametric_map*.dcm")
    ds, level = dcmread(path), sources[2]
    assert ds.FrameOfReferenceUID == level.FrameOfReferenceUID
    assert (ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns) == (230, 309)
    values = plane_of(ds)
    rows, columns = np.nonzero(values > 0.5)
    found = ((rows.mean() + 0.5) / 230, (columns.mean() + 0.5) / 309)
    row, column = where_dark(slides.SIZE)
    assert np.hypot((found[0] - row) * 230, (found[1] - column) * 309) < 1  # a cell is half a pixel of this level
    again = command(capfd, *words)
    assert again.code == 0
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def study_of(folder: Path, datasets: list[Dataset]) -> tuple[SourceFiles, list[Path]]:
    paths = slides.save(datasets, folder)
    return SourceFiles("0123456789ab", "dicom", tuple(paths)), paths


def explained(bundle_path: Path, source: SourceFiles, work: Path, progress: Progress | None = None) -> Result:
    bundle = load_bundle(bundle_path, AllowList.of(bundle_path))
    study = read_study(source, cell_um=16.0)
    options = ExplainOptions(batch_size=16)
    found = explain_slide(bundle, bundle.network(), study, source.files, options, work, progress=progress)
    return Result(study, found[0], found[1], "", "", None, found[2])


def test_tiles_are_those_of_the_network_one_by_one(tmp_path: Path, tiles: tuple[Path, Path]) -> None:
    """Logits of a tile are those of the pixels at its place, and the plane holds its map there."""
    source, _ = study_of(tmp_path / "in", slides.pyramid())
    found = explained(tiles[0], source, tmp_path / "work")
    picture = slides.tissue()
    bundle = load_bundle(tiles[0], AllowList.of(tiles[0]))
    down, across = found.prediction.tiles.shape
    assert (down, across) == (15, 20)
    for n in (0, len(found.prediction.tiles.numbers) // 2, int(np.argmax(found.prediction.window_logits[:, 1]))):
        top, left, bottom, right = (round(float(v)) for v in found.prediction.tiles.boxes[n])
        assert (bottom - top, right - left) == (64, 64)
        assert found.prediction.tiles.numbers[n] == top // 64 * across + left // 64
        tile = np.full((64, 64, 3), 255, np.uint8)
        inside = picture[top:bottom, left:right]
        tile[: inside.shape[0], : inside.shape[1]] = inside
        with torch.inference_mode():
            x = torch.from_numpy(tile.transpose(2, 0, 1)[None].astype(np.float32) / 255)
            np.testing.assert_allclose(found.prediction.window_logits[n], bundle.network()(x)[0], rtol=1e-5, atol=1e-4)
        own = found.explanations[0]
        h, w = own.raw.shape[1:]
        cells = own.input_map[top // 64 * h : (top // 64 + 1) * h, left // 64 * w : (left // 64 + 1) * w]
        np.testing.assert_array_equal(cells, np.maximum(own.raw[n], 0))


def test_a_killed_run_goes_on(tmp_path: Path, tiles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slide_shards, "SHARD", 40)
    source, _ = study_of(tmp_path / "in", slides.pyramid())

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        explained(tiles[0], source, tmp_path / "work", progress=kill)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    assert len(kept) >= 2
    again = explained(tiles[0], source, tmp_path / "work")
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    whole = explained(tiles[0], source, tmp_path / "other")
    np.testing.assert_array_equal(again.explanations[0].map, whole.explanations[0].map)
    np.testing.assert_array_equal(again.prediction.window_logits, whole.prediction.window_logits)


def test_a_damaged_tile_costs_itself_alone(tmp_path: Path, tiles: tuple[Path, Path]) -> None:
    sources = slides.pyramid(syntax="jpeg")
    source, paths = study_of(tmp_path / "in", sources)
    whole = explained(tiles[0], source, tmp_path / "whole")
    content = bytearray(paths[0].read_bytes())
    start = content.find(b"\xff\xd8\xff", len(content) // 2)  # a stored tile in the middle
    content[start : start + 200] = bytes(200)
    paths[0].write_bytes(bytes(content))
    found = explained(tiles[0], source, tmp_path / "work")
    lost = set(whole.prediction.tiles.numbers.tolist()) - set(found.prediction.tiles.numbers.tolist())
    assert len(found.prediction.tiles.failed) == len(lost) > 0
    assert len(lost) <= 6  # a stored tile of 96 x 128 lies under so many of 64 x 64 at most
    kept = np.isin(whole.prediction.tiles.numbers, found.prediction.tiles.numbers)
    np.testing.assert_array_equal(whole.prediction.window_logits[kept], found.prediction.window_logits)


def test_a_shard_that_is_all_damaged_is_left_out(
    tmp_path: Path, tiles: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slide_shards, "SHARD", 20)
    source, paths = study_of(tmp_path / "in", slides.pyramid(syntax="jpeg"))
    content = paths[0].read_bytes()
    middle = content.find(b"\xff\xd8\xff", len(content) // 2)
    # Every stored tile of the second half begins with no JPEG any more.
    paths[0].write_bytes(content[:middle] + content[middle:].replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    found = explained(tiles[0], source, tmp_path / "work")
    assert len(found.prediction.tiles.failed) > 40
    assert len(found.prediction.tiles.numbers) > 40
    assert max(found.prediction.tiles.numbers) < 20 * 10  # nothing below the middle of 15 rows of 20
    assert found.explanations[0].raw.shape[0] == len(found.prediction.tiles.numbers)


def test_a_plain_picture_is_one_tile(tmp_path: Path, capfd: Capture, tiles: tuple[Path, Path]) -> None:
    """A patch has no micrometres per pixel and needs none: it is explained as it is, and not cut."""
    (tmp_path / "in").mkdir()
    Image.fromarray(slides.tissue((96, 128))).save(tmp_path / "in" / "patch.png")
    bundle, allow = tiles
    words = ("run", tmp_path / "in", "-b", bundle, "-o", tmp_path / "out", "--allow", allow, "--send-withheld")
    refused = command(capfd, *words)
    assert refused.code == 2
    assert "dark reads SM, the study is US" in refused.err
    done = command(capfd, *words, "--modality", "SM")
    assert (done.code, done.err) == (0, "")
    (path,) = (tmp_path / "out").glob("*/manifest.json")
    manifest = json.loads(path.read_text())
    assert "tiles" not in manifest["explanations"][0]["parameters"]
    assert {output["role"] for output in manifest["outputs"]} == {"picture", "page"}


def test_a_slide_of_a_scanner_gets_no_dicom_objects_and_says_why(
    tmp_path: Path, capfd: Capture, tiles: tuple[Path, Path]
) -> None:
    """The same decision and tiles as of the DICOM slide of the same pixels."""
    paint = tiffs.painter_of(slides.tissue())
    (tmp_path / "in").mkdir()
    tiffs.write_pyramid(
        tmp_path / "in" / "a.tif", slides.SIZE, paint, tile=128, factors=(1, 2, 4), mpp=(FINEST, FINEST), quality=98
    )
    bundle, allow = tiles
    words = ("run", tmp_path / "in", "-b", bundle, "-o", tmp_path / "out", "--allow", allow, "--send-withheld")
    done = command(capfd, *words)
    assert (done.code, done.err) == (0, "")
    (folder,) = [path.parent for path in (tmp_path / "out").glob("*/manifest.json")]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["decided"] == "dark"
    assert {output["role"] for output in manifest["outputs"]} == {"picture", "slide_tiles", "page"}
    page = (folder / "case.html").read_text()
    assert "convert it to DICOM first" in page
    rows = [line.split("\t") for line in (folder / "slide_tiles.tsv").read_text().splitlines()]
    head, cells = rows[0], np.array([[float(v) for v in row[:7]] for row in rows[1:]])
    assert head[:7] == ["tile", "top", "left", "bottom", "right", "p_pale", "p_dark"]
    top, left, bottom, right = cells[cells[:, 6].argmax(), 1:5] / [*slides.SIZE, *slides.SIZE]
    row, column = where_dark(slides.SIZE)
    assert top - 0.07 < row < bottom + 0.07
    assert left - 0.07 < column < right + 0.07
    assert f"<dt>Tiles of tissue read</dt><dd>{len(cells)}</dd>" in page
    tissue = np.array([float(line[head.index("tissue")]) for line in rows[1:]])
    share = tissue[cells[:, 6] > cells[:, 5]].sum() / tissue.sum()
    assert f"<dt>Tissue in tiles called dark</dt><dd>{100 * share:.1f} %</dd>" in page


def test_glass_alone_is_refused(tmp_path: Path, tiles: tuple[Path, Path]) -> None:
    source, _ = study_of(tmp_path / "in", [slides.level(np.full((300, 420, 3), 245, np.uint8))])
    with pytest.raises(IngestError, match="tissue"):
        explained(tiles[0], source, tmp_path / "work")


def test_the_plane_lies_where_its_affine_says() -> None:
    """A cell of the plane and the pixels of the level under it have the same place on the glass."""
    affine = np.zeros((4, 4))
    affine[:3, 1], affine[:3, 2], affine[:, 3] = (0, -0.004, 0), (-0.005, 0, 0), (31.5, 17.25, 0, 1)
    volume = Volume(np.zeros((3, 60, 90), np.float32), "HW", affine, "SM")
    cell_mm = (0.0, 0.012, 0.020)  # whole pixels of the level, so that its samples have the centre of the cell
    plane = plane_affine(volume, cell_mm)
    cells = np.zeros((20, 20), np.float32)
    cells[7, 11] = 1.0
    drawn = place_cells(cells, cell_mm, volume)
    rows, columns = np.indices(drawn.shape)
    centre = affine @ (0, (rows * drawn).sum() / drawn.sum(), (columns * drawn).sum() / drawn.sum(), 1)
    np.testing.assert_allclose(centre, plane @ (0, 7, 11, 1), atol=1e-6)
    assert drawn.max() == pytest.approx(1.0, abs=0.15)


def test_no_file_name_in_what_is_said(tmp_path: Path, capfd: Capture, tiles: tuple[Path, Path]) -> None:
    """Files may be named after the patient; a slide that is too coarse is put aside under its pseudonym."""
    folder = tmp_path / "in"
    coarse = slides.level(slides.tissue((120, 160)), spacing=(0.05, 0.05))
    folder.mkdir()
    coarse.save_as(folder / "SECRET^NAME.dcm", enforce_file_format=True)
    Image.fromarray(slides.tissue((300, 400))).save(folder / "SECRET_two.tif")
    bundle, allow = tiles
    done = command(capfd, "run", folder, "-b", bundle, "-o", tmp_path / "out", "--allow", allow)
    assert done.code == 2
    assert "um per pixel need tiles enlarged" in done.err
    assert "SECRET" not in done.out + done.err
    assert len(list((tmp_path / "out" / "quarantine").glob("*.json"))) == 2
