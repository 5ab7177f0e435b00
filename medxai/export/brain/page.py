"""Self-contained pages: one for each explained subject, and one for the cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai import __version__
from medxai.explain.brain_evidence import LEAST_AGREEMENT, BrainEvidence, sentences
from medxai.export.brain.report import MARKER
from medxai.export.brain.subject_view import TITLES, UNITS, SubjectView
from medxai.export.inlined import png_uri, template
from medxai.export.naming import NOTICE, percent
from medxai.files import write_text
from medxai.prepare.brain.subject import MODALITIES

if TYPE_CHECKING:
    pass

#: Rows of a map in the tables of the page; the files hold all.
_ROWS = 8


def write_page(view: SubjectView, folder: Path, group_words: str, notes: Sequence[str]) -> Path:
    """Write ``page.html`` of a subject, with the pictures that lie in `folder` in it.

    Args:
        view: the subject.
        folder: where its files lie already.
        group_words: what the group is.
        notes: what was not written and why.
    """
    found = view.evidence
    present = [name for name in MODALITIES if name in (*found.modalities, *found.missing)]
    context = {
        "subject": view.features.subject,
        "label": found.labels[found.positive],
        "decided": found.labels[found.decided],
        "probability": percent(found.probability),
        "notice": NOTICE,
        "marker": MARKER,
        "sentences": sentences(found),
        "modalities": [_modality(found, name) for name in present],
        "whole": f"{found.whole:+.3f}",
        "nothing": f"{found.nothing:+.3f}",
        "joint": f"{found.joint:+.4f}",
        "synergy": f"{found.map_synergy:+.4f}",
        "least": LEAST_AGREEMENT,
        "has": {
            "alff": (folder / "glass_brain.png").is_file(),
            "dfc": (folder / "course_dfc.png").is_file(),
            "group": (folder / "group.png").is_file(),
            "atlas": view.labels is not None,
        },
        "alff_words": f"In {view.space}. The layer's own grid is {_cells(found, 'alff')}; no finer detail is real.",
        "regions": _regions(view),
        "matrices": [_matrix(view, name) for name in view.matrices],
        "group_words": group_words,
        "files": sorted(path.name for path in folder.iterdir() if path.name != "page.html" and path.name[0] != "."),
        "notes": notes,
        "provenance": [
            ("Model", view.model),
            ("Model bundle SHA-256", view.model_sha256),
            ("Features SHA-256", view.inputs_sha256),
            ("Configuration SHA-256", view.config_sha256),
            ("Software", f"medxai {__version__}"),
        ],
    }

    def figure(name: str, caption: str) -> Any:
        from markupsafe import Markup, escape

        source = picture(folder / f"{name}.png")
        return Markup(  # noqa: S704 - all parts are escaped or made here
            f'<figure><img alt="{escape(name)}" src="{source}"><figcaption>{escape(caption)}</figcaption></figure>'
        )

    return write_text(folder / "page.html", template("brain_subject.html.j2").render(figure=figure, **context))


def write_index(
    folder: Path, model: str, everyone: Sequence[tuple[BrainEvidence, str, bool]], group_words: str,
    figures: Sequence[tuple[str, Path]], failures: Sequence[tuple[str, str]],
) -> Path:  # fmt: skip
    """Write ``index.html`` of a cohort.

    Args:
        folder: of the cohort, which holds a folder for each subject.
        model: name and version.
        everyone: evidence, group as participants.tsv has it, and whether it counts for the group map.
        group_words: what the group map is of.
        figures: pictures of it with their titles.
        failures: subjects without a page, and why.
    """
    names = [m for m in MODALITIES if any(m in (*e.modalities, *e.missing) for e, _, _ in everyone)]
    rows = [
        {
            "subject": e.subject,
            "probability": percent(e.probability),
            "decided": e.labels[e.decided],
            "group": group or "n/a",
            "shares": ["missing" if m in e.missing else percent(e.shares.get(m, 0.0)) for m in names],
            "counted": "yes" if counted else "no",
            "order": ", ".join(f"{n.upper()} {v:.2f}" for n, v in e.order.items()),
        }
        for e, group, counted in everyone
    ]
    label = everyone[0][0].labels[everyone[0][0].positive] if everyone else "the explained class"
    text = template("brain_index.html.j2").render(
        rows=rows, model=model, notice=NOTICE, marker=MARKER, label=label, names=[m.upper() for m in names],
        group_words=group_words, figures=[(title, picture(path)) for title, path in figures], failures=failures,
    )  # fmt: skip
    return write_text(folder / "index.html", text)


def picture(path: Path) -> str:
    """A PNG as data URI."""
    return png_uri(path.read_bytes())


def _modality(found: BrainEvidence, name: str) -> Mapping[str, Any]:
    if name in found.missing:
        return {"title": TITLES[name], "missing": True}
    order = found.order.get(name)
    return {
        "title": TITLES[name],
        "missing": False,
        "share": percent(found.shares[name]),
        "value": f"{found.values[name]:+.3f}",
        "single": f"{found.single[name]:+.4f}",
        "order": "" if order is None else "not defined" if order != order else f"{order:.2f}",
    }


def _regions(view: SubjectView) -> list[Mapping[str, Any]]:
    return [
        {
            "map": name.upper(), "rank": item.rank, "region": item.region, "network": item.network or "n/a",
            "value": f"{item.value:.3g}", "relative": f"{item.relative:.2f}",
        }
        for name, ranked in view.ranked().items()
        if name not in view.evidence.unsupported
        for item in ranked[:_ROWS]
    ]  # fmt: skip


def _matrix(view: SubjectView, name: str) -> Mapping[str, Any]:
    regions, networks, own = view.regions(name), view.networks(name), view.connectivity(name)
    own = (own + own.T) / 2
    edges = [
        {
            "a": regions[e.a], "b": regions[e.b], "evidence": f"{e.evidence:.2f}", "own": f"{own[e.a, e.b]:+.2f}",
            "networks": f"{networks[e.a] or 'n/a'}, {networks[e.b] or 'n/a'}",
            "kind": {1: "plus", -1: "minus"}.get(e.sign, ""),
        }
        for e in view.edges(name)[:_ROWS]
    ]  # fmt: skip
    return {"name": name, "title": TITLES[name], "unit": UNITS[name], "edges": edges}


def _cells(found: BrainEvidence, name: str) -> str:
    return "x".join(str(size) for size in found.cells.get(name, ())) + " cells"
