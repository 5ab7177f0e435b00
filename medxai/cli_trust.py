"""``medxai trust``: thresholds of a bundle's gate, verdicts of finished runs, leaderboards of methods."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medxai.cli_progress import progress
from medxai.errors import MedxaiError, TrustError

if TYPE_CHECKING:
    from torch import nn

    from medxai.predict.bundle import Bundle
    from medxai.trust.gate.collect import Item

trust_app = typer.Typer(
    help="How far maps can be trusted: calibrate the gate, read its verdicts, rank the methods.", no_args_is_help=True
)

#: Columns of a table that say which cases belong together.
_GROUPS = ("patient", "group", "duplicate_group")
_COLOURS = {"supported": "green", "limited": "yellow", "withheld": "red"}


@trust_app.command("calibrate")
def calibrate(
    bundle: Annotated[str, typer.Option("--bundle", "-b", help="Name of a shipped bundle, or a bundle folder.")],
    data: Annotated[
        list[Path], typer.Option("--data", "-d", help="Validation studies, none of them seen in training; repeatable.")
    ],
    method: Annotated[str, typer.Option("--method", "-m", help="Method whose maps are judged.")] = "gradcam",
    groups: Annotated[
        Path | None, typer.Option(help="CSV with path and patient (or group): cases of one patient stay together.")
    ] = None,
    false_alarm: Annotated[
        float, typer.Option(min=0.001, max=0.5, help="Share of genuine maps that may be withheld.")
    ] = 0.05,
    limited: Annotated[
        float, typer.Option(min=0.002, max=0.9, help="Share of genuine maps that may be limited or withheld.")
    ] = 0.2,
    most: Annotated[int, typer.Option(min=20, help="Cases at most, evenly spread over the data.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Write the thresholds here instead of into the bundle.")] = None,
    allow: Annotated[Path | None, typer.Option(help="Allow-list (JSON): read for the bundle, then extended.")] = None,
) -> None:
    """Learn thresholds: genuine explanations against ones that are broken on purpose.

    Maps of random weights, in random order, of the wrong class, of another patient, of permuted labels and of a
    network that reads a marker must be caught; how many are is measured on cases that took no part in learning.
    Stored in the bundle's configs the thresholds are part of its hash: the site has to allow the bundle again.
    """
    from medxai.files import write_text
    from medxai.predict.bundle import AllowList, bundle_sha256, load_bundle
    from medxai.session import quiet_libraries
    from medxai.trust.gate.collect import collect
    from medxai.trust.gate.figures import MASKING
    from medxai.trust.gate.fit import calibrate as learn
    from medxai.trust.gate.show import print_calibration
    from medxai.trust.gate.verdict import FILE

    quiet_libraries()
    trusted = AllowList.shipped()
    if allow is not None and allow.exists():
        trusted = trusted.joined(AllowList.read(allow))
    loaded = load_bundle(bundle, trusted)
    network = loaded.network()
    with progress() as step:
        items, failed = read_items(loaded, network, data, groups, most, step)
        layer = loaded.spec.target_layer or _automatic(network, items)
        cases, missing = collect(network, items, method=method, layer=layer, say=step)
    found = learn(
        cases,
        bundle=loaded.name,
        method=method,
        masking=(MASKING[0], MASKING[1]),
        false_alarm=false_alarm,
        limited=limited,
        data=", ".join(path.name for path in data),
    )
    print_calibration(found)
    for reason, count in sorted(failed.items()):
        typer.secho(f"{count} studies not used: {reason}", err=True, fg="yellow")
    for kind, reason in missing.items():
        typer.secho(f"no {kind}: {reason}", err=True, fg="yellow")
    target = out or loaded.path / "configs" / FILE
    write_text(target, found.model_dump_json(indent=1) + "\n")
    typer.echo(f"stored in {target}")
    if out is None:
        digest = bundle_sha256(loaded.path)
        if allow is not None:
            AllowList.add(allow, loaded.name, digest)
            typer.echo(f"allowed in {allow}")
        else:
            typer.echo(f'the bundle has changed; to use it, add to the allow-list: "{loaded.name}": ["{digest}"]')


def _automatic(network: nn.Module, items: Sequence[Item]) -> str:
    from medxai.explain.target_layer import find_target_layer

    return find_target_layer(network, items[0].x)


def read_items(
    bundle: Bundle, network: nn.Module, data: Sequence[Path], groups: Path | None, most: int, step: Any
) -> tuple[list[Item], dict[str, int]]:
    """Decisive windows of the studies below `data`, and why others cannot be used.

    Raises:
        MedxaiError: a path or the table cannot be read, or not one study can be used.
    """
    from medxai.ingest.discover import discover
    from medxai.ingest.read import read_study
    from medxai.predict.infer import check_fit
    from medxai.trust.gate.collect import make_item

    table = read_groups(groups) if groups else {}
    items: list[Item] = []
    failed: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as workspace:
        sources = discover(list(data), Path(workspace)).sources
        if table:  # the rest of a folder may be masks and reports
            sources = tuple(source for source in sources if any(_known(path, table) for path in source.files))
        count = min(most, len(sources))
        for number in range(count):
            source = sources[number * len(sources) // count]
            step("read", number, count)
            try:
                volume = read_study(source, bundle.spec.modalities[0]).volume
                check_fit(bundle, volume)
                patient = _known(source.files[0], table) or _patient(volume.source) or source.key
                items.append(make_item(bundle, network, volume, patient))
            except MedxaiError as error:
                failed[error.reason] = failed.get(error.reason, 0) + 1
    if not items:
        msg = f"not one of {len(sources)} studies can be used: {next(iter(failed), 'there are none')}"
        raise TrustError(msg)
    return items, failed


def read_groups(path: Path) -> dict[str, str]:
    """End of a path -> patient or group, from a table.

    Raises:
        TrustError: it has other columns.
    """
    from medxai.trust.cohort.table import read_rows

    rows = read_rows(path)
    column = next((name for name in _GROUPS if rows and name in rows[0]), None)
    if column is None or "path" not in rows[0]:
        msg = f"needs the columns path and one of {', '.join(_GROUPS)}"
        raise TrustError(msg, study=path.name)
    return {row["path"]: row[column] for row in rows}


def _known(path: Path, table: dict[str, str]) -> str | None:
    parts = path.parts
    return next((table[name] for i in range(len(parts)) if (name := "/".join(parts[i:])) in table), None)


def _patient(source: Sequence[Any]) -> str | None:
    """A pseudonym of the patient, so that two studies of one stay together."""
    from medxai.identity import sha256_text

    identifier = str(source[0].get("PatientID", "") or "") if source else ""
    return sha256_text(identifier)[:12] if identifier else None


@trust_app.command("validate")
def validate(
    bundle: Annotated[
        list[str],
        typer.Option("--bundle", "-b", help="Bundle; several are folds of one model, each with its table."),
    ],
    data: Annotated[list[Path], typer.Option("--data", "-d", help="Folder that the tables' paths begin in.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Results; run again to resume.")],
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="CSV with path, mask, label, patient; labels.csv of the data if not given."),
    ] = None,
    methods: Annotated[str, typer.Option("--methods", "-m", help="Comma-separated; all if not given.")] = "",
    option: Annotated[list[str] | None, typer.Option(help="method.option=value; repeatable.")] = None,
    masking: Annotated[str, typer.Option(help="Ways of removing, two or more, comma-separated.")] = "blur,mean",
    steps: Annotated[int, typer.Option(min=2, help="Steps of insertion and of deletion.")] = 8,
    forwards: Annotated[int, typer.Option(min=1, help="Methods that need more forwards for a map are left out.")] = 300,
    target: Annotated[str, typer.Option(help="Class to explain: label (of the table) or decision.")] = "label",
    limit: Annotated[int, typer.Option(min=1, help="Cases of each table at most, evenly spread.")] = 100_000,
    current: Annotated[str, typer.Option(help="Method in use, which a new default is compared with.")] = "gradcam",
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    title: Annotated[str, typer.Option(help="Of page and plots.")] = "",
    prepared: Annotated[
        str, typer.Option(help="float32: the compiled form of each bundle where it is there and allowed.")
    ] = "no",
    allow: Annotated[Path | None, typer.Option(help="Allow-list (JSON) besides the shipped one.")] = None,
) -> None:
    """Rank all methods on validation cases with masks, by place and by faithfulness, against controls.

    Every case is kept in OUT/cases, so that a run that was stopped goes on, and one with more methods measures only
    those. Writes leaderboard.json, cases.csv, leaderboard.md and two plots.
    """
    import torch

    from medxai.explain.registry import method_names
    from medxai.predict.bundle import AllowList, load_bundle
    from medxai.predict.prepared import load_prepared, prepared_folder
    from medxai.session import quiet_libraries
    from medxai.trust.cohort.leaderboard import make_leaderboard
    from medxai.trust.cohort.plan import Plan
    from medxai.trust.cohort.run import Cohort, run_cohort
    from medxai.trust.cohort.show import print_leaderboard
    from medxai.trust.cohort.table import read_table
    from medxai.trust.cohort.write import write_leaderboard

    quiet_libraries()
    tables = labels or [folder / "labels.csv" for folder in data]
    if len(data) == 1:
        data = data * len(bundle)
    if not len(bundle) == len(data) == len(tables):
        msg = f"{len(bundle)} bundles need as many tables and folders; there are {len(tables)} and {len(data)}"
        raise TrustError(msg)
    plan = Plan(
        methods=tuple(name.strip() for name in methods.split(",")) if methods else method_names(),
        options=_method_options(option or []),
        masking=tuple(name.strip() for name in masking.split(",")),
        steps=steps,
        forwards=forwards,
        target=target,  # type: ignore[arg-type]
        seed=seed,
        prepared=prepared,  # type: ignore[arg-type]
    )
    trusted = AllowList.shipped()
    if allow is not None:
        trusted = trusted.joined(AllowList.read(allow))
    jobs = [(load_bundle(name, trusted), read_table(t, d)) for name, t, d in zip(bundle, tables, data, strict=True)]
    cohort = Cohort()
    with progress() as step:
        for loaded, rows in jobs:
            count = min(limit, len(rows))
            chosen = [rows[number * len(rows) // count] for number in range(count)]
            network = loaded.network()
            if loaded.spec.preparation.axes == "HW":
                network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            compiled = None
            if plan.prepared != "no":
                folder = prepared_folder(loaded, plan.prepared)
                compiled = load_prepared(folder, trusted, name=loaded.name, sha256=loaded.sha256)
            run_cohort(loaded, network, chosen, plan, out, step, cohort, compiled)
    if not cohort.results:
        msg = f"not one case can be measured: {next(iter(cohort.skipped), 'the tables are empty')}"
        raise TrustError(msg)
    board = make_leaderboard(cohort.results, plan, current, cohort.skipped)
    print_leaderboard(board)
    if cohort.taken:
        typer.echo(f"{cohort.taken} of {len(cohort.results)} cases had been measured before")
    for path in write_leaderboard(board, out, title or f"Explanations of {jobs[0][0].name}"):
        typer.echo(f"  {path}")


def _method_options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    from medxai.explain.registry import parse_option

    found: dict[str, dict[str, Any]] = {}
    for name, key, value in map(parse_option, given):
        found.setdefault(name, {})[key] = value
    return found


@trust_app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a study, or of a whole run.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, one object for each study.")] = False,
) -> None:
    """Print verdict, reasons and figures of finished studies."""
    found = read_reports(folder)
    if as_json:
        typer.echo(json.dumps(found if len(found) > 1 else found[0], indent=1, sort_keys=True))
        return
    for study in found:
        for item in study["explanations"]:
            trust = item["trust"]
            head = f"{study['key']}: {item['method']} for {item['class']}: "
            if trust is None:
                typer.echo(f"{head}not judged")
                continue
            typer.echo(head + typer.style(trust["verdict"], fg=_COLOURS[trust["verdict"]]) + _measured(trust))
            for reason in trust["reasons"]:
                typer.echo(f"  {reason}")
            figures = ", ".join(f"{name} {value:.3g}" for name, value in trust["figures"].items() if value is not None)
            typer.echo(f"  {figures}")
            if trust.get("agreement"):
                typer.echo(f"  {_agreement(trust)}")


def _agreement(trust: dict[str, Any]) -> str:
    from medxai.trust.gate.consensus import WORDS

    each = ", ".join(
        f"{WORDS.get(name, name)} {'none' if value is None else f'{value:.2f}'}"
        for name, value in trust["agreement"].items()
    )
    mean = "undefined" if trust["consensus"] is None else f"{trust['consensus']:.2f}"
    return f"consensus of method families {mean} ({each})"


def _measured(trust: dict[str, Any]) -> str:
    if trust["index"] is None:
        return ""
    limits = f"withheld below {trust['withheld_below']:.2f}, limited below {trust['limited_below']:.2f}"
    return f" (index {trust['index']:.2f}; {limits})"


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """Trust of every study below a folder, from the manifests.

    Raises:
        TrustError: there is no finished study, or its files were changed.
    """
    from medxai.pipeline import read_manifest

    folders = (
        [folder] if (folder / "manifest.json").exists() else sorted(p.parent for p in folder.glob("*/manifest.json"))
    )
    found = []
    for each in folders:
        manifest = read_manifest(each)
        if manifest is None:
            msg = "its outputs were changed or are incomplete; run it again"
            raise TrustError(msg, study=each.name)
        rows = [
            {"method": item["method"], "class": item["class"], "layer": item["layer"], "trust": item.get("trust")}
            for item in manifest.explanations
        ]
        found.append({"key": manifest.key, "model": manifest.model, "decided": manifest.decided, "explanations": rows})
    if not found:
        msg = "holds no finished study (a folder with manifest.json)"
        raise TrustError(msg, study=folder.name)
    return found
