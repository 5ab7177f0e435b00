"""Nuclei of a slide from its files to the files of its folder: resumed when killed, done once."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai import __version__
from medxai.errors import IngestError, MedxaiError
from medxai.files import alone, write_bytes, write_dicom, write_text
from medxai.identity import sha256_file, sha256_files, sha256_json
from medxai.ingest.discover import Discovery, discover
from medxai.ingest.slides.choose import TOLERANCE
from medxai.ingest.slides.open import open_slide
from medxai.predict.nuclei_tiles import Region, plan_tiles, scale_of, tissue_of
from medxai.study import SourceFiles

if TYPE_CHECKING:
    from medxai.ingest.slides.level import Slide
    from medxai.networks.nuclei_unet import NucleiUNet
    from medxai.predict.nuclei_tiles import NucleiTiles
    from medxai.predict.slide_nuclei import Segment, SlideNuclei

#: Raise it when the same settings give other nuclei.
_ALGORITHM = "1"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class NucleiOptions:
    """What is asked of a slide.

    Attributes:
        mpp: micrometres per pixel of files that do not state them.
        region: see `medxai.predict.nuclei_tiles.Region`.
        most: tiles, spread over the tissue; None for all.
    """

    mpp: float | None = None
    region: Region | None = None
    most: int | None = None


@dataclass(frozen=True, eq=False)
class NucleiModel:
    """A network of nuclei and what its bundle says of it.

    Attributes:
        network: in eval mode.
        name: bundle name and version.
        sha256: hash of the bundle.
        caution: what whoever reads a result must know of the training.
    """

    network: NucleiUNet
    name: str
    sha256: str
    caution: str


@dataclass(frozen=True)
class NucleiDone:
    """What was found, as ``manifest.json`` of the folder has it.

    Attributes:
        key: pseudonym of the slide.
        identity: hashes of input, model and settings.
        nuclei: how many.
        doubtful: of them.
        density: in a mm2 of the tissue that was looked at; None without tissue.
        read: tiles.
        failed: tiles that could not be read.
        outputs: name of each file -> its hash.
        software: that made them.
    """

    key: str
    identity: tuple[str, str, str]
    nuclei: int
    doubtful: int
    density: float | None
    read: int
    failed: int
    outputs: dict[str, str]
    software: str = f"medxai {__version__}"

    @property
    def line(self) -> str:
        """The result in one line."""
        density = "" if self.density is None else f", {self.density:.0f} in a mm2 of tissue"
        tiles = f"{self.read} tiles" + (f", {self.failed} could not be read" if self.failed else "")
        return f"{self.key}: {self.nuclei} nuclei{density}, {self.doubtful} doubtful; {tiles}"


def open_model(bundle: str | Path, allow: Path | None = None) -> NucleiModel:
    """Load a bundle of nuclei.

    Args:
        bundle: name of a shipped bundle, or a folder.
        allow: JSON file with hashes of further bundles.

    Raises:
        BundleError: see `medxai.predict.nuclei_bundle.load_nuclei`.
    """
    from medxai.predict.bundle import AllowList, locate_bundle
    from medxai.predict.nuclei_bundle import inspect_nuclei, load_nuclei

    accepted = AllowList.shipped()
    if allow is not None:
        accepted = accepted.joined(AllowList.read(allow))
    path = locate_bundle(bundle)
    network = load_nuclei(path, accepted)
    about = inspect_nuclei(path)
    return NucleiModel(network, f"{about['name']} {about['version']}", about["sha256"], about["caution"])


@contextmanager
def found_slides(paths: Sequence[Path]) -> Iterator[Discovery]:
    """Yield the slides below some paths; what was unpacked for it is removed at the end.

    Raises:
        IngestError: nothing there.
    """
    with tempfile.TemporaryDirectory(prefix="medxai-") as workspace:
        yield discover(paths, Path(workspace))


def run_nuclei(
    source: SourceFiles, model: NucleiModel, options: NucleiOptions, out: Path, progress: Progress | None = None
) -> NucleiDone:
    """Find the nuclei of a slide and write all files of its folder, see `folder_of`.

    Tiles are kept below ``out/.medxai`` until the files are there. What is there already of the same slide, model and
    settings is not made again.

    Args:
        source: of the slide.
        model: see `open_model`.
        options: what is asked.
        out: folder of the results.
        progress: called with (tiles done, tiles in all).

    Raises:
        MedxaiError: no slide, no tissue, no tile that can be read, or another process has it.
    """
    asked = {**asdict(options), "algorithm": _ALGORITHM, "software": __version__}
    identity = (sha256_files(source.files), model.sha256, sha256_json(asked))
    folder = folder_of(out, source.key)
    if (done := read_done(folder)) is not None and done.identity == identity:
        return done
    work = out / ".medxai" / "nuclei" / f"{source.key}-{sha256_json(identity)[:16]}"
    with alone(work) as free:
        if not free:
            raise MedxaiError("another process looks for its nuclei", study=source.key)
        mpp = None if source.kind == "dicom" else options.mpp
        with open_slide(list(source.files), mpp=mpp, name=source.key) as slide:
            done = _run(slide, source.key, identity, model, options, folder, work, progress)
    shutil.rmtree(work, ignore_errors=True)
    return done


def folder_of(out: Path, key: str) -> Path:
    """Folder of the nuclei of a slide, another one than that of its explanation by `medxai run`."""
    return out / f"{key}-nuclei"


def read_done(folder: Path) -> NucleiDone | None:
    """What a folder holds; None unless all of its files are there unchanged."""
    try:
        stored = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        done = NucleiDone(**(stored | {"identity": tuple(stored["identity"])}))
        return done if all(sha256_file(folder / name) == digest for name, digest in done.outputs.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(
    slide: Slide, key: str, identity: tuple[str, str, str], model: NucleiModel, options: NucleiOptions, folder: Path,
    work: Path, progress: Progress | None,
) -> NucleiDone:  # fmt: skip
    from medxai.predict.nuclei import segment_field
    from medxai.predict.slide_nuclei import find_nuclei

    network = model.network
    mpp = scale_of(slide, network.mpp)
    radius, tissue = network.radius * network.mpp / mpp, tissue_of(slide)
    plan = plan_tiles(slide, tissue, mpp=mpp, radius=radius, region=options.region, most=options.most)
    segment = partial(segment_field, network, mpp=mpp)
    nuclei = find_nuclei(slide, plan, segment, radius=radius, work=work, progress=progress)
    shutil.rmtree(folder, ignore_errors=True)
    _write(slide, plan, nuclei, segment, identity, model, folder, key)
    files = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    density = float(nuclei.density)
    done = NucleiDone(
        key=key,
        identity=identity,
        nuclei=len(nuclei),
        doubtful=sum(bool(words) for words in nuclei.flags),
        density=density if density == density else None,
        read=len(nuclei.numbers),
        failed=len(nuclei.failed),
        outputs={path.name: sha256_file(path) for path in files},
    )
    write_text(folder / "manifest.json", json.dumps(asdict(done), indent=1, sort_keys=True) + "\n")
    return done


def _write(
    slide: Slide, plan: NucleiTiles, nuclei: SlideNuclei, segment: Segment, identity: tuple[str, str, str],
    model: NucleiModel, folder: Path, key: str,
) -> None:  # fmt: skip
    from medxai.export.nuclei_annotations import build
    from medxai.export.nuclei_contours import write_geojson, write_table
    from medxai.export.nuclei_page import shown_fields, write_page
    from medxai.export.nuclei_pictures import overview
    from medxai.export.provenance import Maker
    from medxai.export.slide_summary import NO_OBJECTS
    from medxai.pipeline import acquired
    from medxai.predict.slide_nuclei import look_again

    write_table(nuclei, folder / "nuclei.tsv")
    write_geojson(nuclei, folder / "nuclei.geojson", model.name)
    headers = slide.levels[0].headers
    objects = NO_OBJECTS if not headers else "" if len(nuclei) else "No annotations: there is no nucleus."
    if headers and len(nuclei):
        made = Maker(key, model.name, model.sha256, acquired(headers), "Segmentation and visual explanation")
        write_dicom(folder / "nuclei_annotations.dcm", build(nuclei, headers[0], made, identity))
    stream = io.BytesIO()
    overview(nuclei, slide, plan.tissue).save(stream, format="PNG")
    write_bytes(folder / "nuclei.png", stream.getvalue())
    kinds = zip(("typical", "doubtful"), shown_fields(nuclei), strict=True)
    about: dict[str, Any] = {
        "key": key,
        "caution": model.caution,
        "scope": _scope(slide, nuclei, plan),
        "notes": (*slide.notes, *_scale_note(plan.cores.choice.mpp, model.network.mpp)),
        "objects": objects,
        "provenance": [
            ("Model", model.name),
            ("Model SHA-256", model.sha256),
            ("Slide SHA-256", identity[0]),
            ("Settings SHA-256", identity[2]),
        ],
    }
    write_page(nuclei, {name: look_again(slide, plan, numbers, segment) for name, numbers in kinds}, folder, about)


def _scope(slide: Slide, nuclei: SlideNuclei, plan: NucleiTiles) -> str:
    rows, columns = slide.levels[0].shape
    words = f"Slide of {columns} x {rows} pixels, {plan.tissue.area_mm2:.3g} mm2 of tissue"
    if plan.region is not None:
        top, left, height, width = plan.region
        words += f"; looked at from row {top} and column {left} on, {height} rows and {width} columns"
    looked = float(nuclei.tissue_mm2.sum())
    return f"{words}; {looked:.3g} mm2 of it looked at."


def _scale_note(mpp: float, wanted: float) -> tuple[str, ...]:
    if mpp <= wanted * (1 + TOLERANCE):
        return ()
    words = f"The slide has {mpp:.3g} um per pixel and the network learnt at {wanted:g}: fields are enlarged "
    return (f"{words}{mpp / wanted:.2g} times, and contours are as much less exact.",)


def only_slide(discovery: Discovery) -> SourceFiles:
    """The one slide that was found.

    Raises:
        IngestError: there are several, or what was found is refused.
    """
    if discovery.rejected:
        first = discovery.rejected[0]
        raise first.error.about(first.key)
    if len(discovery.sources) != 1:
        msg = f"{len(discovery.sources)} slides were found; give one, or use python -m flows.nuclei_batch"
        raise IngestError(msg)
    return discovery.sources[0]
