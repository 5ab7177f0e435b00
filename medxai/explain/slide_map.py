"""A whole slide through a network of tiles: every tile of tissue decided and explained, the maps one plane of cells.

Tiles touch and are streamed, so that memory holds one batch; shards are kept on disk and a killed run goes on with the
next. A tile that cannot be read is left out. The map is in cells of the network's layer and is drawn on one level of
the slide.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from medxai.errors import ExplainError
from medxai.explain.engine import load_methods
from medxai.explain.slide_plane import place_cells, plane_affine
from medxai.explain.study_map import ExplainOptions, target_layer
from medxai.files import atomic_path
from medxai.identity import sha256_json
from medxai.ingest.slides.open import open_slide
from medxai.ingest.slides.quality import TileMeasures, judge, measure_tile
from medxai.ingest.slides.tiles import TileGrid, stream, tile_grid
from medxai.ingest.slides.tissue import Tissue, find_tissue
from medxai.predict.infer import make_prediction
from medxai.prepare.prepare import Prepared, prepare
from medxai.study import (
    Explanation,
    Flag,
    FloatArray,
    Prediction,
    SlideTiles,
    Study,
    TrustReport,
    Volume,
    image_affine,
)

if TYPE_CHECKING:
    from torch import nn

    from medxai.ingest.slides.level import Colours, Slide
    from medxai.predict.bundle import Bundle

#: Tiles of a shard.
SHARD = 256
#: Most evident tiles whose explanation is put to the test.
JUDGED = 5
#: Tiles at either end of the order that are shown.
SHOWN = 9
#: From good to bad.
_VERDICTS = ("supported", "limited", "withheld")
Progress = Callable[[int, int], None]


def explain_slide(
    bundle: Bundle,
    network: nn.Module,
    study: Study,
    files: Iterable[Path],
    options: ExplainOptions,
    work: Path,
    assess: Callable[[Study, Prepared, Prediction, tuple[Explanation, ...]], tuple[TrustReport, ...]] | None = None,
    progress: Progress | None = None,
) -> tuple[Prediction, tuple[Explanation, ...], tuple[TrustReport, ...]]:
    """Decide and explain every tile of tissue.

    Args:
        bundle: with a block ``slide``.
        network: the bundle's, on `options.device`.
        study: the slide, its volume a coarse level.
        files: of the slide.
        options: methods that read one forward at the target layer, class, batch size.
        work: folder for the shards; what is there of the same slide and settings is not computed again.
        assess: judges one tile as a study of its own; None for no trust reports.
        progress: called with (tiles done, tiles in all).

    Returns:
        The decision, fused over tiles, with the tiles; an explanation for each method, `raw` of every tile and
        `input_map` on the plane of cells; and a report for each, from the most evident tile with the worst verdict of
        the `JUDGED` most evident ones.

    Raises:
        IngestError: no level fits the tiles, or there is no tissue.
        ExplainError: no tile can be read, an unknown class, or a method that runs the network again for every map.
    """
    block = bundle.spec.slide
    assert block is not None  # noqa: S101
    labels = bundle.spec.labels
    if options.class_label is not None and options.class_label not in labels:
        raise ExplainError(f"the model has no class {options.class_label!r}; it has {', '.join(labels)}")
    for method, _ in load_methods(options.methods, options.method_options):
        if method.INFO.repeats or method.INFO.layer != "one":
            words = "runs the network again or reads several layers, which takes too long for every tile of a slide"
            raise ExplainError(f"{method.INFO.name} {words}; use gradcam or another method of one forward")
    with open_slide(list(files), name=study.key) as slide:
        tissue = find_tissue(slide)
        grid = tile_grid(slide, tissue, size=block.tile, mpp=block.mpp, least_tissue=block.least_tissue)
        whole = _Shards(bundle, network, study, slide, tissue, options, work).run(grid, progress)
        if not len(whole["numbers"]):
            raise ExplainError(f"none of {len(grid)} tiles of tissue can be read", study=study.key)
        prediction = make_prediction(bundle, whole["logits"])
        index = prediction.index if options.class_label is None else labels.index(options.class_label)
        cell = _cell_um(slide, grid, whole[f"raw_0_{index}"].shape[1:])
        quality = judge(TileMeasures(*row) for row in whole["measures"].tolist())
        read = grid.take(np.searchsorted(grid.numbers, whole["numbers"]))
        named = (("blurred", quality.blurred), ("pen", quality.inked), ("fold", quality.folded))
        tiles = SlideTiles(
            shape=grid.shape,
            numbers=read.numbers,
            boxes=read.finest(slide),
            tissue=read.shares,
            flags=tuple(" ".join(name for name, where in named if where[n]) for n in range(len(read))),
            failed=tuple(whole["failed"]),
            shown=(shown := _extremes(prediction, index)),
            pictures=np.stack([_colours(slide, read, n) for n in shown.tolist()]).transpose(0, 2, 3, 1),
        )
        about = (bundle, network, study, options)
        explanations = tuple(
            _explanation(*about, name, index, whole[f"raw_{n}_{index}"], prediction, tiles, cell)
            for n, name in enumerate(options.methods)
        )
        trust: tuple[TrustReport, ...] = ()
        if assess is not None:
            trust = _judged(bundle, study, slide, read, prediction, explanations, assess)
    return replace(prediction, tiles=tiles), explanations, trust


def _tell(progress: Progress | None, before: int, total: int, seen: int) -> None:
    if progress:
        progress(before + seen, total)


class _Shards:
    """The tiles of a slide, shard by shard."""

    def __init__(
        self, bundle: Bundle, network: nn.Module, study: Study, slide: Slide, tissue: Tissue, options: ExplainOptions,
        work: Path,
    ) -> None:  # fmt: skip
        self._bundle, self._network, self._study, self._slide = bundle, network, study, slide
        self._tissue, self._options, self._work = tissue, options, work
        self._layer = options.layer or target_layer(bundle, network)

    def run(self, grid: TileGrid, progress: Progress | None) -> dict[str, Any]:
        """Arrays over all tiles that could be read, and the reasons of the others."""
        shards = grid.shards(max(1, -(-len(grid) // SHARD)))
        stated = {
            "input": self._study.input_sha256, "model": self._bundle.sha256, "layer": self._layer,
            "methods": self._options.methods, "options": {k: dict(v) for k, v in self._options.method_options.items()},
            "tiles": len(grid), "autocast": str(self._options.autocast), "masking": self._options.masking,
            "seed": self._options.seed,
        }  # fmt: skip
        folder = self._work / sha256_json(stated)[:16]
        parts, done = [], 0
        for number, shard in enumerate(shards):
            path = folder / f"{number:05d}.npz"
            found = _read(path)
            if found is None:
                found = self._shard(shard, partial(_tell, progress, done, len(grid)))
                with atomic_path(path) as temporary, temporary.open("wb") as stream:
                    np.savez(stream, **found)
                found = _read(path)
            assert found is not None  # noqa: S101
            parts.append(found)
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
            x = np.stack([prepared_tile(tile, self._bundle).pixels for tile in batch.tiles])
            found = explain(
                self._network, torch.from_numpy(x).to(options.device), methods=options.methods,
                classes=list(range(len(labels))), layers=self._layer, options=options.method_options,
                autocast=options.autocast, masking=options.masking, seed=options.seed, prepared=options.prepared,
            )  # fmt: skip
            values: dict[str, Any] = {"numbers": batch.numbers, "logits": found.logits.float().cpu().numpy()}
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
        return {"numbers": np.zeros(0, np.int64), "logits": np.zeros((0, len(labels)), np.float32),
                "measures": np.zeros((0, 3)), **raws}  # fmt: skip


def _read(path: Path) -> dict[str, Any] | None:
    """A shard that was done; None where there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None


def prepared_tile(tile: Colours, bundle: Bundle) -> Prepared:
    """A tile ``[3, s, s]`` 0..255 as the network takes it: like a picture, without a scale."""
    return prepare(_picture(tile), bundle.spec.preparation)


def _picture(tile: Colours) -> Volume:
    pixels = np.ascontiguousarray(tile, np.float32)
    return Volume(pixels=pixels, axes="HW", affine=image_affine(), modality="SM", calibrated=False)


def _cell_um(slide: Slide, grid: TileGrid, cells: tuple[int, int]) -> tuple[float, float]:
    """Micrometres of a cell along rows and columns."""
    top, left, bottom, right = grid.finest(slide)[0]
    mpp = slide.levels[0].mpp
    return float((bottom - top) * mpp[0] / cells[0]), float((right - left) * mpp[1] / cells[1])


def _explanation(
    bundle: Bundle, network: nn.Module, study: Study, options: ExplainOptions, name: str, index: int,
    raw: FloatArray, prediction: Prediction, tiles: SlideTiles, cell: tuple[float, float],
) -> Explanation:  # fmt: skip
    """The maps of all tiles as one plane; evidence against the class is cut off, as everywhere."""
    (down, across), (h, w) = tiles.shape, raw.shape[1:]
    plane = np.zeros((down, across, h, w), np.float32)
    plane[tiles.numbers // across, tiles.numbers % across] = np.maximum(raw, 0)
    cells = plane.transpose(0, 2, 1, 3).reshape(down * h, across * w)
    cell_mm = (0.0, cell[0] / 1000, cell[1] / 1000)
    empty = not cells.any()
    flags: set[Flag] = {"empty"} if empty else set()
    parameters: dict[str, Any] = {
        "tiles": len(tiles.numbers),
        "failed": len(tiles.failed),
        "fusion": bundle.spec.fusion,
    }
    return Explanation(
        method=name,
        layer=options.layer or target_layer(bundle, network),
        class_index=index,
        class_label=prediction.labels[index],
        score=float(prediction.logits[index]),
        raw=raw,
        input_map=cells,
        map=place_cells(cells, cell_mm, study.volume),
        affine=study.volume.affine,
        input_affine=plane_affine(study.volume, cell_mm),
        cell_mm=cell_mm,
        model_sha256=bundle.sha256,
        parameters=parameters | _method_options(options, name),
        flags=frozenset(flags),
        reason="no position speaks for this class" if empty else "",
    )


def _method_options(options: ExplainOptions, name: str) -> dict[str, Any]:
    """Options of a method, its defaults filled in."""
    given = {known: values for known, values in options.method_options.items() if known == name}
    return asdict(load_methods([name], given)[0][1])


def _margin(prediction: Prediction, index: int) -> FloatArray:
    """``[n]`` how far each tile's logit of a class lies above those of the others."""
    logits = prediction.window_logits
    assert logits is not None  # noqa: S101
    found: FloatArray = logits[:, index] - np.delete(logits, index, axis=1).max(axis=1)
    return found


def _extremes(prediction: Prediction, index: int) -> npt.NDArray[np.int64]:
    """The tiles that speak most for a class, then as many that speak least."""
    order = np.argsort(-_margin(prediction, index), kind="stable")
    half = min(SHOWN, len(order) // 2)
    return np.concatenate([order[:half], order[::-1][:half]]) if half else order[:1]


def _colours(slide: Slide, read: TileGrid, n: int) -> Colours:
    """``[3, s, s]`` of a tile that was read before."""
    tile: Colours = next(stream(slide, read.take(np.array([n])), 1, as_float=False)).tiles[0]
    return tile


def _judged(
    bundle: Bundle, study: Study, slide: Slide, read: TileGrid, prediction: Prediction,
    explanations: tuple[Explanation, ...],
    assess: Callable[[Study, Prepared, Prediction, tuple[Explanation, ...]], tuple[TrustReport, ...]],
) -> tuple[TrustReport, ...]:  # fmt: skip
    """The report of the most evident tile, with the worst verdict of the most evident ones."""
    assert prediction.window_logits is not None  # noqa: S101
    logits = prediction.window_logits
    reports: list[tuple[TrustReport, ...]] = []
    for n in np.argsort(-_margin(prediction, explanations[0].class_index), kind="stable")[:JUDGED].tolist():
        tile = _colours(slide, read, n)
        prepared = prepared_tile(tile, bundle)
        alone = make_prediction(bundle, logits[n : n + 1])
        own = tuple(
            replace(e, raw=e.raw[n : n + 1], flags=frozenset() if (e.raw[n] > 0).any() else frozenset({"empty"}))
            for e in explanations
        )
        picture = replace(study, volume=_picture(tile), kind="picture")
        reports.append(assess(picture, prepared, alone, own))
    found = []
    for each in zip(*reports, strict=True):
        worst = max(each, key=lambda report: _VERDICTS.index(report.verdict))
        said = (
            f"of the {len(each)} most evident tiles {sum(r.verdict == worst.verdict for r in each)} are {worst.verdict}"
        )
        reasons = tuple(dict.fromkeys((*worst.reasons, said))) if worst.verdict != "supported" else ()
        found.append(replace(each[0], verdict=worst.verdict, reasons=reasons, forwards=sum(r.forwards for r in each)))
    return tuple(found)
