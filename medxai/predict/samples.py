"""Network inputs from a few studies, to judge a changed network on what it was made for."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medxai.errors import BundleError, MedxaiError
from medxai.ingest.discover import discover
from medxai.ingest.read import read_study
from medxai.predict.infer import check_fit
from medxai.predict.windows import plan_windows
from medxai.prepare.prepare import prepare

if TYPE_CHECKING:
    from medxai.predict.bundle import Bundle
    from medxai.study import FloatArray

#: Windows of one study, evenly spread over it.
_WINDOWS = 4


def bundle_samples(bundle: Bundle, paths: Sequence[Path], *, most: int = 24) -> FloatArray:
    """Windows ``[N, C, *window]`` of the studies below `paths`, prepared as for inference.

    Studies that cannot be read or do not fit the bundle are passed over. NIfTI counts as the bundle's modality.

    Args:
        bundle: the model that will see them.
        paths: files, folders or archives.
        most: windows in total; studies are spread evenly over what is there.

    Raises:
        BundleError: not one study can be used.
        IngestError: a path does not exist.
    """
    spec = bundle.spec.preparation
    cuts: list[FloatArray] = []
    reason = "no study is there"
    with tempfile.TemporaryDirectory() as workspace:
        sources = discover(list(paths), Path(workspace)).sources
        for number in _spread(len(sources), most):
            try:
                volume = read_study(sources[number], bundle.spec.modalities[0]).volume
                check_fit(bundle, volume)
                pixels = prepare(volume, spec).pixels
                windows = plan_windows(pixels.shape[1:], spec)
            except MedxaiError as error:
                reason = error.reason
                continue
            cuts.append(windows.extract(pixels, _spread(len(windows), min(_WINDOWS, most))))
    if not cuts:
        msg = f"no sample for {bundle.name}: {reason}"
        raise BundleError(msg)
    found = np.concatenate(cuts)
    return found[_spread(len(found), most)]


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of ``range(count)``, evenly spaced."""
    if count <= most:
        return list(range(count))
    return [int(n) for n in np.unique(np.linspace(0, count - 1, most).round())]
