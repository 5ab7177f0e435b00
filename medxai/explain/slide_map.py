"""A whole slide through a network of tiles: every tile of tissue decided and explained, the maps one plane of cells.

Tiles touch and are streamed, so that memory holds one batch; shards are kept on disk and a killed run goes on with the
next. A tile that cannot be read is left out. The map is in cells of the network's layer and is drawn on one level of
the slide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import ExplainError
from medxai.explain.engine import load_methods
from medxai.explain.slide_plane import place_cells, plane_affine
from medxai.explain.slide_shards import Progress, Shards, changed, picture, prepared_tile
from medxai.explain.study_map import ExplainOptions, target_layer
from medxai.ingest.slides.colour_change import Change, colour_change
from medxai.ingest.slides.open import open_slide
from medxai.ingest.slides.quality import TileMeasures, judge
from medxai.ingest.slides.stain import Stains
from medxai.ingest.slides.tiles import TileGrid, stream, tile_grid
from medxai.ingest.slides.tissue import Tissue, find_tissue
from medxai.ingest.slides.whitening import Spread
from medxai.predict.infer import activate, make_prediction
from medxai.predict.slide_pooling import load_attention, pool
from medxai.prepare.prepare import Prepared
from medxai.study import (
    Explanation,
    Flag,
    FloatArray,
    Prediction,
    SlideTiles,
    Study,
    TrustReport,
)

if TYPE_CHECKING:
    from torch import nn

    from medxai.ingest.slides.level import Colours, Slide
    from medxai.predict.bundle import Bundle
    from medxai.predict.bundle_spec import SlideSpec
    from medxai.settings import SlideOptions

#: Most evident tiles whose explanation is put to the test.
JUDGED = 5
#: Tiles at either end of the order that are shown.
SHOWN = 9
#: From good to bad.
_VERDICTS = ("supported", "limited", "withheld")


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
        `input_map` on the plane of cells; and a report for each, from the most evident tile with the middle verdict of
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
    attention = load_attention(bundle) if options.slide.pooling == "attention" else None
    with open_slide(list(files), name=study.key) as slide:
        tissue = find_tissue(slide)
        grid = tile_grid(slide, tissue, size=block.tile, mpp=block.mpp, least_tissue=block.least_tissue)
        change = _change(slide, grid, tissue, options.slide, block)
        whole = Shards(bundle, network, study, slide, tissue, change, options, work).run(grid, progress)
        if not len(whole["numbers"]):
            raise ExplainError(f"none of {len(grid)} tiles of tissue can be read", study=study.key)
        quality = judge(TileMeasures(*row) for row in whole["measures"].tolist())
        unlike = whole["distances"] > getattr(network, "far", np.inf)
        named = (("blurred", quality.blurred), ("pen", quality.inked), ("fold", quality.folded), ("unlike", unlike))
        flags = [" ".join(name for name, where in named if where[n]) for n in range(len(whole["numbers"]))]
        if options.slide.flagged == "leave_out":
            whole, flags = _without_flagged(whole, flags, study.key)
        prediction = make_prediction(bundle, whole["logits"])
        weights: FloatArray | None = None
        if attention is not None:
            logits, weights = pool(attention, whole["features"])
            probabilities = activate(logits, bundle.spec)
            prediction = replace(prediction, logits=logits, probabilities=probabilities, index=int(np.argmax(logits)))
        index = prediction.index if options.class_label is None else labels.index(options.class_label)
        cell = _cell_um(slide, grid, whole[f"raw_0_{index}"].shape[1:])
        read = grid.take(np.searchsorted(grid.numbers, whole["numbers"]))
        groups = _groups(prediction, index)
        shown = np.concatenate([positions for _, positions in groups])
        tiles = SlideTiles(
            shape=grid.shape,
            numbers=read.numbers,
            boxes=read.finest(slide),
            tissue=read.shares,
            flags=tuple(flags),
            failed=tuple(whole["failed"]),
            shown=shown,
            shown_as=tuple(words for words, positions in groups for _ in positions),
            pictures=np.stack([_colours(slide, read, n) for n in shown.tolist()]).transpose(0, 2, 3, 1),
            attention=weights,
        )
        about = (bundle, network, study, options)
        explanations = tuple(
            _explanation(*about, name, index, whole[f"raw_{n}_{index}"], prediction, tiles, cell)
            for n, name in enumerate(options.methods)
        )
        trust: tuple[TrustReport, ...] = ()
        if assess is not None:
            most = options.slide.judged
            trust, each = _judged(bundle, study, slide, read, change, most, prediction, explanations, assess)
            tiles = replace(tiles, trust=each)
    return replace(prediction, tiles=tiles), explanations, trust


def _change(slide: Slide, grid: TileGrid, tissue: Tissue, how: SlideOptions, block: SlideSpec) -> Change | None:
    """What is done to colours before the network; None for nothing."""
    stains = spread = None
    if (known := block.colours) is not None:
        white = np.array(known.white, np.float32)
        stains = Stains(np.array(known.vectors).T, np.array(known.strongest), white)
        spread = Spread(np.array(known.variances), np.array(known.directions).T, white)
    return colour_change(slide, grid, tissue.glass, icc=how.icc, stain=how.stain, stains=stains, spread=spread)


def _without_flagged(whole: dict[str, Any], flags: list[str], key: str) -> tuple[dict[str, Any], list[str]]:
    """The same without flagged tiles, which are told of like those that could not be read."""
    kept = np.flatnonzero([not words for words in flags])
    if not len(kept):
        raise ExplainError(
            f"each of {len(flags)} tiles is blurred, folded, under ink or unlike those of training", study=key
        )
    left = [f"tile {whole['numbers'][n]}: left out: {words}" for n, words in enumerate(flags) if words]
    fewer = {name: value if name == "failed" else value[kept] for name, value in whole.items()}
    return fewer | {"failed": whole["failed"] + left}, [""] * len(kept)


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
        "fusion": bundle.spec.fusion if options.slide.pooling == "bundle" else "attention",
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


def _groups(prediction: Prediction, index: int) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """Tiles that are shown: most and least for a class, most for each other of several, least sure."""
    each, labels = prediction.window_probabilities, prediction.labels
    assert each is not None  # noqa: S101
    order = np.argsort(-_margin(prediction, index), kind="stable")
    half = min(SHOWN, (len(order) + 1) // 2)
    found = [(f"most {labels[index]}", order[:half]), (f"least {labels[index]}", order[half:][::-1][:half])]
    for other in range(len(labels)):
        if other != index and len(labels) > 2:
            mine = np.argsort(-_margin(prediction, other), kind="stable")
            found.append((f"most {labels[other]}", mine[each[mine].argmax(1) == other][:SHOWN]))
    doubtful = np.argsort(each.max(1), kind="stable")[:half]
    return [*found, ("least sure", doubtful)]


def _colours(slide: Slide, read: TileGrid, n: int) -> Colours:
    """``[3, s, s]`` of a tile that was read before."""
    tile: Colours = next(stream(slide, read.take(np.array([n])), 1, as_float=False)).tiles[0]
    return tile


def _judged(
    bundle: Bundle, study: Study, slide: Slide, read: TileGrid, change: Change | None, most: int,
    prediction: Prediction, explanations: tuple[Explanation, ...],
    assess: Callable[[Study, Prepared, Prediction, tuple[Explanation, ...]], tuple[TrustReport, ...]],
) -> tuple[tuple[TrustReport, ...], tuple[tuple[int, TrustReport], ...]]:  # fmt: skip
    """The report of the most evident tile, with the middle verdict of the `JUDGED` most evident ones; those of each."""
    assert prediction.window_logits is not None  # noqa: S101
    logits = prediction.window_logits
    order = np.argsort(-_margin(prediction, explanations[0].class_index), kind="stable")[: max(JUDGED, most)].tolist()
    reports: list[tuple[TrustReport, ...]] = []
    for n in order:
        tile = changed(_colours(slide, read, n), change)
        prepared = prepared_tile(tile, bundle)
        alone = make_prediction(bundle, logits[n : n + 1])
        own = tuple(
            replace(e, raw=e.raw[n : n + 1], flags=frozenset() if (e.raw[n] > 0).any() else frozenset({"empty"}))
            for e in explanations
        )
        reports.append(assess(replace(study, volume=picture(tile), kind="picture"), prepared, alone, own))
    found = [middle_report(each) for each in zip(*reports[:JUDGED], strict=True)]
    return tuple(found), tuple((n, each[0]) for n, each in zip(order, reports, strict=True))


def middle_report(each: Sequence[TrustReport]) -> TrustReport:
    """The report of the first tile with the middle verdict of several; of two middle ones the worse.

    Thresholds are learnt on single tiles. The worst of five would withhold sound maps five times as often as they
    promise; the middle one does so more rarely than a single tile, and catches broken maps more often.

    Args:
        each: reports of tiles, the most evident first.
    """
    ranked = sorted(each, key=lambda report: _VERDICTS.index(report.verdict))
    middle = ranked[len(ranked) // 2]
    counted = ((sum(r.verdict == name for r in each), name) for name in _VERDICTS)
    said = ", ".join(f"{count} {name}" for count, name in counted if count)
    reasons: tuple[str, ...] = ()
    if middle.verdict != "supported":
        reasons = tuple(dict.fromkeys((*middle.reasons, f"of the {len(each)} most evident tiles: {said}")))
    return replace(each[0], verdict=middle.verdict, reasons=reasons, forwards=sum(r.forwards for r in each))
