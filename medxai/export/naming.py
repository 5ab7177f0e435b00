"""Names of output files and short texts: role, method and class only, never anything of the patient."""

from __future__ import annotations

import math
import re
import unicodedata

from medxai.errors import ExplainError
from medxai.explain.registry import get_method
from medxai.settings import ExportOptions
from medxai.study import Explanation, Result, TrustReport

#: The sentence that every picture and object carries.
NOTICE = "AI explanation, not for diagnosis"

#: Maps of several inputs are no methods of the registry: title, and the family whose code they take.
SEVERAL_INPUTS = {"synergistic": ("Synergistic Activation Map", "score_cam")}


def ascii_text(text: str, limit: int) -> str:
    """Return `text` in ASCII without backslashes and line breaks, at most `limit` characters.

    Objects keep the character set of their source, which may not hold a class name of another script; ASCII
    is part of every one (PS3.5 section 6.1.2). The backslash separates values.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    plain = " ".join(plain.replace("\\", "/").split())
    return plain if len(plain) <= limit else plain[: limit - 3].rstrip() + "..."


def slug(text: str) -> str:
    """Return `text` as lower-case letters, digits and hyphens, at most 40 characters; never empty."""
    plain = re.sub(r"[^a-z0-9]+", "-", ascii_text(text, 200).lower()).strip("-")
    return plain[:40].rstrip("-") or "class"


def stem(role: str, explanation: Explanation) -> str:
    """Return the file name without suffix; the class index keeps classes with equal slugs apart."""
    return f"{role}_{slug(explanation.method)}_{explanation.class_index}-{slug(explanation.class_label)}"


def chosen(result: Result, options: ExportOptions) -> tuple[Explanation, ...]:
    """Return the explanations that become objects."""
    return result.explanations[:1] if options.explanations == "primary" else result.explanations


def with_evidence(result: Result, options: ExportOptions) -> list[tuple[int, Explanation]]:
    """Return the chosen explanations with some positive value, each with its place among the chosen ones."""
    return [(n, item) for n, item in enumerate(chosen(result, options)) if float(item.map.max(initial=0.0)) > 0]


def method_title(method: str) -> str:
    """Return the name of a method as people write it (``gradcam`` -> ``Grad-CAM``)."""
    if method in SEVERAL_INPUTS:
        return SEVERAL_INPUTS[method][0]
    try:
        return get_method(method).INFO.title
    except ExplainError:  # a stored result of a method that this version no longer has
        return method


def is_hidden(report: TrustReport | None, options: ExportOptions) -> bool:
    """True for a map that pictures show without its overlay: the gate withholds it and nobody asked otherwise."""
    return report is not None and report.verdict == "withheld" and not options.send_withheld


def withheld_mark(result: Result, explanation: Explanation) -> str:
    """What a series is called first when it holds a map that the gate withholds; empty otherwise."""
    report = result.trust_of(explanation)
    return "WITHHELD BY TRUST GATE, " if report is not None and report.verdict == "withheld" else ""


def series_title(result: Result, explanation: Explanation) -> str:
    """SeriesDescription of a map's object: method, class, that it is no diagnosis, and first whether it is withheld."""
    what = f"{method_title(explanation.method)} {explanation.class_label}"
    return ascii_text(f"{withheld_mark(result, explanation)}{what}: {NOTICE}", 64)


def trust_line(report: TrustReport) -> str:
    """The verdict in one line, with its index where it was calibrated and its first reason where there is one."""
    words = {"supported": "Trust: supported", "limited": "Trust: LIMITED", "withheld": "MAP WITHHELD"}[report.verdict]
    index = "" if math.isnan(report.index) else f" (index {report.index:.2f})"
    return words + index + (f": {report.reasons[0]}" if report.reasons else "")


def uid_name(uid: str) -> str:
    """Return the name of a SOP class or transfer syntax, or the UID itself when nobody knows it."""
    from pydicom.uid import UID

    # Newer than pydicom 3.0's dictionary.
    known = {"1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage"}
    return known.get(str(uid)) or str(UID(str(uid)).name)


def percent(value: float) -> str:
    """Return a probability as a percentage with one decimal; never a rounded-up certainty."""
    text = f"{100.0 * value:.1f} %"
    if text == "100.0 %" and value < 1.0:
        return "> 99.9 %"
    return "< 0.1 %" if text == "0.0 %" and value > 0.0 else text
