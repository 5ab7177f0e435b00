"""Cases of a table through one model, each map measured once: what an earlier run left is taken over."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from medxai.errors import MedxaiError, TrustError
from medxai.explain.split import Forward
from medxai.identity import sha256_file, sha256_json, sha256_text
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.predict.infer import check_fit
from medxai.trust.cohort.case import make_case
from medxai.trust.cohort.measure import chosen, measure_case, missing
from medxai.trust.cohort.plan import Plan
from medxai.trust.cohort.result import CaseResult, read_result, write_result
from medxai.trust.cohort.table import Row

if TYPE_CHECKING:
    from torch import nn

    from medxai.predict.bundle import Bundle
    from medxai.predict.prepared import Prepared
    from medxai.study import SourceFiles, Volume

#: Told ``(what, step, steps)``.
Say = Callable[[str, int, int], None]


@dataclass
class Cohort:
    """What a run collected.

    Attributes:
        results: of measured cases, in the order of the tables.
        skipped: reason -> cases that could not be measured.
        taken: cases that an earlier run had measured.
    """

    results: list[CaseResult] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    taken: int = 0


def run_cohort(
    bundle: Bundle,
    network: nn.Module,
    rows: Sequence[Row],
    plan: Plan,
    folder: Path,
    say: Say,
    cohort: Cohort | None = None,
    prepared: Prepared | None = None,
) -> Cohort:
    """Measure the cases of a table and keep each as ``cases/BUNDLE/KEY.json`` below a folder.

    Methods that a run adds are measured alone; rows of methods that it does not name stay in the files.

    Args:
        bundle: the model.
        network: its network, in evaluation mode.
        rows: of the table.
        plan: what is measured.
        folder: of the results.
        say: told how far it is.
        cohort: of another fold, to go on with.
        prepared: compiled form of the network.
    """
    found = cohort or Cohort()
    layer, forward = bundle.spec.target_layer, Forward(network, prepared=prepared)
    basis = sha256_json([bundle.sha256, plan.common()])
    for number, row in enumerate(rows):
        say(f"validate {bundle.name}", number, len(rows))
        try:
            source, mask = _sources(row)
            fingerprint = sha256_text(basis, row.label, row.patient, *mask_hashes(mask))
            path = folder / "cases" / bundle.name / f"{source.key}.json"
            known = read_result(path, fingerprint)
            if known is not None and not missing(plan, known):
                found.results.append(chosen(known, plan))
                found.taken += 1
                continue
            volume = read_study(source, bundle.spec.modalities[0]).volume
            check_fit(bundle, volume)
            case = make_case(
                bundle,
                network,
                volume,
                _read_mask(mask, volume),
                key=source.key,
                patient=sha256_text("patient", row.patient)[:12],
                label=row.label,
                target=plan.target,
            )
            layer = layer or _automatic(network, case.x)
            result = measure_case(forward, case, layer, plan, bundle=bundle.name, fingerprint=fingerprint, known=known)
            write_result(path, result)
            found.results.append(chosen(result, plan))
        except MedxaiError as error:
            found.skipped[error.reason] += 1
    return found


def mask_hashes(mask: SourceFiles) -> list[str]:
    """Hashes of a mask's files."""
    return sorted(sha256_file(path) for path in mask.files)


def _sources(row: Row) -> tuple[SourceFiles, SourceFiles]:
    """Files of image and mask.

    Raises:
        TrustError: there is no mask, or a path is not one image.
    """
    if row.mask is None:
        msg = "the table names no mask"
        raise TrustError(msg)
    found = []
    for path, word in ((row.image, "image"), (row.mask, "mask")):
        if not path.exists():
            msg = f"the {word} of the table is not there"
            raise TrustError(msg)
        with tempfile.TemporaryDirectory() as workspace:
            sources = discover([path], Path(workspace)).sources
        if len(sources) != 1:
            msg = f"the {word} of the table holds {len(sources)} images, not one"
            raise TrustError(msg)
        found.append(sources[0])
    return found[0], found[1]


def _read_mask(mask: SourceFiles, volume: Volume) -> Volume:
    return read_study(mask, volume.modality).volume


def _automatic(network: nn.Module, x: object) -> str:
    from medxai.explain.target_layer import find_target_layer

    return find_target_layer(network, x)  # type: ignore[arg-type]
