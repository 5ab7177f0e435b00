"""``medxai brain explain`` and ``medxai brain ablate``: a fusion network on a data set of features."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

EXPLAIN_EXAMPLE = """
\b
medxai brain explain features/ -b brain_fusion -o explained/ --atlas schaefer.nii.gz --labels schaefer.tsv
medxai brain explain features/ --subject sub-07 -b brain_fusion -o explained/ --series dicom/bold --transform to_T1.txt
medxai brain explain --config configs/brain_explain.yaml
"""
ABLATE_EXAMPLE = """
\b
medxai brain ablate features/ -b brain_fusion -o ablation/
medxai brain ablate features/ -b brain_fusion -o ablation/ --group CN=control --group MCI=patient --operator permute
medxai brain ablate features/ -b brain_fusion -o ablation/ --retrain linear --group-by family
"""
Features = Annotated[Path | None, typer.Argument(metavar="[FEATURES]", help="Data set of 'medxai brain features'.")]
Bundle = Annotated[str | None, typer.Option("--bundle", "-b", help="Name of a fusion bundle, or a folder.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file; options win over it.")]
Subjects = Annotated[list[str] | None, typer.Option("--subject", help="Only this one; may be repeated.")]
Groups = Annotated[
    list[str] | None, typer.Option("--group", help="GROUP=LABEL: what a group of participants.tsv is in the bundle.")
]
Allow = Annotated[Path | None, typer.Option(help="JSON file with hashes of further bundles.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Of everything random [0].")]


def explain(
    features: Features = None,
    bundle: Bundle = None,
    out: Out = None,
    config: Config = None,
    subject: Subjects = None,
    atlas: Annotated[Path | None, typer.Option(help="NIfTI of the regions, in the features' space.")] = None,
    labels: Annotated[Path | None, typer.Option(help="TSV or CSV of the regions: index, name.")] = None,
    series: Annotated[
        Path | None, typer.Option(help="DICOM MR of the subject (or sub-XX folders): PM, SEG and SR on it.")
    ] = None,
    transform: Annotated[
        Path | None,
        typer.Option(help="ITK rigid or affine, features' images to the patient (or sub-XX.* in a folder)."),
    ] = None,
    percent: Annotated[float | None, typer.Option(help="Share of the edges that are shown [2].")] = None,
    send_withheld: Annotated[
        bool, typer.Option("--send-withheld", help="Write maps of modalities that hardly speak for the class too.")
    ] = False,
    group: Groups = None,
    allow: Allow = None,
    seed: Seed = None,
) -> None:
    """Probability, evidence by modality, maps, edges, pictures and pages; PM, SEG and SR with --series.

    A subject is done once: run again to resume. Failures go to OUT/failures.tsv with their reason, and end with exit
    code 2 after the other subjects. What is written is a research marker, not a diagnosis.
    """
    from medxai.brain_explain import explain_cohort
    from medxai.brain_settings import ExplainSettings, load_brain_settings
    from medxai.session import quiet_libraries

    quiet_libraries()
    changes = _common(features, bundle, out, subject, group, allow, seed)
    changes |= {k: v for k, v in {"series": series, "transform": transform, "percent": percent}.items() if v}
    changes |= {"send_withheld": True} if send_withheld else {}
    if atlas is not None or labels is not None:
        changes["atlas"] = {k: v for k, v in {"image": atlas, "table": labels}.items() if v is not None}
    settings = load_brain_settings(ExplainSettings, config, changes, "brain explain")
    outcomes = explain_cohort(settings, _say())
    failed = sum(outcome.state == "failed" for outcome in outcomes)
    typer.echo(f"{len(outcomes) - failed} of {len(outcomes)} subjects: {settings.output / 'index.html'}")
    if failed:
        typer.secho(f"reasons of the others: {settings.output / 'failures.tsv'}", err=True, fg="yellow")
        raise typer.Exit(2)


def ablate(
    features: Features = None,
    bundle: Bundle = None,
    out: Out = None,
    config: Config = None,
    subject: Subjects = None,
    operator: Annotated[
        str | None, typer.Option(help="What stands in: mean, permute or noise (mean by default).")
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Random sets as large as a network, at least 200 [200].")] = None,
    only: Annotated[
        bool | None, typer.Option("--only/--no-only", help="Also each network alone (yes by default).")
    ] = None,
    retrain: Annotated[
        str | None,
        typer.Option(
            help="Also train anew without each network: none, linear (of the edges) or network (none by default)."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Of --retrain network [10].")] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="Column of participants.tsv that is not split over folds; carrier or family if there."),
    ] = None,
    group: Groups = None,
    allow: Allow = None,
    seed: Seed = None,
) -> None:
    """What the network owes to each functional network: knock-out and only-this against random sets as large.

    Needs a column 'group' in participants.tsv. Done once: the same command finds what it wrote, and after an
    interruption goes on where it was.
    """
    from medxai.brain_ablate import ablate as run
    from medxai.brain_settings import AblateSettings, load_brain_settings
    from medxai.session import quiet_libraries

    quiet_libraries()
    changes = _common(features, bundle, out, subject, group, allow, seed)
    given = {"operator": operator, "draws": draws, "only": only, "retrain": retrain, "retrain_epochs": epochs,
             "group_by": group_by}  # fmt: skip
    changes |= {k: v for k, v in given.items() if v is not None}
    settings = load_brain_settings(AblateSettings, config, changes, "brain ablate")
    typer.echo(str(run(settings, _say()).with_name("ablation.md")))


def _common(
    features: Path | None, bundle: str | None, out: Path | None, subject: list[str] | None, group: list[str] | None,
    allow: Path | None, seed: int | None,
) -> dict[str, Any]:  # fmt: skip
    pairs = {}
    for text in group or ():
        name, equals, label = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not GROUP=LABEL", param_hint="--group")
        pairs[name] = label
    given = {"features": features, "bundle": bundle, "output": out, "subjects": tuple(subject or ()) or None,
             "groups": pairs or None, "allow": allow, "seed": seed}  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}


def _say() -> Callable[[str], None]:
    started = time.monotonic()
    return lambda line: typer.echo(f"[{time.monotonic() - started:7.1f} s] {line}")
