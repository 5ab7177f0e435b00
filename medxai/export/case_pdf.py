"""The case report as PDF pages of A4: the decision, then for each map its verdict, picture, figures and origin.

It says what the HTML page says and no more: nothing in it identifies the patient. The bytes depend on the result alone.
"""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from medxai import __version__
from medxai.export.naming import NOTICE, ascii_text, chosen, is_hidden, method_title, percent
from medxai.export.picture import mosaic
from medxai.export.provenance import cell_text, peak
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result, TrustReport
from medxai.trust.gate.consensus import WORDS
from medxai.trust.gate.figures import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A4 in inches, and the margin.
_WIDTH, _HEIGHT, _EDGE = 8.27, 11.69, 0.6
_INK, _FAINT, _LINE, _AMBER = "#18202b", "#5a6675", "#cfd6de", "#9a5b00"
_VERDICTS = {"supported": "#1f6f43", "limited": _AMBER, "withheld": "#a11d2b"}
_MOST_CLASSES = 8
#: Height in inches of a row of the table of figures.
_ROW = 0.15


def case_pdf(result: Result, options: ExportOptions) -> bytes:
    """Return the report of all chosen explanations, one page each.

    Args:
        result: study, decision and maps; trust reports where the maps were judged.
        options: which explanations, opacity and slices of the pictures.
    """
    from matplotlib.backends.backend_pdf import PdfPages

    shown = chosen(result, options)
    title = f"{ascii_text(result.prediction.label, 80)}, {result.study.key}"
    about = {"Title": title, "Subject": NOTICE, "Creator": f"medxai {__version__}", "Producer": "medxai"}
    stream = io.BytesIO()
    # The clock has no part in the file.
    with PdfPages(stream, metadata={**about, "CreationDate": None, "ModDate": None}) as pages:
        for number, explanation in enumerate(shown):
            pages.savefig(_page(result, explanation, options, number, len(shown)))
    return stream.getvalue()


class _Sheet:
    """A figure on which text runs from the top; places are in inches from the upper left corner."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.y = _EDGE

    def write(
        self, text: str, size: float = 9, *, x: float = _EDGE, colour: str = _INK, bold: bool = False,
        right: bool = False, at: float | None = None,
    ) -> None:  # fmt: skip
        """Write one line with its top at `at`, or at the running place, which it leaves alone."""
        top = self.y if at is None else at
        self.figure.text(
            x / _WIDTH, 1 - top / _HEIGHT, ascii_text(text, 400), size=size, color=colour, va="top",
            ha="right" if right else "left", weight="bold" if bold else "normal", family="DejaVu Sans",
            parse_math=False,
        )  # fmt: skip

    def line(self, text: str, size: float = 9, **how: Any) -> None:
        """Write one line and go to the next."""
        self.write(text, size, **how)
        self.y += size * 1.45 / 72

    def paragraph(self, text: str, size: float = 9, *, most: int = 6, **how: Any) -> None:
        """Write a text broken into at most `most` lines."""
        room = int((_WIDTH - 2 * _EDGE) * 72 / (size * 0.56))
        for part in textwrap.wrap(ascii_text(text, 2000), room, max_lines=most, placeholder=" ..."):
            self.line(part, size, **how)

    def rule(self) -> None:
        """Draw a line across the sheet."""
        from matplotlib.lines import Line2D

        height = 1 - (self.y + 0.04) / _HEIGHT
        ends = [_EDGE / _WIDTH, 1 - _EDGE / _WIDTH]
        self.figure.add_artist(Line2D(ends, [height, height], color=_LINE, linewidth=0.8))
        self.y += 0.14

    def axes(self, height: float, *, x: float = _EDGE, width: float = _WIDTH - 2 * _EDGE) -> Axes:
        """Return axes of `height` at the running place, without frame and ticks."""
        box = (x / _WIDTH, 1 - (self.y + height) / _HEIGHT, width / _WIDTH, height / _HEIGHT)
        axes: Axes = self.figure.add_axes(box)
        axes.set_axis_off()
        return axes


def _page(result: Result, explanation: Explanation, options: ExportOptions, number: int, total: int) -> Figure:
    from matplotlib.figure import Figure

    sheet = _Sheet(Figure(figsize=(_WIDTH, _HEIGHT)))
    volume = result.study.volume
    sheet.write(NOTICE, 9, x=_WIDTH - _EDGE, colour=_AMBER, bold=True, right=True)
    kind = " ".join(part for part in (volume.modality, volume.body_part.title()) if part)
    sheet.line(f"Study {result.study.key}   {kind}", 9, colour=_FAINT)
    sheet.y += 0.06
    _decision(sheet, result, explanation)
    sheet.rule()
    report = result.trust_of(explanation)
    _verdict(sheet, result, explanation, report, options)
    sheet.y += 0.06
    _picture(sheet, result, explanation, options)
    _measured(sheet, report)
    sheet.rule()
    _origin(sheet, result, explanation)
    sheet.write(NOTICE, 8, at=_HEIGHT - _EDGE, colour=_FAINT)
    sheet.write(f"{number + 1} of {total}", 8, x=_WIDTH - _EDGE, at=_HEIGHT - _EDGE, colour=_FAINT, right=True)
    return sheet.figure


def _decision(sheet: _Sheet, result: Result, explanation: Explanation) -> None:
    """The decided class, and bars of the most probable ones."""
    decided = result.prediction
    sheet.line(f"{ascii_text(decided.label, 60)}   {percent(decided.probability)}", 20, bold=True)
    if explanation.class_index != decided.index:
        sheet.line(f"This page explains another class: {explanation.class_label}", 9, colour=_AMBER)
    sheet.y += 0.04
    order = np.argsort(-decided.probabilities, kind="stable")[:_MOST_CLASSES]
    height = 0.19 * len(order)
    axes = sheet.axes(height, x=_EDGE + 2.2, width=3.9)
    shares = [float(decided.probabilities[i]) for i in order]
    axes.barh(range(len(order)), [1.0] * len(order), height=0.55, color="#eceff3")
    axes.barh(
        range(len(order)), shares, height=0.55, color=["#2b5c8a" if i == decided.index else "#9fb3c6" for i in order]
    )
    axes.set_xlim(0, 1)
    axes.set_ylim(len(order) - 0.5, -0.5)
    for place, i in enumerate(order):
        top = sheet.y + 0.19 * place + 0.03
        sheet.write(ascii_text(decided.labels[i], 30), 8.5, at=top, bold=bool(i == decided.index))
        share = percent(float(decided.probabilities[i]))
        sheet.write(share, 8.5, x=_WIDTH - _EDGE, at=top, right=True)
    sheet.y += height + 0.06


def _verdict(
    sheet: _Sheet, result: Result, explanation: Explanation, report: TrustReport | None, options: ExportOptions
) -> None:
    title = f"{method_title(explanation.method)} of {ascii_text(explanation.class_label, 60)}"
    sheet.line(title, 12, bold=True)
    if report is None:
        sheet.line("Trust was not measured for this map.", 9, colour=_FAINT)
    else:
        index = "" if math.isnan(report.index) else f", index {report.index:.2f}"
        sheet.line(f"Trust: {report.verdict}{index}", 10, colour=_VERDICTS[report.verdict], bold=True)
        for reason in report.reasons[:4]:
            sheet.paragraph(f"- {reason}", 8.5, most=2)
        if is_hidden(report, options):
            sheet.line("The map is withheld; the picture shows the image alone.", 8.5, colour=_FAINT)
    if explanation.reason:
        sheet.paragraph(explanation.reason, 8.5, most=2, colour=_FAINT)
    if peak(explanation) <= 0:
        sheet.line("No positive evidence: nothing in the image raised the score of this class.", 8.5, colour=_AMBER)


def _picture(sheet: _Sheet, result: Result, explanation: Explanation, options: ExportOptions) -> None:
    """The mosaic, as wide as the sheet or as high as the place left for it, whatever is smaller."""
    tile = np.asarray(mosaic(result, explanation, options))
    rows, columns = tile.shape[:2]
    report = result.trust_of(explanation)
    figures = 0.0 if report is None else _ROW * (len(shown(report.figures)) + -(-len(report.agreement) // 2))
    # Below it: the figures, the origin and the foot.
    room_width, room_height = _WIDTH - 2 * _EDGE, min(4.9, max(2.0, _HEIGHT - _EDGE - sheet.y - figures - 2.2))
    scale = min(room_width / columns, room_height / rows)
    width, height = columns * scale, rows * scale
    axes = sheet.axes(height, x=(_WIDTH - width) / 2, width=width)
    # Not resampled: the file holds the picture's own pixels.
    axes.imshow(tile, interpolation="none", aspect="auto")
    sheet.y += height + 0.12


def _measured(sheet: _Sheet, report: TrustReport | None) -> None:
    """Figures of trust, then the agreement with other families in two columns."""
    if report is None:
        return
    for title, value in shown(report.figures):
        _figure(sheet, title, value, sheet.y, _EDGE, _WIDTH - 2 * _EDGE)
        sheet.y += _ROW
    rows = [(f"Agreement: {WORDS.get(name, name)}", value) for name, value in report.agreement.items()]
    half = -(-len(rows) // 2)
    column = (_WIDTH - 2 * _EDGE - 0.3) / 2
    for place, (name, value) in enumerate(rows):
        left = _EDGE + (column + 0.3) * (place // half)
        _figure(sheet, name, value, sheet.y + _ROW * (place % half), left, column)
    sheet.y += _ROW * half + 0.05


def _figure(sheet: _Sheet, name: str, value: float, top: float, left: float, width: float) -> None:
    sheet.write(_fitting(name, int(width * 17) - 9), 7.5, x=left, at=top)
    words = "not defined" if math.isnan(value) else f"{value:.3g}"
    sheet.write(words, 7.5, x=left + width, at=top, right=True, colour=_FAINT if math.isnan(value) else _INK)


def _fitting(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def _origin(sheet: _Sheet, result: Result, explanation: Explanation) -> None:
    parameters = ", ".join(f"{k} = {v}" for k, v in sorted(explanation.parameters.items()))
    rows = (
        ("Layer", f"{explanation.layer}; one cell {cell_text(result, explanation)}; score {explanation.score:.3f}"),
        ("Parameters", parameters or "none"),
        ("Model", result.prediction.model),
        ("Model SHA-256", result.prediction.model_sha256),
        ("Input SHA-256", result.study.input_sha256),
        ("Configuration SHA-256", result.config_sha256),
        ("Software", f"medxai {__version__}"),
    )
    for name, value in rows:
        sheet.write(name, 7.5, colour=_FAINT)
        sheet.line(_fitting(ascii_text(value, 200), 92), 7.5, x=_EDGE + 1.7)
    sheet.y += 0.06
    sheet.paragraph(
        "A class activation map says which places moved the model's score. It does not outline disease; its finest "
        "detail is one cell; no colour does not mean no finding. Research software, not a medical device.", 7.5,
        colour=_FAINT,
    )  # fmt: skip
