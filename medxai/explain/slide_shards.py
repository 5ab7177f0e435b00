"""The tiles of a slide through the network, shard by shard; what was done of a killed run is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medxai.explain.study_map import ExplainOptions, target_layer
from medxai.files import arrays_once
from medxai.identity import sha256_json
from medxai.ingest.slides.quality import measure_tile
from medxai.ingest.slides.tiles import TileGrid, stream
from medxai.ingest.slides.tissue import Tissue
from medxai.predict.slide_pooling import distances, pooled_features
from medxai.prepare.prepare import Prepared, prepare
from medxai.study import Study, Volume, image_affine

if TYPE_CHECKING:
    from torch import nn

    from medxai.ingest.slides.colour_change import Change
    from medxai.ingest.slides.level import Colours, Slide
    from medxai.predict.bundle import Bundle

#: Tiles of a shard.
SHARD = 256
Progress = Callable[[int, int], None]


def _tell(progress: Progress | None, before: int, total: int, seen: int) -> None:
    if progress:
        progress(before + seen, total)


class Shards:
    """The tiles of a slide, shard by shard."""

    def __init__(
        self, bundle: Bundle, network: nn.Module, study: Study, slide: Slide, tissue: Tissue, change: Change | None,
        options: ExplainOptions, work: Path,
    ) -> None:  # fmt: skip
        self._bundle, self._network, self._study, self._slide = bundle, network, study, slide
        self._tissue, self._change, self._options, self._work = tissue, change, options, work
        self._pooled = options.slide.pooling == "attention"
        self._layer = options.layer or target_layer(bundle, network)

    def run(self, grid: TileGrid, progress: Progress | None) -> dict[str, Any]:
        """Arrays over all tiles that could be read, and the reasons of the others."""
        shards = grid.shards(max(1, -(-len(grid) // SHARD)))
        stated = {
            "input": self._study.input_sha256, "model": self._bundle.sha256, "layer": self._layer,
            "methods": self._options.methods, "options": {k: dict(v) for k, v in self._options.method_options.items()},
            "tiles": len(grid), "autocast": str(self._options.autocast), "masking": self._options.masking,
            "seed": self._options.seed, "stain": self._options.slide.stain, "icc": self._options.slide.icc,
            "pooled": self._pooled,
        }  # fmt: skip
        folder = self._work / sha256_json(stated)[:16]
        parts, done = [], 0
        for number, shard in enumerate(shards):
            tell = partial(_tell, progress, done, len(grid))
            parts.append(arrays_once(folder / f"{number:05d}.npz", partial(self._shard, shard, tell)))
            done += len(shard)
            if progress:
                progress(done, len(grid))
        read = [part for part in parts if len(part["numbers"])] or parts[:1]  # one that is all damaged has no maps
        whole: dict[str, Any] = {
            name: np.concatenate([part[name] for part in read]) for name in parts[0] if name != "failed"
        }
        whole["failed"] = [reason for part in parts for reason in json.loads(part["failed"].tobytes())]
        return whole

    def _shard(self, shard: TileGrid, tell: Callable[[int], None]) -> dict[str, Any]:
        from medxai.explain.engine import explain

        options, labels = self._options, self._bundle.spec.labels
        rows: dict[str, list[Any]] = {}
        failed: list[str] = []
        seen = 0
        for batch in stream(self._slide, shard, options.batch_size, as_float=False):
            failed += [f"tile {f.number}: {f.reason}" for f in batch.failed]
            seen += len(batch.numbers) + len(batch.failed)
            if not len(batch.numbers):
                continue
            x = np.stack([prepared_tile(changed(tile, self._change), self._bundle).pixels for tile in batch.tiles])
            with pooled_features(self._network) as pooled, distances(self._network) as nearest:
                found = explain(
                    self._network, torch.from_numpy(x).to(options.device), methods=options.methods,
                    classes=list(range(len(labels))), layers=self._layer, options=options.method_options,
                    autocast=options.autocast, masking=options.masking, seed=options.seed, prepared=options.prepared,
                )  # fmt: skip
            values: dict[str, Any] = {"numbers": batch.numbers, "logits": found.logits.float().cpu().numpy()}
            apart = nearest[0].float().cpu().numpy() if nearest else np.zeros(len(batch.numbers), np.float32)
            values["distances"] = apart
            if self._pooled:
                values["features"] = pooled[0].float().cpu().numpy()
            for n, name in enumerate(options.methods):
                for index in range(len(labels)):
                    values[f"raw_{n}_{index}"] = found.get(name, index).raw.float().cpu().numpy()
            colours = np.ascontiguousarray(batch.tiles.transpose(0, 2, 3, 1))
            measures = [measure_tile(tile, shard.choice.mpp, self._tissue) for tile in colours]
            values["measures"] = np.array([astuple(measured) for measured in measures])
            for name, value in values.items():
                rows.setdefault(name, []).append(value)
            tell(seen)
        arrays = {name: np.concatenate(parts) for name, parts in rows.items()} or self._nothing()
        return arrays | {"failed": np.frombuffer(json.dumps(failed).encode(), np.uint8)}

    def _nothing(self) -> dict[str, Any]:
        """A shard of which no tile can be read."""
        labels = self._bundle.spec.labels
        raws = {f"raw_{n}_{c}": np.zeros((0, 1, 1), np.float32) for n in range(len(self._options.methods))
                for c in range(len(labels))}  # fmt: skip
        if self._pooled:
            raws["features"] = np.zeros((0, 1), np.float32)
        return {"numbers": np.zeros(0, np.int64), "logits": np.zeros((0, len(labels)), np.float32),
                "measures": np.zeros((0, 3)), "distances": np.zeros(0, np.float32), **raws}  # fmt: skip


def prepared_tile(tile: Colours, bundle: Bundle) -> Prepared:
    """A tile ``[3, s, s]`` 0..255 as the network takes it: like a picture, without a scale."""
    return prepare(picture(tile), bundle.spec.preparation)


def changed(tile: Colours, change: Change | None) -> Colours:
    """A tile ``[3, s, s]`` with other colours."""
    return tile if change is None else change(np.ascontiguousarray(tile.transpose(1, 2, 0))).transpose(2, 0, 1)


def picture(tile: Colours) -> Volume:
    """A tile ``[3, s, s]`` 0..255 as an image without a scale."""
    pixels = np.ascontiguousarray(tile, np.float32)
    return Volume(pixels=pixels, axes="HW", affine=image_affine(), modality="SM", calibrated=False)
