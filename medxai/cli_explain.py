"""``medxai explain`` and ``medxai methods``: one image explained, and what it can be explained with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from medxai.errors import MedxaiError

if TYPE_CHECKING:
    from medxai.explain.method import Method


def explain_image(
    settings: dict[str, Any],
    options: Sequence[str],
    progress: Callable[[], AbstractContextManager[Callable[[str, int, int], None]]],
) -> None:
    """Explain one image and print what was decided and where the files are.

    Args:
        settings: fields of `RunSettings`, with one input.
        options: of methods, ``method.option=value``.
        progress: bar that is shown meanwhile.

    Raises:
        MedxaiError: a setting is wrong, or the input holds more or fewer than one image.
        typer.Exit: with code 2 when the image cannot be explained.
    """
    from medxai.explain.registry import parse_option
    from medxai.settings import make_settings

    given: dict[str, dict[str, object]] = {}
    for name, key, value in map(parse_option, options):
        given.setdefault(name, {})[key] = value
    checked = make_settings({**settings, "method_options": given, "export": {"formats": ["nifti", "picture"]}})
    with progress() as step:
        from medxai import pipeline
        from medxai.session import open_session

        session = open_session(checked)
        with pipeline.studies(session) as discovery:
            if len(discovery.sources) + len(discovery.rejected) != 1:
                msg = f"holds {len(discovery.sources)} images; name one, or use `medxai run` for all of them"
                raise MedxaiError(msg, study=str(checked.inputs[0]))
            rows = [pipeline.reject(session, rejected) for rejected in discovery.rejected]
            rows += [pipeline.run_study(session, source, step) for source in discovery.sources]
    (row,) = rows
    if row.state != "done":
        typer.secho(f"not explained: [{row.reason_code}] {row.reason}", err=True, fg="red")
        raise typer.Exit(2)
    print_result(Path(row.folder))


def print_result(folder: Path) -> None:
    """Print decision, maps and files from the manifest in `folder`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shares = ", ".join(f"{name} {share:.3f}" for name, share in manifest["prediction"].items())
    typer.echo(f"decided: {manifest['decided']} ({shares})")
    for item in manifest["explanations"]:
        marks = f"; {', '.join(item['flags'])}: {item['reason']}" if item["flags"] else ""
        typer.echo(f"{item['method']} at {item['layer']} for {item['class']}{marks}")
    for name in [item["path"] for item in manifest["outputs"]] + ["manifest.json"]:
        typer.echo(f"  {folder / name}")


def list_methods(family: str | None, *, as_json: bool) -> None:
    """Print the methods of a family, or all.

    Raises:
        MedxaiError: there is no such family.
    """
    from dataclasses import asdict, fields

    from medxai.explain.registry import get_method, method_names

    found = [get_method(name) for name in method_names()]
    families = sorted({method.INFO.family for method in found})
    if family is not None and family not in families:
        msg = f"there is no family {family!r}; there are {', '.join(families)}"
        raise MedxaiError(msg)
    chosen = [method for method in found if family in (None, method.INFO.family)]
    if as_json:
        rows = [
            {**asdict(method.INFO), "options": {item.name: repr(item.default) for item in fields(method.Options)}}
            for method in chosen
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    print_methods(sorted(chosen, key=lambda method: (method.INFO.family, method.INFO.name)))


def print_methods(methods: Sequence[Method]) -> None:
    """Print methods as a table."""
    from rich.console import Console
    from rich.table import Table

    from medxai.explain.masking.registry import operator_names

    table = Table(
        title=f"{len(methods)} methods; F forward, B backward to the layer, BB through the whole network, "
        "K channels, N samples"
    )
    for column in ("name", "method", "family", "input", "tokens", "cost", "needs and caveats"):
        table.add_column(column, overflow="fold")
    for method in methods:
        info = method.INFO
        words = [
            f"needs {info.needs}" if info.needs else "",
            "class-agnostic" if info.class_agnostic else "",
            info.caveat,
        ]
        table.add_row(
            info.name, f"{info.title} ({info.reference})", info.family, " ".join(info.dims),
            "yes" if info.tokens else "no", info.passes, "; ".join(word for word in words if word),
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print(table)
    console.print(f"masking operators of perturbation methods: {', '.join(operator_names())}")
