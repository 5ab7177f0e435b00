"""Tissue with discs for nuclei at known places, and networks whose answer is known: what is dark is a nucleus."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from torch import nn

from medxai.networks.nuclei_unet import NucleiUNet
from medxai.predict.bundle import AllowList
from medxai.predict.nuclei import NucleiField
from medxai.predict.nuclei_objects import detection_seeds, distance_map, doubts, separate

Colours = npt.NDArray[np.uint8]
Places = npt.NDArray[np.float64]

#: Of a disc, in pixels of the network.
RADIUS = 6.0
TISSUE, NUCLEUS = (214, 160, 196), (70, 40, 120)
CAUTION = "Made by hand for tests."


def grid_of_places(shape: tuple[int, int], step: tuple[float, float] = (27.0, 31.0)) -> Places:
    """``[n, 2]`` rows and columns of discs that lie apart, many of them on seams of any tiling, none on the border."""
    rows, columns = (np.arange(RADIUS + 4, size - RADIUS - 3, by) for size, by in zip(shape, step, strict=True))
    return np.array([(row + 3 * (n % 3), column) for n, column in enumerate(columns) for row in rows[:-1]])


def picture(shape: tuple[int, int], places: Places, zoom: int = 1) -> Colours:
    """``[H, W, 3]``: tissue with a disc at each place, all `zoom` times as large."""
    found = np.empty((shape[0] * zoom, shape[1] * zoom, 3), np.uint8)
    found[:] = TISSUE
    rows, columns = (np.arange(size * zoom) + 0.5 for size in shape)
    for row, column in places * zoom:
        reach = int((RADIUS + 2) * zoom)
        part = tuple(slice(max(0, int(at) - reach), int(at) + reach) for at in (row, column))
        inside = (rows[part[0], None] - row) ** 2 + (columns[None, part[1]] - column) ** 2 < (RADIUS * zoom) ** 2
        found[part][inside] = NUCLEUS
    return found


def dark_field(pixels: npt.NDArray[np.float32]) -> NucleiField:
    """Every dark part of a field is a nucleus, to the pixel."""
    dark = pixels.mean(0) < 0.5
    heights = distance_map(dark, RADIUS).astype(np.float32)
    labels, seeds = separate(dark, detection_seeds(heights, dark, RADIUS), heights, RADIUS)
    evidence = dark.astype(np.float32)
    return NucleiField(labels, seeds, evidence, heights, evidence, 2, 0.75, doubts(labels, seeds, evidence > 0.5))


def dark_network() -> NucleiUNet:
    """Cells of four pixels with something dark are nuclei; the first block's map alone speaks for them."""
    torch.manual_seed(5)
    network = NucleiUNet(**ARGUMENTS).eval()
    encoder, last = network.encoder, network.decoder[-1]
    with torch.no_grad():
        for layer in (encoder.conv1, *(m for m in encoder.layer1.modules() if isinstance(m, nn.Conv2d))):
            layer.weight.zero_()
        encoder.conv1.weight[0, :, 3, 3] = -network.std.flatten() / 3
        encoder.bn1.bias[0] = 1 - network.mean.mean()
        for layer in (last[0], last[3], network.fine[0], network.fine[3]):
            layer.weight.zero_()
            layer.weight[0, 0, 1, 1] = 1.0
        # The decoder puts what comes from below first.
        last[0].weight.zero_()
        last[0].weight[0, -encoder.conv1.out_channels, 1, 1] = 1.0
        network.segment.weight.zero_()
        network.segment.weight[1, 0] = 40.0
        network.segment.bias.copy_(torch.tensor([0.0, -24.0]))
    return network


ARGUMENTS = {"width": 1 / 32, "radius": RADIUS, "mpp": 0.5, "tile": 1024, "detects": False, "shared": 1}


def dark_bundle(folder: Path) -> tuple[Path, Path]:
    """Write the network as a bundle, and an allow-list that holds it."""
    path = folder / "dark_nuclei"
    (path / "configs").mkdir(parents=True)
    (path / "models").mkdir()
    about = {"version": "0.1.0", "medxai_nuclei": {"licence": "CC-BY-4.0", "caution": CAUTION}}
    (path / "configs" / "metadata.json").write_text(json.dumps(about))
    definition = {"_target_": "medxai.networks.nuclei_unet.NucleiUNet", **ARGUMENTS}
    (path / "configs" / "inference.json").write_text(json.dumps({"network_def": definition}))
    weights = {name: tensor.contiguous() for name, tensor in dark_network().state_dict().items()}
    save_file(weights, path / "models" / "model.safetensors")
    allow = folder / "allow.json"
    allow.write_text(json.dumps({name: list(found) for name, found in AllowList.of(path).hashes.items()}))
    return path, allow
