"""One self-contained HTML page per case: decision, evidence over the image, limits, provenance."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai import __version__
from medxai.explain.cine import DECISIVE, CineEvidence, FramePeak, cine_evidence
from medxai.explain.slices import NAMED, rank_slices, slice_shares
from medxai.export.colours import FLOOR, alpha, heat, table
from medxai.export.course import class_colours
from medxai.export.display import View, evidence_curve, frames, plane, rgb_plane, view_of, window_of
from medxai.export.inlined import jpeg_uri, png_uri, template
from medxai.export.naming import NOTICE, chosen, is_hidden, method_title, percent, uid_name
from medxai.export.provenance import cell_text, grid_text, peak
from medxai.export.slide import reduced
from medxai.export.slide_summary import NO_OBJECTS, summary
from medxai.files import write_text
from medxai.settings import ExportOptions
from medxai.study import Explanation, Prediction, Result, TrustReport
from medxai.trust.gate.consensus import WORDS
from medxai.trust.gate.figures import shown

if TYPE_CHECKING:
    pass

ROLE = "page"

#: Levels of the overlay's palette: fewer compress better, and a map has no finer detail to lose.
_LEVELS = 64
#: Decisive frames of a cine that get a button of their own.
_THUMBNAILS = 12

_FLAGS = {
    "empty": "No positive evidence: nothing in the image raised the score of this class.",
    "unstable": "Unstable: small changes of the input move the evidence.",
    "class_agnostic": "Not class-specific: the map looks the same for other classes.",
}


def applies(result: Result) -> str | None:
    """Return None: every result can be shown."""
    return None if result.explanations else "there is no explanation"


def write(result: Result, folder: Path, options: ExportOptions) -> list[Path]:
    """Write ``case.html`` and return its path; DICOM objects already in `folder` are listed by UID."""
    text = template("case.html.j2").render(**context(reduced(result), options, _objects(folder)))
    return [write_text(folder / "case.html", text)]


def context(result: Result, options: ExportOptions, objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the values of the template; nothing in them identifies the patient.

    Args:
        result: study, decision and maps.
        options: sizes and opacity.
        objects: rows of the table of DICOM objects, see `_objects`.
    """
    volume, decided = result.study.volume, result.prediction
    view = view_of(volume)
    maps = chosen(result, options)
    cine = cine_evidence(volume, decided, maps[0])
    order = np.argsort(-decided.probabilities, kind="stable")
    return {
        "notice": NOTICE,
        "key": result.study.key,
        "modality": volume.modality,
        "body_part": volume.body_part.title(),
        "label": decided.label,
        "probability": percent(decided.probability),
        "classes": [
            {
                "name": decided.labels[i],
                "percent": percent(float(decided.probabilities[i])),
                "width": round(100.0 * float(decided.probabilities[i]), 2),
                "decided": int(i) == decided.index,
            }
            for i in order
        ],
        "explanations": [_describe(explanation, result, options) for explanation in maps],
        "hidden": [is_hidden(result.trust_of(explanation), options) for explanation in maps],
        "what": "frame" if volume.axes == "THW" else "slice",
        "total": frames(volume),
        "view": view,
        "opacity": round(100 * options.overlay_opacity),
        "scale": _scale_stops(),
        "cine": _cine(result, cine) if cine is not None else None,
        "confidence": _confidence(decided),
        "data": _viewer_data(result, maps, view, options),
        "provenance": _provenance(result),
        "objects": objects,
        "no_objects": NO_OBJECTS if result.study.kind == "slide" else "",
        "slide": summary(result),
        "notes": result.study.notes,
    }


def _cine(result: Result, evidence: CineEvidence) -> dict[str, Any]:
    """Course of the probabilities, decisive frames and their peaks for the template and its script."""
    labels, index = result.prediction.labels, result.explanations[0].class_index
    colours = [f"rgb({r} {g} {b})" for r, g, b in class_colours(len(labels))]
    total = len(evidence.probabilities)
    places = {peak.frame: peak for peak in evidence.peaks}
    step = max(1, -(-len(evidence.decisive) // _THUMBNAILS))
    return {
        "label": labels[index],
        "curves": [
            {
                "name": name,
                "colour": colours[k],
                "points": " ".join(
                    f"{(t + 0.5) * 1000 / total:.1f},{96 - 92 * float(p):.1f}"
                    for t, p in enumerate(evidence.probabilities[:, k])
                ),
                "votes": int(evidence.votes[k]),
            }
            for k, name in enumerate(labels)
        ],
        "decisive": list(evidence.decisive),
        "width": round(1000 / total, 2),
        "thumbnails": [
            {"frame": frame, "percent": percent(float(evidence.probabilities[frame, index])),
             "peak": _peak_text(places.get(frame))}
            for frame in evidence.decisive[::step]
        ],
        "threshold": percent(DECISIVE),
        "warning": evidence.warning(),
    }  # fmt: skip


def _peak_text(peak: FramePeak | None) -> str:
    if peak is None:
        return "no evidence"
    place = f"row {peak.row}, column {peak.column}"
    return place if peak.depth_mm is None else f"{peak.depth_mm:.0f} mm deep"


def _confidence(prediction: Prediction) -> dict[str, Any] | None:
    """How sure the network is, for the template."""
    sure = prediction.confidence
    if sure is None:
        return None

    def text(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.0%}"

    return {
        "percent": text(sure.of(prediction.index)),
        "low": sure.of(prediction.index) < sure.low,
        "classes": [
            {"name": name, "aleatoric": text(sure.aleatoric[k]), "epistemic": text(sure.epistemic[k])}
            for k, name in enumerate(prediction.labels)
        ],
        "passes": sure.passes,
        "pictures": sure.pictures,
    }


def _describe(explanation: Explanation, result: Result, options: ExportOptions) -> dict[str, Any]:
    return {
        "method": method_title(explanation.method),
        "label": explanation.class_label,
        "layer": explanation.layer,
        "cell": cell_text(result, explanation) + (" (d x h x w)" if all(v > 0 for v in explanation.cell_mm) else ""),
        "grid": grid_text(result, explanation),
        # A withheld map sends nobody to a slice.
        "slices": None if is_hidden(result.trust_of(explanation), options) else _slices(result, explanation),
        "score": f"{explanation.score:.3f}",
        "peak": f"{peak(explanation):.4g}",
        "empty": peak(explanation) <= 0,
        "flags": [_FLAGS[flag] for flag in sorted(explanation.flags)],
        "reason": explanation.reason,
        "parameters": ", ".join(f"{k} = {v}" for k, v in sorted(explanation.parameters.items())),
        "decided": explanation.class_index == result.prediction.index,
        "trust": _trust(result.trust_of(explanation)),
    }


def _slices(result: Result, explanation: Explanation) -> dict[str, Any] | None:
    """Bars of the evidence per slice in 0..1, the first slices and what to know of them, for the template."""
    ranking = rank_slices(result.study.volume, explanation)
    if ranking is None or not ranking.slices:
        return None
    shares = slice_shares(explanation.map)
    total, top = len(shares), float(shares.max())
    return {
        "bars": [
            {"x": f"{i * 1000 / total:.1f}", "y": f"{96 - 92 * share / top:.1f}", "height": f"{92 * share / top:.1f}"}
            for i, share in enumerate(shares.tolist())
        ],
        "width": f"{1000 / total * 0.82:.2f}",
        "top": f"{top:.1%}",
        "first": [{"index": s.index, "text": s.text()} for s in ranking.slices[:NAMED]],
        "note": ranking.note,
    }


def _trust(report: TrustReport | None) -> dict[str, Any] | None:
    """Verdict, reasons and figures of one map for the template."""
    if report is None:
        return None
    index = "" if math.isnan(report.index) else f"{report.index:.2f}"
    limits = f"limited below {report.limited_below:.2f}, withheld below {report.withheld_below:.2f}" if index else ""
    figures = [(title, _value(value)) for title, value in shown(report.figures)]
    agreement = [(WORDS.get(name, name).capitalize(), _value(v)) for name, v in report.agreement.items()]
    return {"verdict": report.verdict, "reasons": report.reasons, "index": index, "limits": limits, "figures": figures,
            "masking": " and ".join(report.masking), "agreement": agreement,
            "consensus": _value(report.consensus)}  # fmt: skip


def _value(number: float) -> str:
    return "not defined" if math.isnan(number) else f"{number:.3g}"


def _viewer_data(result: Result, maps: tuple[Explanation, ...], view: View, options: ExportOptions) -> dict[str, Any]:
    """Return images, overlays and evidence curves for the viewer's script, as data URIs and numbers."""
    volume = result.study.volume
    window, total = window_of(volume, result.model_window), frames(volume)
    rows, columns = view.apply(np.empty(volume.shape[-2:], dtype=np.uint8)).shape
    longest = options.page_pixels * 2 if total == 1 else options.page_pixels
    size = view.size(rows, columns, longest)
    half = view.size(rows, columns, max(96, longest // 2))
    quality = 88 if total <= 4 else 80 if total <= 60 else 66
    images = [_jpeg(view.apply(rgb_plane(volume, index, window)), size, quality) for index in range(total)]
    layers = []
    for explanation in maps:
        values = explanation.normalised()
        if (evidence := cine_evidence(volume, result.prediction, explanation)) is not None:
            # As in the other pictures: where a frame does not speak for the class, its map says nothing.
            speaking = np.isin(np.arange(total), evidence.decisive)
            values = np.where(speaking[:, None, None], values, np.float32(0))
        curve = evidence_curve(volume, values)
        layers.append(
            {
                "overlays": [_overlay(view.apply(plane(volume, values, index)), half) for index in range(total)],
                "curve": [round(float(v), 3) for v in curve],
                "peak": int(curve.argmax()),
            }
        )
    return {
        "width": size[0],
        "height": size[1],
        "images": images,
        "layers": layers,
        "seconds": volume.frame_seconds or 0.1,
    }


def _jpeg(tile: npt.NDArray[np.uint8], size: tuple[int, int], quality: int) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(tile)).resize(size, Image.Resampling.LANCZOS)
    if np.array_equal(tile[..., 0], tile[..., 1]) and np.array_equal(tile[..., 1], tile[..., 2]):
        image = image.convert("L")
    return jpeg_uri(image, quality, optimize=True)


def _overlay(values: npt.NDArray[np.float32], size: tuple[int, int]) -> str:
    """Return the evidence as a small palette PNG with transparency in its palette; empty without evidence."""
    from PIL import Image

    if float(values.max(initial=0.0)) < FLOOR:
        return ""
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32)).resize(size, Image.Resampling.BILINEAR)
    levels = np.rint(np.clip(np.asarray(image), 0.0, 1.0) * (_LEVELS - 1)).astype(np.uint8)
    steps = np.linspace(0.0, 1.0, _LEVELS, dtype=np.float32)
    indexed = Image.fromarray(levels, mode="P")
    indexed.putpalette(heat(steps).tobytes())
    clear = bytes(np.rint(alpha(steps, 1.0) * 255).astype(np.uint8).tolist())
    stream = io.BytesIO()
    indexed.save(stream, format="PNG", transparency=clear, optimize=True)
    return png_uri(stream.getvalue())


def _scale_stops() -> str:
    picked = table()[np.linspace(0, 255, 10).astype(int)]
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in picked.tolist())


def _provenance(result: Result) -> list[tuple[str, str]]:
    return [
        ("Model", result.prediction.model),
        ("Model bundle SHA-256", result.prediction.model_sha256),
        ("Input SHA-256", result.study.input_sha256),
        ("Configuration SHA-256", result.config_sha256),
        ("Software", f"medxai {__version__}"),
    ]


def _objects(folder: Path) -> list[dict[str, Any]]:
    """Return one row per DICOM series in `folder`: kind, number of instances, series and instance UID."""
    import pydicom

    rows: dict[str, dict[str, Any]] = {}
    tags = ["SOPClassUID", "SeriesInstanceUID", "SOPInstanceUID"]
    for path in sorted(folder.glob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        row = rows.setdefault(
            str(header.SeriesInstanceUID),
            {
                "kind": uid_name(header.SOPClassUID).replace(" Storage", ""),
                "count": 0,
                "series": str(header.SeriesInstanceUID),
                "instance": str(header.SOPInstanceUID),
            },
        )
        row["count"] += 1
    return list(rows.values())
