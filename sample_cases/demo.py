"""The demo: explain phantom studies of known truth end to end and say whether the maps hit the lesions.

``python -m sample_cases.demo`` (or ``make demo``). The cine that pydicom carries, of a heart, goes to the lung
ultrasound model. With MEDXAI_DATA it also runs real breast and lung ultrasound and the repaired real chest CT. Exit
code 1 when a lesion was missed, DICOM and NIfTI differ, the broken study was not put aside, or a map of the heart
counts as supported.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medxai.errors import MedxaiError
from sample_cases.make import make_set

if TYPE_CHECKING:
    from rich.console import Console

    from medxai.records.worklist import JobRow
    from medxai.settings import RunSettings

CASES = Path("sample_cases/generated")
CONFIG = Path("configs/demo.yaml")
#: Peaks below this share of the map's maximum do not count.
_PEAK = 0.25
_BREAST = ("malignant", "benign", "normal")
_CLIPS = ("covid/Cov_recommendations_likebutterfly_mov5.mov", "healthy/Reg_recommendations_alines_mov1.mov")


@dataclass(frozen=True)
class Hit:
    """One planted lesion and the nearest peak of the map.

    Attributes:
        study: folder name of the phantom.
        source: ``dicom`` or ``nifti``.
        distance_mm: from the lesion's centre to the nearest peak; infinite without any.
        limit_mm: the lesion's radius plus half a cell of the layer grid, which is as fine as a map can be.
    """

    study: str
    source: str
    distance_mm: float
    limit_mm: float

    @property
    def good(self) -> bool:
        """True when a peak lies in the lesion, as far as the grid can tell."""
        return self.distance_mm <= self.limit_mm


def main() -> int:
    """Make the cases, run the batch, compare with the truth, print where everything is."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        good = _phantoms(console)
        good &= _cine(console)
        root = os.environ.get("MEDXAI_DATA")
        if root:
            good &= _real(console, Path(root))
        else:
            console.print("\nSet MEDXAI_DATA to a folder of real images to run those too.")
    except MedxaiError as error:
        console.print(f"[red]error:[/red] {error}")
        return 2
    return 0 if good else 1


def peaks(values: npt.NDArray[np.float32], cell_voxels: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Index ``[N, 3]`` of local maxima of at least a quarter of the maximum, one per cell-sized neighbourhood."""
    from scipy.ndimage import maximum_filter

    top = float(values.max())
    if top <= 0:
        return np.zeros((0, 3), dtype=np.int64)
    size = [max(3, int(2 * round(v / 2) + 1)) for v in cell_voxels]
    return np.argwhere((values == maximum_filter(values, size=size)) & (values >= _PEAK * top))


def load_map(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The exported NIfTI map as ``[D, H, W]`` with its index -> LPS affine."""
    import nibabel

    (path,) = folder.glob("nifti_gradcam_*_original.nii.gz")
    image = nibabel.load(path)
    values = np.asarray(image.dataobj, dtype=np.float32).transpose(2, 1, 0)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    return values, affine[:, [2, 1, 0, 3]]


def lesion_hits(folder: Path, truth: dict[str, Any], source: str) -> list[Hit]:
    """Compare one study's map with its planted lesions."""
    values, affine = load_map(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    cell = np.array(manifest["explanations"][0]["cell_mm"])
    found = peaks(values, cell / np.linalg.norm(affine[:3, :3], axis=0))
    places = found @ affine[:3, :3].T + affine[:3, 3]
    hits = []
    for lesion in truth["lesions"]:
        distance = np.linalg.norm(places - np.array(lesion["centre_mm"]), axis=1)
        limit = float(lesion["radius_mm"]) + float(np.linalg.norm(cell)) / 2
        hits.append(Hit(truth["key"], source, float(distance.min(initial=np.inf)), limit))
    return hits


def _phantoms(console: Console) -> bool:
    from flows.explain_batch import explain_batch
    from medxai.cli_progress import progress
    from medxai.pipeline import find_studies
    from medxai.settings import load_settings

    console.rule("Phantom studies of known truth")
    if not (CASES / "truth.json").exists():
        make_set(CASES, with_broken=True)
    settings = load_settings(CONFIG)
    with progress() as step:
        rows = explain_batch(settings, step)
    truth = json.loads((CASES / "truth.json").read_text())
    where = {source.key: source.files[0] for source in find_studies(settings).sources}
    good = _table(console, settings, rows, truth, where)
    _outputs(console, settings.output, rows)
    return good


def _table(
    console: Console, settings: RunSettings, rows: list[JobRow], truth: dict[str, Any], where: dict[str, Path]
) -> bool:
    from rich.table import Table

    table = Table(title="What was planted, what was found")
    for column in ("phantom", "source", "truth", "decision", "lesion to nearest peak", "verdict"):
        table.add_column(column)
    good = True
    maps: dict[str, list[npt.NDArray[np.float32]]] = {}
    studies = {study["key"]: study for study in truth["studies"]}
    for row in sorted(rows, key=lambda r: str(where.get(r.study_key, ""))):
        path = where.get(row.study_key)
        name = "?" if path is None else path.name.split(".")[0] if path.suffix == ".gz" else path.parent.name
        source = "nifti" if path is not None and path.suffix == ".gz" else "dicom"
        if name not in studies:
            expected = row.state == "quarantined"
            good &= expected
            table.add_row(name, source, "broken", row.state, "-", "as it must be" if expected else "NOT PUT ASIDE")
            console.print(f"put aside: {row.study_key}: {row.reason}", highlight=False)
            continue
        if row.state != "done":
            good = False
            table.add_row(name, source, studies[name]["label"], row.state, "-", row.reason)
            continue
        folder = settings.output / row.study_key
        decided = json.loads((folder / "manifest.json").read_text())["decided"]
        hits = lesion_hits(folder, studies[name], source)
        maps.setdefault(name, []).append(load_map(folder)[0])
        right = decided == studies[name]["label"] and all(hit.good for hit in hits)
        good &= right
        words = ", ".join(f"{hit.distance_mm:.0f} mm (limit {hit.limit_mm:.0f})" for hit in hits) or "-"
        verdict = ("hit" if hits else "correct") if right else "MISSED"
        table.add_row(name, source, studies[name]["label"], decided, words, verdict)
    console.print(table)
    for name, pair in sorted(maps.items()):
        if len(pair) == 2:
            difference = float(np.abs(pair[0] - pair[1]).max() / max(float(pair[0].max()), 1e-12))
            same = difference < 1e-3
            good &= same
            words = "same map" if same else "MAPS DIFFER"
            console.print(f"{name}: DICOM and NIfTI give the {words} (largest difference {difference:.1e} of the peak)")
    return good


def _outputs(console: Console, output: Path, rows: list[JobRow]) -> None:
    done = [row for row in rows if row.state == "done"]
    if not done:
        return
    folders = [output / row.study_key for row in done]
    with_dicom = [folder for folder in folders if list(folder.glob("*.dcm"))]
    folder = (with_dicom or folders)[0]
    console.print(f"\nResults of {len(done)} studies in {output}; for example:", highlight=False)
    kinds = (("page", "case.html"), ("picture", "picture_*.png"), ("movie", "movie_*"), ("DICOM", "*.dcm"))
    for what, pattern in kinds:
        paths = sorted(folder.glob(pattern))
        if paths:
            more = f"  (and {len(paths) - 1} more)" if len(paths) > 1 else ""
            console.print(f"  {what:8} {paths[0]}{more}", highlight=False, soft_wrap=True)


def _cine(console: Console) -> bool:
    """A real ultrasound cine that comes with pydicom: not of a lung, which the result has to say."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file("examples_ybr_color.dcm", download=False)
    if path is None:
        console.print("\nThis pydicom carries no ultrasound cine; that part of the demo is left out.")
        return True
    rows, good = _run(console, "Ultrasound cine of pydicom, shown to the lung model", "lung_us", [Path(str(path))])
    for row in rows:
        manifest = json.loads((Path(row.folder) / "manifest.json").read_text())
        trust = manifest["explanations"][0]["trust"]
        good &= trust["verdict"] != "supported"
        console.print(
            f"It shows a heart. Map {trust['verdict']}: {'; '.join(trust['reasons'])}.", highlight=False, soft_wrap=True
        )
    return good and bool(rows)


def _real(console: Console, root: Path) -> bool:
    """Real images: three breast ultrasound pictures, two lung ultrasound clips, and the repaired chest CT."""
    from medxai.ingest.repair import repair

    work = Path(".demo/real")
    batches: list[tuple[str, str, list[Path]]] = []
    breast = root / "us_breast_busi"
    if breast.exists():
        pictures = [sorted(p for p in (breast / kind).glob("*.png") if "mask" not in p.name)[0] for kind in _BREAST]
        batches.append(("Real breast ultrasound (BUSI, CC BY 4.0)", "breast_us", pictures))
    clips = [root / "us_lung" / name for name in _CLIPS]
    if find_spec("av") is None:
        console.print("\nClips need PyAV (pip install 'medxai[video]'); lung ultrasound is left out.", markup=False)
    elif all(clip.exists() for clip in clips):
        batches.append(("Real lung ultrasound (POCOVID, CC BY 4.0)", "lung_us", clips))
    chest = root / "ct_chest_dicom" / "P002"
    if chest.exists():
        shutil.rmtree(work / "repaired", ignore_errors=True)
        report = repair(chest, work / "repaired")
        console.print(f"\nrepaired {report.changed} badly de-identified CT slices; mapping in {report.mapping}")
        batches.append(("Real chest CT (COVID-CT-MD, CC BY 4.0), repaired", "chest_ct", [work / "repaired"]))
    good = True
    for title, name, inputs in batches:
        good &= _run(console, title, name, inputs)[1]
        known = "know synthetic chests alone" if name == "chest_ct" else "saw these patients in training"
        console.print(f"The shipped weights {known}: this shows the way, not the accuracy.")
    return good


def _run(console: Console, title: str, bundle: str, inputs: list[Path]) -> tuple[list[JobRow], bool]:
    """Run a bundle on real images, print decisions and where they lie; True when all were explained."""
    from medxai import pipeline
    from medxai.session import open_session
    from medxai.settings import make_settings

    console.rule(title)
    output = Path(".demo/real") / bundle
    settings = make_settings(
        {"inputs": inputs, "output": output, "bundle": bundle, "export": {"explanations": "primary"}}
    )
    session = open_session(settings)
    rows = [pipeline.run_study(session, source) for source in pipeline.find_studies(settings).sources]
    for row in rows:
        manifest = pipeline.read_manifest(output / row.study_key)
        decision = f"{manifest.decided} ({manifest.prediction[manifest.decided]:.0%})" if manifest else row.reason
        console.print(f"{row.study_key}: {row.state}, {decision}", highlight=False)
    _outputs(console, output, rows)
    return [row for row in rows if row.state == "done"], all(row.state == "done" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
