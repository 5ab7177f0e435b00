"""The command line: one-line errors, exit code 2 on any failure, no model library imported for --help."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from medxai import __version__
from medxai.cli_brain import brain_app
from medxai.cli_bundle import bundle_app
from medxai.cli_listen import listen, outbox_app, pull, received
from medxai.cli_progress import progress
from medxai.cli_rows import print_rows
from medxai.cli_search import search_app
from medxai.cli_slide import slide_app
from medxai.cli_train import train_app, validate_app
from medxai.cli_trust import trust_app
from medxai.errors import MedxaiError

app = typer.Typer(
    name="medxai",
    help="Explain medical-image classifiers: class activation maps in the patient, as DICOM that viewers show.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(bundle_app, name="bundle")
app.add_typer(brain_app, name="brain")
app.add_typer(trust_app, name="trust")
app.add_typer(outbox_app, name="outbox")
app.add_typer(search_app, name="search")
app.add_typer(slide_app, name="slide")
app.add_typer(train_app, name="train")
app.add_typer(validate_app, name="validate")
for command in (listen, pull, received):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a MedxaiError becomes one line on stderr and exit code 2."""
    try:
        app(args=arguments, prog_name="medxai")
    except MedxaiError as error:
        typer.secho(f"error: {error}", err=True, fg="red")
        sys.exit(2)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"medxai {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done, by pseudonym.")] = False,
) -> None:
    log_to_stderr(verbose=verbose)


class _Lines(logging.Handler):
    """One line a record on whatever stderr is at that time, so that a progress bar stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {record.getMessage()}"
        typer.secho(line, err=True, fg="red" if record.levelno >= logging.ERROR else None)


def log_to_stderr(*, verbose: bool = False) -> None:
    """Print medxai's own warnings and errors, or with `verbose` what it does, as lines without tracebacks."""
    ours = logging.getLogger("medxai")
    ours.setLevel(logging.INFO if verbose else logging.WARNING)
    if not any(isinstance(handler, _Lines) for handler in ours.handlers):
        ours.addHandler(_Lines())
    # Other libraries may quote header values; nothing of theirs is worth a line on the console.
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(logging.NullHandler())


@app.command()
def run(
    paths: Annotated[list[Path], typer.Argument(help="Files, folders or zip archives, searched recursively.")],
    bundle: Annotated[str, typer.Option("--bundle", "-b", help="Name of a shipped bundle, or a bundle folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results and the worklist.")],
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help="Explanation method; repeatable.")] = None,
    explain_class: Annotated[str | None, typer.Option("--class", help="Class to explain [the decided one].")] = None,
    modality: Annotated[str | None, typer.Option(help="Modality of NIfTI files, which store none.")] = None,
    force: Annotated[bool, typer.Option(help="Analyse although the body part differs.")] = False,
    straighten: Annotated[
        float | None,
        typer.Option(metavar="MM", help="Straighten tilted or uneven series whose slices are at most so far apart."),
    ] = None,
    output_set: Annotated[
        str | None, typer.Option("--set", help="Output set: ohif, slicer, legacy_pacs, research, or a YAML file.")
    ] = None,
    labelmap: Annotated[bool, typer.Option(help="Write LABELMAP instead of BINARY segmentations.")] = False,
    send_withheld: Annotated[
        bool, typer.Option("--send-withheld", help="Write maps that the trust gate withholds all the same, labelled.")
    ] = False,
    slide_pooling: Annotated[
        str, typer.Option(help="Decision over the tiles of a slide: bundle (its own rule) or attention (learnt).")
    ] = "bundle",
    slide_stain: Annotated[
        str, typer.Option(help="Bring a slide's stains to those of training: none, macenko or whitening.")
    ] = "none",
    slide_icc: Annotated[bool, typer.Option("--slide-icc", help="Apply the ICC profile of slides.")] = False,
    leave_out_flagged: Annotated[
        bool,
        typer.Option("--leave-out-flagged", help="Without flagged tiles: blurred, folded, inked, unlike training."),
    ] = False,
    judged_tiles: Annotated[
        int, typer.Option(min=1, help="Most evident tiles of a slide whose trust is measured and written.")
    ] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    allow: Annotated[Path | None, typer.Option(help="JSON file with hashes of further bundles.")] = None,
) -> None:
    """Explain every study below PATHS, without a scheduler; run again to resume.

    Exit code 0 when all studies were explained, 2 when one or more are in quarantine.
    """
    from medxai.settings import make_settings

    settings = make_settings(
        {
            "inputs": paths,
            "output": out,
            "bundle": bundle,
            "methods": method or ["gradcam"],
            "explain_class": explain_class,
            "modality": modality,
            "force": force,
            **({} if straighten is None else {"geometry": "straighten", "largest_gap_mm": straighten}),
            "device": device,
            "allow": allow,
            "slide": {
                "pooling": slide_pooling,
                "stain": slide_stain,
                "icc": slide_icc,
                "flagged": "leave_out" if leave_out_flagged else "keep",
                "judged": judged_tiles,
            },
            "export": {"output_set": output_set}
            | {name: True for name, on in (("labelmap", labelmap), ("send_withheld", send_withheld)) if on},
        }
    )
    with progress() as step:
        from medxai import pipeline
        from medxai.session import open_session

        session = open_session(settings)
        with pipeline.studies(session) as discovery:
            total = len(discovery.sources)
            rows = [pipeline.reject(session, rejected) for rejected in discovery.rejected]
            for number, source in enumerate(discovery.sources):
                step(f"study {number + 1} of {total}", number, total)
                rows.append(pipeline.run_study(session, source))
            step("done", total, total)
    print_rows(rows, out)
    if any(row.state != "done" for row in rows):
        raise typer.Exit(2)


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="NIfTI file, picture, video, DICOM file, or folder of one series.")],
    bundle: Annotated[str, typer.Option("--bundle", "-b", help="Name of a shipped bundle, or a bundle folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path("explained"),
    method: Annotated[
        list[str] | None, typer.Option("--method", "-m", help="See `medxai methods`; repeatable.")
    ] = None,
    layer: Annotated[str | None, typer.Option("--layer", "-l", help="Target layer [the bundle's].")] = None,
    explain_class: Annotated[str | None, typer.Option("--class", help="Class to explain [the decided one].")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="Like scorecam.channels=64; repeatable.")] = None,
    masking: Annotated[
        str, typer.Option(help="What perturbation methods put where they remove; see `medxai methods`.")
    ] = "zero",
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    modality: Annotated[str | None, typer.Option(help="Modality of NIfTI files, which store none.")] = None,
    force: Annotated[bool, typer.Option(help="Explain although the body part differs.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    prepared: Annotated[str, typer.Option(help="Compiled form of the bundle: no, float32 or bfloat16.")] = "no",
    allow: Annotated[Path | None, typer.Option(help="JSON file with hashes of further bundles.")] = None,
) -> None:
    """Explain one image: writes the map as NIfTI, a picture of it, and a manifest.

    Exit code 2 when the image cannot be explained; the reason is printed.
    """
    from medxai.cli_explain import explain_image

    explain_image(
        {
            "inputs": [image],
            "output": out,
            "bundle": bundle,
            "methods": method or ["gradcam"],
            "layer": layer,
            "masking": masking,
            "seed": seed,
            "explain_class": explain_class,
            "modality": modality,
            "force": force,
            "device": device,
            "precision": precision,
            "prepared": prepared,
            "allow": allow,
        },
        option or (),
        progress,
    )


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
) -> None:
    """List the explanation methods with their cost, what they need and what to know about them."""
    from medxai.cli_explain import list_methods

    list_methods(family, as_json=as_json)


@app.command()
def repair(
    source: Annotated[Path, typer.Argument(help="DICOM file or folder with missing or invalid identifiers.")],
    target: Annotated[Path, typer.Argument(help="Folder of the valid copy; gets repair_mapping.json.")],
) -> None:
    """Write a valid copy of badly de-identified DICOM: derived UIDs, mandatory attributes, same pixels."""
    from medxai.ingest.repair import repair as repair_files
    from medxai.session import quiet_libraries

    quiet_libraries()
    with progress() as step:
        report = repair_files(source, target, lambda done, total: step("repair", done, total))
    typer.echo(f"{report.files} files copied, {report.changed} changed; old and new values in {report.mapping}")


@app.command()
def deidentify(
    source: Annotated[Path, typer.Argument(help="DICOM file or folder.")],
    target: Annotated[Path, typer.Argument(help="Folder of the copies; gets deidentification.json, the report.")],
    key_file: Annotated[
        Path, typer.Option(help="Secret of the site (`openssl rand -out KEY 32`); the same key gives the same names.")
    ],
    shift_dates: Annotated[
        bool, typer.Option("--shift-dates", help="Move a patient's dates back together; otherwise they are removed.")
    ] = False,
    keep_characteristics: Annotated[
        bool, typer.Option("--keep-characteristics", help="Keep sex, age (from 90 on as 90), size and weight.")
    ] = False,
    burnt_in: Annotated[
        str,
        typer.Option(help="Pictures that may show text: refuse them, mask (ultrasound outside its regions), or keep."),
    ] = "refuse",
    crosswalk: Annotated[
        Path | None, typer.Option(help="CSV of old and new names, readable for you alone; keep it apart.")
    ] = None,
) -> None:
    """Copy DICOM without identity (PS3.15 Basic Profile) for research; never for results that go back to the PACS."""
    from medxai.ingest.deidentify import deidentify as copy_files
    from medxai.ingest.profile import Profile
    from medxai.session import quiet_libraries

    quiet_libraries()
    if burnt_in not in ("refuse", "mask", "keep"):
        msg = f"burnt-in is refuse, mask or keep, not {burnt_in!r}"
        raise MedxaiError(msg)
    try:
        key = key_file.read_bytes()
    except OSError as error:
        msg = f"the key file cannot be read ({type(error).__name__}); make one with `openssl rand -out {key_file} 32`"
        raise MedxaiError(msg) from error
    profile = Profile(key, shift_dates, keep_characteristics)
    with progress() as step:
        report = copy_files(
            source,
            target,
            profile,
            burnt_in=burnt_in,  # type: ignore[arg-type]
            crosswalk=crosswalk,
            progress=lambda done, total: step("deidentify", done, total),
        )
    typer.echo(f"{report.written} files of {report.patients} patients written; {target / 'deidentification.json'}")
    for reason, count in sorted(report.refused.items()):
        typer.echo(f"  left out: {count} x {reason}")
    if report.refused:
        raise typer.Exit(1)


@app.command()
def send(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders that hold them.")],
    to: Annotated[str, typer.Option(help="AET@host:port for C-STORE, or the http(s) root of a DICOMweb service.")],
    calling: Annotated[str, typer.Option(help="Our application entity title.")] = "MEDXAI",
) -> None:
    """Deliver DICOM objects by C-STORE or STOW-RS."""
    from medxai.ingest.dicom_file import is_dicom
    from medxai.session import quiet_libraries
    from medxai.settings import parse_destination
    from medxai.transport.send import send as deliver

    quiet_libraries()
    destination = parse_destination(to, calling)
    found = [p for path in paths for p in ([path] if path.is_file() else sorted(path.rglob("*"))) if p.is_file()]
    files = [path for path in found if is_dicom(path)]
    if not files:
        msg = "no DICOM file among what was given"
        raise MedxaiError(msg)
    with progress() as step:
        count = 0

        def delivered(_uid: str) -> None:
            nonlocal count
            count += 1
            step("send", count, len(files))

        deliver(files, destination, delivered)
    typer.echo(f"{count} objects delivered to {to}")


@app.command()
def worklist(
    out: Annotated[str, typer.Argument(help="Output folder of a run, or a database URL.")],
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
) -> None:
    """List studies by pseudonym, with their state and the reason of those in quarantine."""
    from medxai.records.database import open_database, sqlite_url
    from medxai.records.worklist import Worklist

    folder, url = None, out
    if "://" not in out:
        folder = Path(out)
        path = folder / ".medxai" / "worklist.sqlite"
        if not path.is_file():
            msg = "holds no worklist; give the output folder of a run, or a database URL"
            raise MedxaiError(msg, study=out)
        url = sqlite_url(path)
    print_rows(Worklist(open_database(url)).jobs(state or ()), folder)
