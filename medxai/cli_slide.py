"""``medxai slide``: what a whole slide is, where its tissue lies, and what its tiles are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medxai.cli_slide_convert import convert
from medxai.cli_slide_nuclei import nuclei

if TYPE_CHECKING:
    from medxai.ingest.slides.level import Slide
    from medxai.ingest.slides.survey import Survey
    from medxai.ingest.slides.tiles import TileGrid
    from medxai.ingest.slides.tissue import Tissue

slide_app = typer.Typer(help="Look at whole slides: levels, tissue, quality of tiles, nuclei.", no_args_is_help=True)
slide_app.command("nuclei")(nuclei)
slide_app.command("convert")(convert)

#: Micrometres per pixel of tiles: a magnification of about 20.
_USUAL_MPP = 0.5

SLIDE = Annotated[
    list[Path],
    typer.Argument(help="SVS, TIFF, PNG or JPEG file, DICOM files of one slide, or a folder with them alone."),
]
MPP = Annotated[
    float | None,
    typer.Option(help="Micrometres per pixel of the finest level, for files that do not state them (PNG, JPEG)."),
]
TILE = Annotated[int, typer.Option(min=16, help="Pixels of a side of a tile.")]
TILE_MPP = Annotated[
    float | None, typer.Option(help="Micrometres per pixel of tiles [0.5, or those of the finest level if coarser].")
]
LEAST = Annotated[float, typer.Option("--least-tissue", min=0, max=1, help="Share of a tile that has to be tissue.")]
MOST = Annotated[int, typer.Option(min=1, help="Tiles whose quality is measured, spread over the slide.")]


@slide_app.command("info")
def info(
    slide: SLIDE, mpp: MPP = None, tile: TILE = 256, tile_mpp: TILE_MPP = None, least_tissue: LEAST = 0.5,
    most: MOST = 200,
) -> None:  # fmt: skip
    """Print levels, colours, tissue and quality of a slide.

    Exit code 2 when it cannot be read or holds no tissue; the reason is printed.
    """
    with _opened(slide, mpp) as opened:
        _print_levels(opened)
        tissue, grid, found = _looked_at(opened, tile, tile_mpp, least_tissue, most)
        _print_tissue(tissue, grid, found)


@slide_app.command("overview")
def overview(
    slide: SLIDE,
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG to write.")],
    mpp: MPP = None, tile: TILE = 256, tile_mpp: TILE_MPP = None, least_tissue: LEAST = 0.5, most: MOST = 400,
) -> None:  # fmt: skip
    """Draw the slide with the outline of its tissue and the quality of its tiles."""
    import io

    with _opened(slide, mpp) as opened:
        tissue, grid, found = _looked_at(opened, tile, tile_mpp, least_tissue, most)
        from medxai.export.slide_overview import overview as draw
        from medxai.files import write_bytes

        stream = io.BytesIO()
        draw(opened, tissue, grid, found).save(stream, format="PNG")
    out.parent.mkdir(parents=True, exist_ok=True)
    typer.echo(f"{write_bytes(out, stream.getvalue())}")


def _opened(paths: list[Path], mpp: float | None) -> Slide:
    from medxai.ingest.slides.open import open_slide
    from medxai.session import quiet_libraries

    quiet_libraries()
    return open_slide(paths[0] if len(paths) == 1 else paths, mpp=mpp)


def _looked_at(slide: Slide, size: int, mpp: float | None, least: float, most: int) -> tuple[Tissue, TileGrid, Survey]:
    from medxai.ingest.slides.survey import survey
    from medxai.ingest.slides.tiles import tile_grid
    from medxai.ingest.slides.tissue import find_tissue

    tissue = find_tissue(slide)
    wanted = mpp or max(_USUAL_MPP, *slide.levels[0].mpp)
    grid = tile_grid(slide, tissue, size=size, mpp=wanted, least_tissue=least)
    return tissue, grid, survey(slide, grid, tissue, most=most)


def _print_levels(slide: Slide) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{slide.name}: {slide.kind}")
    for column in ("level", "columns x rows", "um per pixel (rows, columns)", "downsample", "stored tiles"):
        table.add_column(column)
    for number, level in enumerate(slide.levels):
        table.add_row(
            str(number), f"{level.shape[1]} x {level.shape[0]}", f"{level.mpp[0]:.4g}, {level.mpp[1]:.4g}",
            f"{level.downsample:.4g}", f"{level.tile[1]} x {level.tile[0]}",
        )  # fmt: skip
    Console().print(table)
    placed = "on the glass in mm" if slide.levels[0].affine is not None else "not stated"
    typer.echo(f"ICC profile: {f'{len(slide.icc)} bytes' if slide.icc else 'none'}; place: {placed}")
    for note in slide.notes:
        typer.echo(f"note: {note}")


def _print_tissue(tissue: Tissue, grid: TileGrid, found: Survey) -> None:
    quality, choice = found.quality, grid.choice
    typer.echo(
        f"tissue: {tissue.share:.1%} of the slide, {tissue.area_mm2:.3g} mm2; mean optical density "
        f"{tissue.density:.2f} (threshold {tissue.threshold:.3f})"
    )
    typer.echo(
        f"tiles: {len(grid)} of {grid.shape[0] * grid.shape[1]}, {grid.size} pixels at {choice.mpp:.4g} um from level "
        f"{choice.level}, resized by {choice.factor[0]:.4g}, {choice.factor[1]:.4g}"
    )
    flags = {"blurred": quality.blurred, "ink": quality.inked, "fold": quality.folded}
    listed = ", ".join(f"{name} {int(flag.sum())}" for name, flag in flags.items())
    typer.echo(
        f"quality of {len(found.grid)} tiles: good {int(quality.good.sum())}, {listed}, unreadable {len(found.failed)}"
    )
    for reason in [tile.reason for tile in found.failed][:3] + list(tissue.damaged[:3]):
        typer.secho(f"damaged: {reason}", fg="yellow")
