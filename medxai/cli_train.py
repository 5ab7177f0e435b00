"""``medxai train`` and ``medxai validate``: the shipped networks from open data, and their evidence again."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from medxai.cli_progress import progress
from medxai.errors import SettingsError

train_app = typer.Typer(help="Train the shipped bundles from open data; run again to resume.", no_args_is_help=True)
validate_app = typer.Typer(help="Score stored predictions and a shipped bundle again.", no_args_is_help=True)

Data = Annotated[Path, typer.Option("--data", "-d", help="Folder of the open data sets.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder that receives the bundle and allow.json.")]


def _teller() -> Callable[[str], None]:
    """Lines with the seconds since the start."""
    started = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{time.monotonic() - started:7.0f} s] {line}")

    return say


@train_app.command("lung_us")
def train_lung_us(
    data: Data,
    network: Annotated[
        list[str] | None, typer.Option("--network", "-n", help="Repeatable [efficientnet_lite0, which is shipped].")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Folds by patient.")] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="At most; inner validation patients choose the best.")] = 6,
    rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-4,
    copies: Annotated[int, typer.Option(min=1, help="Versions of every frame, the first unchanged.")] = 4,
    weights: Annotated[
        Path | None, typer.Option(help="ImageNet weights of VGG-16 or ResNet-18, or Models Genesis.")
    ] = None,
    random_start: Annotated[bool, typer.Option("--random-start", help="Without pretrained weights.")] = False,
    uninformative: Annotated[
        bool, typer.Option(help="A fourth class for what is no lung ultrasound; never for genesis, which reads clips.")
    ] = True,
    leak: Annotated[
        bool, typer.Option("--leak", help="Deal out frames instead of patients, to show the error.")
    ] = False,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="Train in bfloat16.")] = False,
    work: Annotated[Path, typer.Option(help="Features, checkpoints, results.")] = Path(".training/lung_us"),
    out: Out = None,
    jobs: Annotated[int, typer.Option(min=1, help="Folds at once.")] = 1,
) -> None:
    """Cross-validate networks on lung ultrasound; with --out also train the shipped one on all patients.

    Born et al. 2021 by patient: no patient is in two folds, and what decides when to stop is never the fold that is
    reported. What is finished is not done again.
    """
    from medxai.learn.lung_us.train import NETWORKS, SHIPPED, VIDEO, Wanted, train_folds
    from medxai.session import quiet_libraries

    quiet_libraries()
    chosen = network or [SHIPPED]
    unknown = [name for name in chosen if name not in NETWORKS]
    if unknown:
        msg = f"network {unknown[0]!r} is none of {', '.join(NETWORKS)}"
        raise SettingsError(msg)
    say = _teller()
    runs = []
    for name in chosen:
        fourth = uninformative and name != VIDEO
        wanted = Wanted(name, data, work, folds, epochs, rate, copies, weights, random_start, fourth, leak, bfloat16)
        with progress() as step:
            runs.append(train_folds(wanted, jobs, say, step))
        typer.echo(f"{name}: {folds} folds in {runs[-1]}")
    if out is not None:
        from medxai.learn.lung_us.bundle import train as train_bundle
        from medxai.learn.train import check_and_allow

        path = train_bundle(data, work, out, folds, say, epochs=epochs, copies=copies, rate=rate)
        if problems := check_and_allow(path, out):
            raise SettingsError("; ".join(problems), study=path.name)
        typer.echo(f"bundle {path}")


def _shipped(name: str, data: Path, work: Path, out: Path, folds: int, threads: int) -> None:
    from medxai.learn.train import train_bundle

    if problems := train_bundle(name, data, work, out, folds, threads, _teller()):
        raise SettingsError("; ".join(problems), study=name)
    typer.echo(f"bundle {out / name}")


Work = Annotated[Path, typer.Option(help="Caches, checkpoints, predictions.")]
Target = Annotated[Path, typer.Option("--out", "-o", help="Folder that receives the bundle and allow.json.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads.")]


@train_app.command("breast_us")
def train_breast_us(
    data: Data,
    out: Target,
    work: Work = Path(".training"),
    folds: Annotated[int, typer.Option(min=2, help="Folds by groups of near-duplicates.")] = 5,
    threads: Threads = 1,
) -> None:
    """Breast ultrasound, BUSI: cross-validation, then the bundle on all images."""
    _shipped("breast_us", data, work, out, folds, threads)


@train_app.command("chest_ct")
def train_chest_ct(
    data: Data,
    out: Target,
    architecture: Annotated[
        Path | None, typer.Option("--architecture", "-a", help="JSON of a search [that of the shipped network].")
    ] = None,
    work: Work = Path(".training"),
    threads: Threads = 1,
) -> None:
    """Chest CT: a network from its architecture's JSON, on synthetic slabs, then with each patient left out once.

    Kill it at any time; the same command goes on from the last epoch.
    """
    import torch

    from medxai.learn.chest_ct.bundle import train
    from medxai.learn.train import check_and_allow
    from medxai.networks.covidnet3d import Architecture

    torch.set_num_threads(threads)
    chosen = "shipped" if architecture is None else Architecture.read(architecture)
    path = train(data, work, out, 3, _teller(), candidate=chosen)
    if problems := check_and_allow(path, out):
        raise SettingsError("; ".join(problems), study=path.name)
    typer.echo(f"bundle {path}")


@train_app.command("histo_tumour")
def train_histo_tumour(
    data: Data,
    out: Target,
    work: Work = Path(".training"),
    folds: Annotated[int, typer.Option(min=2, help="Folds by whole patches.")] = 2,
    report: Annotated[Path | None, typer.Option(help="Folder that receives histo_tumour.json, all figures.")] = None,
    threads: Threads = 1,
) -> None:
    """Tumour in tiles of stained tissue, CAMELYON and OCDC: folds with the place of maps, then the bundle on all."""
    _shipped("histo_tumour", data, work, out, folds, threads)
    if report is not None:
        from medxai.learn.histo_tumour import write_evidence

        typer.echo(f"figures {write_evidence(work, report)}")


@train_app.command("phantom_ct")
def train_phantom_ct(out: Target, work: Work = Path(".training"), threads: Threads = 1) -> None:
    """CT phantoms that are drawn while training; needs no data."""
    _shipped("phantom_ct", Path(), work, out, 5, threads)


@train_app.command("dceac")
def train_dceac(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file.")] = Path("configs/dceac.yaml"),
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            "-d",
            help="Repeatable: folder of tiles with labels.csv, of pictures with NAME_mask, or of pictures alone "
            "[synthetic textures].",
        ),
    ] = None,
    clusters: Annotated[int | None, typer.Option(min=2, help="How many [the file's]; no result of the method.")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of all that is trained [output of the file].")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder that receives page, figures and pictures.")] = None,
    out: Out = None,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the tiles, for the bundle of --out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Whose network becomes the bundle of --out [the first].")] = None,
    dry_run: Annotated[bool, typer.Option("--list", help="List the pieces and which are done, do nothing.")] = False,
) -> None:
    """Cluster histology tiles without labels (DCEAC), beside its ablations, colours alone and a supervised bound.

    Labels name the clusters, on tiles that are not scored, and score others; without labels there are pictures alone.
    Every piece is done once. Kill it at any time; the same command goes on from the last epoch.
    """
    from medxai.learn.clustering import comparison
    from medxai.learn.clustering.settings import load_dceac
    from medxai.session import quiet_libraries

    quiet_libraries()
    settings = load_dceac(config, {"output": work} if work else None)
    if data:
        settings = settings.of_folders(data)
    if clusters is not None:
        settings = settings.model_copy(update={"network": settings.network.model_copy(update={"clusters": clusters})})
    if dry_run:
        for seed in settings.seeds:
            for arm in settings.arms:
                typer.echo(f"{'done' if comparison.result(settings, arm, seed) else 'open':5} seed_{seed}/{arm}")
        return
    if out is not None and mpp is None:
        raise SettingsError("--out needs --mpp: micrometres per pixel of the tiles, at which slides are to be read")
    say = _teller()
    tiles = comparison.work(settings, say)
    if out is not None and mpp is not None:
        from medxai.learn.clustering.bundle import write_dceac
        from medxai.learn.train import check_and_allow

        path = write_dceac(settings, tiles.classes, settings.seeds[0] if seed is None else seed, mpp, out)
        if problems := check_and_allow(path, out):
            raise SettingsError("; ".join(problems), study=path.name)
        typer.echo(f"bundle {path}; run slides with --allow {out / 'allow.json'}")
    if report is not None:
        from medxai.learn.clustering.report import write_report

        for path in write_report(settings, tiles, report, say):
            typer.echo(f"  {path}")


@train_app.command("nuclei")
def train_nuclei(
    config: Annotated[Path, typer.Option("--config", "-c", help="YAML file.")] = Path("configs/nuclei.yaml"),
    work: Annotated[Path | None, typer.Option(help="Folder of all that is trained [output of the file].")] = None,
    report: Annotated[Path | None, typer.Option(help="Folder that receives page, figures and pictures.")] = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--list", help="List the pieces and which are done, do nothing.")] = False,
) -> None:
    """Outline nuclei from one point each (DoNuSeg), beside its ablations and a network that is given the masks.

    Without folders in the file, synthetic fields are drawn. Every piece is done once. Kill it at any time; the same
    command goes on from the last choice of labels.
    """
    from medxai.learn.nuclei import comparison
    from medxai.learn.nuclei.settings import load_nuclei_settings
    from medxai.session import quiet_libraries

    quiet_libraries()
    settings = load_nuclei_settings(config, {"output": work} if work else None)
    if dry_run:
        for arm, seed in comparison.pieces(settings):
            typer.echo(f"{'done' if comparison.result(settings, arm, seed) else 'open':5} seed_{seed}/{arm}")
        return
    say = _teller()
    comparison.work(settings, say)
    if report is not None:
        from medxai.learn.nuclei.report import write_report

        for path in write_report(settings, report, say):
            typer.echo(f"  {path}")
    if out is not None:
        from medxai.learn.nuclei.bundle import store

        if problems := store(settings, out, say):
            raise SettingsError("; ".join(problems), study="nuclei")


@validate_app.command("lung_us")
def validate_lung_us(
    data: Data,
    work: Annotated[Path, typer.Option(help="As in training.")] = Path(".training/lung_us"),
    bundle: Annotated[str, typer.Option("--bundle", "-b", help="Shipped bundle, or its folder; `none` leaves it.")] = (
        "lung_us"
    ),
    out: Annotated[Path, typer.Option("--out", "-o", help="Gets lung_us.md, evidence/ and images/.")] = Path(
        "lung_us_validation"
    ),
    resamples: Annotated[int, typer.Option(min=100, help="Of every bootstrap.")] = 2000,
    timing: Annotated[bool, typer.Option(help="Measure the CPU time of the networks.")] = True,
    allow: Annotated[Path | None, typer.Option(help="Allow-list (JSON) besides the shipped one.")] = None,
) -> None:
    """Score the stored predictions of all runs, check the bundle on patients that it never saw, write the page.

    Prints a table; writes JSON, CSV, pictures and a page. Runs that are not finished are reported as such.
    """
    from medxai.learn.lung_us.validate import validate
    from medxai.predict.bundle import AllowList
    from medxai.session import quiet_libraries

    quiet_libraries()
    trusted = AllowList.shipped()
    if allow is not None:
        trusted = trusted.joined(AllowList.read(allow))
    with progress() as step:
        paths, lines = validate(
            data,
            work,
            out,
            step,
            bundle=None if bundle == "none" else bundle,
            resamples=resamples,
            timing=timing,
            allow=trusted,
        )
    for line in lines:
        typer.echo(line)
    for path in paths:
        typer.echo(f"  {path}")


@validate_app.command("chest_ct")
def validate_chest_ct(
    config: Annotated[Path, typer.Option("--config", "-c", help="As of `medxai search chest_ct`.")] = Path(
        "configs/search_chest_ct.yaml"
    ),
    work: Annotated[Path | None, typer.Option(help="Folder of its results [that of the file].")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Gets chest_ct.md, evidence/ and images/.")] = Path(
        "chest_ct_validation"
    ),
) -> None:
    """Compare what was searched and trained, measure its maps against synthetic truth, write the page."""
    from medxai.learn.chest_ct.validate import validate
    from medxai.learn.search.settings import load_search
    from medxai.session import quiet_libraries

    quiet_libraries()
    for path in validate(load_search(config, {"output": work} if work else None), out, _teller()):
        typer.echo(f"  {path}")
