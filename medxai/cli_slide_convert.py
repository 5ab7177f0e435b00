"""``medxai slide convert``: slides of scanners to DICOM, so that objects can refer to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    slide: Annotated[Path, typer.Argument(help="SVS, NDPI, Philips TIFF or another file that wsidicomizer reads.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the DICOM files; must not be there yet.")],
    metadata: Annotated[
        Path | None,
        typer.Option(help="wsidicomizer's JSON file that states patient, study and specimen (nothing unless given)."),
    ] = None,
    add_levels: Annotated[
        bool, typer.Option("--add-levels", help="Compute the coarser levels that the slide lacks; not lossless.")
    ] = False,
) -> None:
    """Convert a slide with the program wsidicomizer, which is installed apart (docs/pathology.md).

    Label and overview are left out, since they may name the patient. Exit code 2 with one line when it cannot be done.
    """
    from medxai.errors import IngestError
    from medxai.identity import pseudonym, sha256_file
    from medxai.ingest.slides.convert import convert as run
    from medxai.ingest.slides.open import open_slide
    from medxai.session import quiet_libraries

    quiet_libraries()
    if not slide.is_file():
        raise IngestError("does not exist, or is no file", study=str(slide))
    name = pseudonym("file", sha256_file(slide))
    run(slide, out, metadata=metadata, add_levels=add_levels, name=name)
    with open_slide(out, name=name) as made:
        levels = ", ".join(f"{level.shape[1]} x {level.shape[0]}" for level in made.levels)
    typer.echo(f"{name}: {len(made.levels)} level(s): {levels} pixels")
    if metadata is None:
        typer.echo("no patient and no study is stated; give --metadata where objects have to return to an archive")
    typer.echo(f"{out}")
