"""Settings of `medxai brain explain` and `medxai brain ablate`: what configs/brain_explain.yaml may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, PositiveInt

from medxai.prepare.brain.settings import AtlasOptions
from medxai.settings import checked, read_yaml
from medxai.strict import Strict

Kind = TypeVar("Kind", bound=BaseModel)
Percent = Annotated[float, Field(gt=0, le=100)]


class CohortSettings(Strict):
    """What both commands read.

    Attributes:
        features: derivatives data set that `medxai brain features` wrote.
        bundle: name of a shipped bundle of a fusion network, or a folder.
        output: folder of the results.
        subjects: which; all that are finished if empty.
        groups: what values of the column ``group`` of participants.tsv mean, in the labels of the bundle
            (``{CN: control, MCI: patient}``); values that are labels already need no entry.
        allow: JSON file of trusted hashes of bundles; None for those of the shipped ones.
        seed: of everything random.
    """

    features: Path
    bundle: str
    output: Path
    subjects: tuple[str, ...] = ()
    groups: Mapping[str, str] = {}
    allow: Path | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class ExplainSettings(CohortSettings):
    """Explaining subjects.

    Attributes:
        atlas: image of the regions of functional connectivity, in the space of the features.
        series: folder of DICOM MR of the one subject, or of a folder ``sub-XX`` for each.
        transform: file of ITK, rigid or affine, that brings images from the features' space to the patient's; a folder
            of ``sub-XX.*`` for several subjects.
        percent: of the edges that tables and connectograms show.
        top_regions: of each map that become segments and groups of the report.
        chunk: marked inputs that exist at once.
        series_number: of the first DICOM object; the others follow.
        send_withheld: write maps as objects although their modality hardly speaks for the class.
    """

    atlas: AtlasOptions | None = None
    series: Path | None = None
    transform: Path | None = None
    percent: Percent = 2.0
    top_regions: PositiveInt = 5
    chunk: PositiveInt = 16
    series_number: Annotated[int, Field(ge=1, le=2_000_000_000)] = 9100
    send_withheld: bool = False


class AblateSettings(CohortSettings):
    """Ablating functional networks.

    Attributes:
        operator: what stands in for a network: the ``mean`` of the bundle's controls, another subject's values
            (``permute``), or ``noise`` with that mean and the subjects' deviation.
        draws: random sets as large as each network.
        only: also leave nothing else in; doubles the time.
        resamples: of the subjects, for intervals.
        batch: subjects encoded at once.
        retrain: also train anew without each network, on the cohort's own subjects in folds: a ``linear`` model of the
            edges, or the bundle's ``network`` from random weights.
        retrain_folds: in which each subject is tested once.
        retrain_strength: ``C`` of the linear model, larger fits closer.
        retrain_epochs: of the network.
        retrain_draws: random sets the network is trained without: 0 for no null and no p, or at least 200. The linear
            model takes `draws`.
        group_by: column of participants.tsv whose subjects stay in one fold; ``carrier`` or ``family`` if there is one.
    """

    operator: Literal["mean", "permute", "noise"] = "mean"
    draws: Annotated[int, Field(ge=200)] = 200
    only: bool = True
    resamples: Annotated[int, Field(ge=200)] = 2000
    batch: PositiveInt = 16
    retrain: Literal["none", "linear", "network"] = "none"
    retrain_folds: Annotated[int, Field(ge=2)] = 5
    retrain_strength: Annotated[float, Field(gt=0)] = 100.0
    retrain_epochs: PositiveInt = 10
    retrain_draws: Literal[0] | Annotated[int, Field(ge=200)] = 0
    group_by: str | None = None


def load_brain_settings(kind: type[Kind], path: Path | None, changes: Mapping[str, Any], where: str) -> Kind:
    """Settings from a YAML file with `changes` in place of what stands there, or from these alone.

    Raises:
        SettingsError: unreadable, or one line that names every wrong field.
    """
    return checked(kind, {**(read_yaml(path) if path else {}), **changes}, str(path) if path else where)
