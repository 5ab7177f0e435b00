"""Analyses on disk: what one stage leaves for the next, so that a killed batch resumes after the model."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medxai.errors import ExplainError
from medxai.explain.slide_plane import place_cells, plane_affine
from medxai.files import atomic_path
from medxai.predict.bundle import Bundle
from medxai.prepare.grid import plan_grid
from medxai.study import Affine, Confidence, Explanation, FloatArray, Prediction, SlideTiles, Study, TrustReport

_FORMAT = 4


def save_analysis(
    path: Path,
    prediction: Prediction,
    explanations: tuple[Explanation, ...],
    trust: tuple[TrustReport, ...] = (),
) -> Path:
    """Write prediction, maps (layer grid and input grid) and their trust reports to one ``.npz``, atomically.

    The map on the original grid is left out: it follows exactly from the input grid.
    """
    each = prediction.window_probabilities
    arrays: dict[str, Any] = {
        "logits": prediction.logits,
        "probabilities": prediction.probabilities,
        "window_logits": prediction.window_logits if prediction.window_logits is not None else prediction.logits[None],
        "window_probabilities": each if each is not None else prediction.probabilities[None],
    }
    header = {
        "format": _FORMAT,
        "labels": prediction.labels,
        "index": prediction.index,
        "model": prediction.model,
        "model_sha256": prediction.model_sha256,
        "explanations": [
            {
                "method": item.method,
                "layer": item.layer,
                "class_index": item.class_index,
                "score": item.score,
                "cell_mm": item.cell_mm,
                "parameters": dict(item.parameters),
                "flags": sorted(item.flags),
                "reason": item.reason,
            }
            for item in explanations
        ],
        "trust": [asdict(report) for report in trust],
        "confidence": asdict(prediction.confidence) if prediction.confidence else None,
    }
    if (tiles := prediction.tiles) is not None:
        header["tiles"] = {
            "shape": tiles.shape, "flags": tiles.flags, "failed": tiles.failed, "shown_as": tiles.shown_as,
            "trust": [[n, asdict(report)] for n, report in tiles.trust],
        }  # fmt: skip
        arrays |= {"tile_numbers": tiles.numbers, "tile_boxes": tiles.boxes, "tile_tissue": tiles.tissue,
                   "tile_shown": tiles.shown, "tile_pictures": tiles.pictures}  # fmt: skip
        if tiles.attention is not None:
            arrays["tile_attention"] = tiles.attention
    for i, item in enumerate(explanations):
        arrays[f"raw_{i}"] = item.raw
        arrays[f"input_{i}"] = item.input_map
    arrays["header"] = np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    return path


def load_analysis(
    path: Path, study: Study, bundle: Bundle
) -> tuple[Prediction, tuple[Explanation, ...], tuple[TrustReport, ...]]:
    """Read what `save_analysis` wrote and place the maps in `study` again.

    Raises:
        ExplainError: unreadable file, or one of another model.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        header = json.loads(arrays["header"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        msg = f"the stored analysis cannot be read ({type(error).__name__}); delete it and run again"
        raise ExplainError(msg, study=study.key) from error
    if header["format"] != _FORMAT or header["model_sha256"] != bundle.sha256:
        msg = "the stored analysis belongs to another model or version; delete it and run again"
        raise ExplainError(msg, study=study.key)
    prediction = Prediction(
        labels=tuple(header["labels"]),
        logits=arrays["logits"],
        probabilities=arrays["probabilities"],
        index=header["index"],
        model=header["model"],
        model_sha256=header["model_sha256"],
        window_logits=arrays["window_logits"],
        window_probabilities=arrays["window_probabilities"],
        confidence=_confidence(header["confidence"]),
        reject=bundle.spec.reject,
        tiles=_tiles(header.get("tiles"), arrays),
    )
    grid = plan_grid(study.volume, bundle.spec.preparation)

    def placed(item: dict[str, Any], cells: FloatArray) -> tuple[FloatArray, Affine]:
        if prediction.tiles is None:
            return grid.backward(cells), grid.affine
        return place_cells(cells, tuple(item["cell_mm"]), study.volume), plane_affine(study.volume, item["cell_mm"])

    explanations = tuple(
        Explanation(
            method=item["method"],
            layer=item["layer"],
            class_index=item["class_index"],
            class_label=prediction.labels[item["class_index"]],
            score=item["score"],
            raw=arrays[f"raw_{i}"],
            input_map=arrays[f"input_{i}"],
            map=(at := placed(item, arrays[f"input_{i}"]))[0],
            affine=study.volume.affine,
            input_affine=at[1],
            cell_mm=tuple(item["cell_mm"]),
            model_sha256=header["model_sha256"],
            parameters=item["parameters"],
            flags=frozenset(item["flags"]),
            reason=item["reason"],
        )
        for i, item in enumerate(header["explanations"])
    )
    trust = tuple(_report(item) for item in header["trust"])
    return prediction, explanations, trust


def _tiles(stored: dict[str, Any] | None, arrays: dict[str, Any]) -> SlideTiles | None:
    if stored is None:
        return None
    down, across = stored["shape"]
    named = ("tile_numbers", "tile_boxes", "tile_tissue")
    numbers, boxes, tissue = (arrays[name] for name in named)
    flags, failed = tuple(stored["flags"]), tuple(stored["failed"])
    return SlideTiles(
        (down, across), numbers, boxes, tissue, flags, failed, arrays["tile_shown"],
        tuple(stored["shown_as"]), arrays["tile_pictures"], arrays.get("tile_attention"),
        tuple((int(n), _report(item)) for n, item in stored["trust"]),
    )  # fmt: skip


def _report(item: dict[str, Any]) -> TrustReport:
    return TrustReport(**(item | {"reasons": tuple(item["reasons"]), "masking": tuple(item["masking"])}))


def _confidence(stored: dict[str, Any] | None) -> Confidence | None:
    if stored is None:
        return None
    kinds = {name: tuple(stored[name]) for name in ("aleatoric", "epistemic")}
    return Confidence(**{**stored, **kinds})
