"""``medxai bundle``: what model bundles are, whether they are good, and their compiled form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from medxai.cli_progress import progress

bundle_app = typer.Typer(help="Look at model bundles, and compile them for this machine.", no_args_is_help=True)


@bundle_app.command("list")
def bundle_list() -> None:
    """List the shipped bundles."""
    from medxai.predict.bundle import find_bundles
    from medxai.predict.check import inspect_bundle

    for name, path in find_bundles().items():
        info = inspect_bundle(path)
        typer.echo(f"{name:12} {info['version']:8} {info['task']}")


@bundle_app.command("inspect")
def bundle_inspect(path: Annotated[str, typer.Argument(help="Name of a shipped bundle, or a folder.")]) -> None:
    """Print what a bundle is, as JSON, without loading its weights."""
    from medxai.predict.bundle import locate_bundle
    from medxai.predict.check import inspect_bundle

    typer.echo(json.dumps(inspect_bundle(locate_bundle(path)), indent=1, sort_keys=True, default=str))


@bundle_app.command("verify")
def bundle_verify(path: Annotated[str, typer.Argument(help="Name of a shipped bundle, or a folder.")]) -> None:
    """Check metadata, hash and weights; lists every problem and exits with 2 when there is one."""
    from medxai.predict.bundle import bundle_sha256, locate_bundle
    from medxai.predict.check import verify_bundle

    folder = locate_bundle(path)
    problems = verify_bundle(folder)
    for problem in problems:
        typer.secho(f"problem: {problem}", err=True, fg="red")
    if problems:
        raise typer.Exit(2)
    typer.echo(f"{folder.name}: good, sha256 {bundle_sha256(folder)}")


@bundle_app.command("prepare")
def bundle_prepare(
    name: Annotated[str, typer.Argument(help="Name of a shipped bundle, or a folder.")],
    precision: Annotated[str, typer.Option(help="float32, or bfloat16 where the processor has it.")] = "float32",
    batch: Annotated[int, typer.Option(min=1, help="Windows that are run at once.")] = 8,
    samples: Annotated[
        list[Path] | None, typer.Option(help="Studies to compare maps on; needed for bfloat16; repeatable.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to store it; by default in the bundle or the user's cache.")
    ] = None,
    allow: Annotated[Path | None, typer.Option(help="Allow-list (JSON): read for the bundle, then extended.")] = None,
) -> None:
    """Compile a bundle for this machine, if its maps stay the same; takes a minute, saves half of every forward.

    Stored are two models and a manifest. They are used only by sites that allow the manifest's hash: give
    --allow, or add the printed line to the allow-list.
    """
    from medxai.cli_prepare import prepare_bundle

    prepare_bundle(name, precision, progress, batch=batch, samples=samples or (), folder=folder, allow=allow)
