"""One validation case: the window that decides, its lesion, and the class to explain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medxai.errors import TrustError
from medxai.predict.infer import activate, fuse_logits
from medxai.predict.windows import plan_windows
from medxai.prepare.prepare import prepare
from medxai.study import Volume
from medxai.trust.truth import place_mask

if TYPE_CHECKING:
    from medxai.predict.bundle import Bundle


@dataclass(frozen=True, eq=False)
class CohortCase:
    """A case on the network's grid.

    Attributes:
        key: pseudonym of the image.
        patient: pseudonym of the patient or other group.
        x: ``[1, C, *S]`` the window with the largest weight in the decision about `index`.
        mask: ``[*S]`` bool, the lesion in that window.
        spacing: of the voxels of ``S`` in mm; None when the image has no millimetres.
        label: class of the table, empty when it names none of the model's.
        index: class that is explained.
        decided: class the model decided for.
        probability: of the explained class, after fusion of windows.
        labels: the model's classes.
    """

    key: str
    patient: str
    x: Tensor
    mask: Tensor
    spacing: tuple[float, ...] | None
    label: str
    index: int
    decided: int
    probability: float
    labels: tuple[str, ...]


def make_case(
    bundle: Bundle, network: nn.Module, volume: Volume, mask: Volume, *, key: str, patient: str, label: str, target: str
) -> CohortCase:
    """Decide about a case and cut out its decisive window.

    Args:
        bundle: the model.
        network: its network, in evaluation mode.
        volume: the image.
        mask: of the lesion; brought onto the image's grid by its place in the patient.
        key: pseudonym of the image.
        patient: pseudonym of the patient.
        label: class of the table.
        target: ``label`` or ``decision``, see `medxai.trust.cohort.plan.Plan`.

    Raises:
        TrustError: the mask does not fit, or the network gives NaN.
        MismatchError: the image does not fit the network.
    """
    spec = bundle.spec
    prepared = prepare(volume, spec.preparation)
    windows = plan_windows(prepared.pixels.shape[1:], spec.preparation)
    with torch.no_grad():
        rows = [network(torch.from_numpy(windows.extract(prepared.pixels, [i]))).numpy() for i in range(len(windows))]
    logits = np.concatenate(rows)
    if not np.isfinite(logits).all():
        msg = "the network gives NaN or infinite logits for this image"
        raise TrustError(msg)
    fused, weights = fuse_logits(logits, spec)
    decided = int(np.argmax(fused))
    index = spec.labels.index(label) if target == "label" and label in spec.labels else decided
    strongest = int(np.argmax(weights[:, index]))
    region = prepared.grid.forward(place_mask(mask, volume)[None].astype(np.float32), 0.0)
    columns = np.linalg.norm(prepared.grid.affine[:3, :3], axis=0)[-len(windows.size) :]
    return CohortCase(
        key=key,
        patient=patient,
        x=torch.from_numpy(windows.extract(prepared.pixels, [strongest])),
        mask=torch.from_numpy(windows.extract(region, [strongest])[0, 0] > 0.5),
        spacing=tuple(columns.tolist()) if volume.calibrated else None,
        label=label if label in spec.labels else "",
        index=index,
        decided=decided,
        probability=float(activate(fused, spec)[index]),
        labels=spec.labels,
    )
