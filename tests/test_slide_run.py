"""`medxai run` on a whole slide, with a network whose evidence is known: it answers to dark pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import Classifier
from pydicom import dcmread

from medxai.predict.bundle import AllowList
from medxai.predict.bundle_spec import MedxaiBlock, SlideSpec
from medxai.prepare.spec import AffineIntensity, PreparationSpec
from tests import slides
from tests.predict.build import CARD, store
from tests.studies import command
from tests.tools import dicom_errors

Capture = pytest.CaptureFixture[str]

BLOCK = MedxaiBlock(
    labels=("pale", "dark"),
    modalities=("SM",),
    body_parts=("BREAST",),
    preparation=PreparationSpec(
        axes="HW",
        window=(64, 64),
        spacing_mm=(0.016, 0.016),
        channels=3,
        intensity=AffineIntensity(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0)),
        fill=255.0,
    ),
    target_layer="net.layer_0",
    activation="softmax",
    fusion="lse",
    positive=("dark",),
    licence="Apache-2.0",
)


def dark_bundle(folder: Path, block: MedxaiBlock = BLOCK) -> tuple[Path, Path]:
    """Write the bundle and an allow-list that holds it; its first layer is how far pixels are below a mean of 0.55."""
    arguments = {
        "in_shape": [3, 64, 64], "classes": 2, "channels": [2, 2], "strides": [2, 1], "kernel_size": 3,
        "num_res_units": 0, "act": "relu", "norm": None,
    }  # fmt: skip
    network = Classifier(**arguments).eval()
    first, second, last = network.net.layer_0.conv, network.net.layer_1.conv, network.final[-1]
    with torch.no_grad():
        for layer in (first, second, last):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[0, :, 1, 1] = -1 / 3
        first.bias[0] = 0.55
        second.weight[0, 0, 1, 1] = 1.0
        cells = last.in_features // 2
        last.weight[1, :cells] = 1.0
        last.bias[1] = -3.0
    definition = {"_target_": "monai.networks.nets.Classifier", **arguments}
    bundle = store(folder / "dark", definition, network, CARD, block)
    allow = folder / "allow.json"
    allow.write_text(json.dumps({name: list(found) for name, found in AllowList.of(bundle).hashes.items()}))
    return bundle, allow


def tile_block(slide: SlideSpec) -> MedxaiBlock:
    """What the bundle says of itself when it is of tiles."""
    preparation = BLOCK.preparation.model_copy(update={"spacing_mm": None})
    return MedxaiBlock.model_validate(BLOCK.model_dump() | {"slide": slide, "preparation": preparation})


def test_a_slide_goes_all_the_way(tmp_path: Path, capfd: Capture) -> None:
    """Decided as drawn; the map that returns to the archive lies on the dark spot of the finest level."""
    sources = slides.pyramid(syntax="jpeg")
    slides.save([*sources, slides.label()], tmp_path / "in")
    bundle, allow = dark_bundle(tmp_path)
    done = command(
        capfd, "run", tmp_path / "in", "-b", bundle, "-o", tmp_path / "out", "--allow", allow, "--send-withheld"
    )
    assert (done.code, done.err) == (0, "")
    (folder,) = [path.parent for path in (tmp_path / "out").glob("*/manifest.json")]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["decided"] == "dark"
    assert "level 1 of 3 of the slide, from the finest: 1236 x 920 pixels" in manifest["notes"]
    roles = {output["role"] for output in manifest["outputs"]}
    assert roles == {"parametric_map", "segmentation", "secondary_capture", "structured_report", "picture", "page"}
    for path in folder.glob("*.dcm"):
        assert dicom_errors(path) == [], path.name
    (path,) = folder.glob("parametric_map*.dcm")
    ds = dcmread(path)
    assert ds.FrameOfReferenceUID == sources[0].FrameOfReferenceUID
    assert (ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns, ds.Rows, ds.Columns) == (*slides.SIZE, *slides.TILE)
    frames = np.frombuffer(ds.FloatPixelData, "<f4").reshape(10, 10, ds.Rows, ds.Columns)
    values = frames.transpose(0, 2, 1, 3).reshape(960, 1280)[: slides.SIZE[0], : slides.SIZE[1]]
    dark = slides.tissue().mean(-1) < 120
    assert values[dark].mean() > 10 * values[~dark].mean()
    rows, columns = np.nonzero(values > 0.5)
    expected = [float(part.mean()) for part in np.nonzero(dark)]
    assert np.hypot(rows.mean() - expected[0], columns.mean() - expected[1]) < 8  # half a cell of 16 pixels
