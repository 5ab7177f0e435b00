"""``medxai slide nuclei``: nuclei of a slide or patch, their contours, density and doubts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medxai.cli_progress import progress
from medxai.errors import SettingsError


def nuclei(
    slide: Annotated[
        list[Path], typer.Argument(help="SVS, TIFF, PNG or JPEG file, DICOM files of one slide, or a folder with them.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results: a folder in it for the slide.")],
    bundle: Annotated[
        str, typer.Option("--bundle", "-b", help="Name of a bundle of nuclei, or its folder.")
    ] = "nuclei",
    region: Annotated[
        str | None,
        typer.Option(metavar="TOP,LEFT,HEIGHT,WIDTH", help="Look there alone; pixels of the finest level."),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="Micrometres per pixel of the finest level, for files that do not state them (PNG, JPEG)."),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(min=1, help="Tiles that are looked at, spread over the tissue (all of them unless given)."),
    ] = None,
    allow: Annotated[Path | None, typer.Option(help="JSON file with hashes of further bundles.")] = None,
) -> None:
    """Find, outline and count nuclei: table, GeoJSON, page and picture, and annotations of DICOM slides.

    Run again to go on where it was killed. A research output: no figure of it is to be relied on for a patient. Exit
    code 2 with one line when the slide cannot be read or holds no tissue.
    """
    from medxai.nuclei_run import NucleiOptions, folder_of, found_slides, only_slide, open_model, run_nuclei
    from medxai.session import quiet_libraries

    quiet_libraries()
    options = NucleiOptions(mpp=mpp, region=None if region is None else parse_region(region), most=most)
    model = open_model(bundle, allow)
    with found_slides(slide) as discovery, progress() as step:
        source = only_slide(discovery)
        done = run_nuclei(source, model, options, out, lambda now, total: step(source.key, now, total))
    typer.echo(done.line)
    typer.echo(f"{folder_of(out, done.key)}")


def parse_region(text: str) -> tuple[int, int, int, int]:
    """Return top, left, height and width.

    Raises:
        SettingsError: not four whole numbers, or height or width below 1.
    """
    try:
        top, left, height, width = (int(part) for part in text.split(","))
    except ValueError:
        top = left = height = width = -1
    if min(top, left) < 0 or min(height, width) < 1:
        msg = (
            f"--region is TOP,LEFT,HEIGHT,WIDTH in pixels of the finest level, for example 0,0,2000,3000, not {text!r}"
        )
        raise SettingsError(msg)
    return top, left, height, width
