"""The leaderboard as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from medxai.trust.cohort.choose import LEAST_PATIENTS, Choice
from medxai.trust.cohort.leaderboard import Leaderboard, Line
from medxai.trust.cohort.measures import FAITH, PLACE, measures_of
from medxai.trust.cohort.relations import LEAST_AGREEMENT


def make_page(board: Leaderboard, title: str, pictures: Mapping[str, str]) -> str:
    """Markdown of a leaderboard.

    Args:
        board: what was measured.
        title: of the page.
        pictures: alternative text -> address.
    """
    parts = [
        f"# {title}", "", *about(board), "", *table(board), "", *findings(board), "",
        *(f"![{words}]({address})" for words, address in pictures.items()), "",
    ]  # fmt: skip
    return "\n".join(parts)


def about(board: Leaderboard) -> list[str]:
    """What was measured on what."""
    cases = board.columns.results
    known = [case.correct for case in cases if case.correct is not None]
    classes = ", ".join(f"{count} {name}" for name, count in sorted(Counter(c.explained for c in cases).items()))
    right = f"; the models decide {float(np.mean(known)):.0%} of them as the table does" if known else ""
    bundles = ", ".join(f"{name} ({count})" for name, count in sorted(Counter(c.bundle for c in cases).items()))
    plan = board.plan
    found = [
        f"{len(cases)} cases of {len({case.patient for case in cases})} patients or groups, explained for {classes}"
        f"{right}. Models: {bundles}.",
        f"Insertion less deletion of the probability in {plan.steps} steps each, removal by "
        f"{' and by '.join(plan.masking)}; place on the network's grid. Means with 95 % intervals by bootstrap over "
        "patients; paired differences decide.",
    ]
    if board.skipped:
        found.append("Not measured: " + "; ".join(f"{count} ({why})" for why, count in board.skipped.items()) + ".")
    return found


def table(board: Leaderboard) -> list[str]:
    """Methods and controls by falling average precision."""
    measures = [
        measure
        for measure in measures_of(board.plan.masking)
        if any(line.measures[measure.name].n for line in board.lines)
    ]
    head = ["method", *(measure.title for measure in measures), "beats controls"]
    rows = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for line in board.lines:
        name = f"*{line.name.replace('_', ' ')}* (control)" if line.control else line.name
        values = [_cell(line, measure.name) for measure in measures]
        rows.append(f"| {name}{' †' * line.class_agnostic} | {' | '.join(values)} | {_beats(line)} |")
    if any(line.class_agnostic for line in board.lines):
        rows += ["", "† the map is the same for every class."]
    return rows


def findings(board: Leaderboard) -> list[str]:
    """Agreement, winners, relation of faithfulness and place, and the default."""
    found = []
    for item in board.agreements:
        found.append(
            f"- Kendall's tau of the order of methods, removal by {item.first} and by {item.second}: {item.tau}."
        )
    if not board.agreed:
        found.append(f"- That is below {LEAST_AGREEMENT}: no method is called the most faithful.")
    if not board.enough:
        found.append(f"- Fewer than {2 * LEAST_PATIENTS} patients: no method is called the best.")
    for measure, words in ((FAITH, "most faithful"), (PLACE, "best on the lesion")) if board.enough else ():
        name, lead = board.winner(measure), board.lead(measure)
        if name:
            ahead = f"; ahead of {lead[0]} by {lead[1]}" if lead else ""
            tied = ", so not clearly the first" if lead and not lead[1].low > 0 else ""
            found.append(f"- {words.capitalize()} of those that beat every control: **{name}**{ahead}{tied}.")
        elif measure != FAITH or board.agreed:
            found.append(f"- {words.capitalize()}: none beats every control.")
    found.append(
        "- Does faithfulness predict place? Spearman over the methods of a case, mean over cases: "
        f"{board.within} (n = {board.within.n})."
    )
    related = [line for line in board.lines if line.relation is not None and line.relation.n]
    if related:
        words = ", ".join(f"{line.name} {line.relation}" for line in related[:5])
        found.append(f"- Over the cases of one method (those best on the lesion): {words}.")
    found += [_default(choice) for choice in board.choices]
    if board.columns.failed:
        found += ["", "Methods without a map:", ""]
        found += [f"- {name}: {reason}" for name, reason in board.columns.failed.items()]
    undefined = [_undefined(line) for line in board.lines if not line.control]
    if any(undefined):
        found += ["", "Cases without a value:", "", *(words for words in undefined if words)]
    return found


def _default(choice: Choice) -> str:
    head = f"- Default for {choice.label or 'all classes together'}: "
    if not choice.method:
        return f"{head}not chosen ({choice.reason})."
    words = (
        f"{head}**{choice.method}**, chosen by {' and '.join(choice.by)} on {choice.validation} patients; on the "
        f"others insertion - deletion {choice.faithfulness}, average precision {choice.place}"
    )
    if choice.method == choice.current:
        return f"{words}. It is the method in use."
    gains = f"{choice.faithfulness_gain} and {choice.place_gain}"
    verdict = "clearly better" if choice.clearly_better else "not clearly better"
    return f"{words}; against {choice.current}, which is in use: {gains}, {verdict}."


def _cell(line: Line, measure: str) -> str:
    found = line.measures[measure]
    return f"{found}" if found.n else "-"


def _beats(line: Line) -> str:
    if line.control:
        return ""
    both = [words for measure, words in ((FAITH, "faithfulness"), (PLACE, "place")) if line.beats_controls(measure)]
    return ", ".join(both) or "no"


def _undefined(line: Line) -> str:
    """Of faithfulness and place, the measures that decide."""
    why = {reason: count for measure in (FAITH, PLACE) for reason, count in line.undefined.get(measure, {}).items()}
    return f"- {line.name}: {', '.join(f'{reason} ({count})' for reason, count in why.items())}" if why else ""
