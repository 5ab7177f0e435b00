"""Delivery of DICOM files: C-STORE (PS3.4 annex B) or STOW-RS (PS3.18 section 10.5), with an answer per object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from medxai.settings import Destination
from medxai.transport.c_store import store
from medxai.transport.query import images
from medxai.transport.web import instances, stow

Delivered = Callable[[str], None]


def send(paths: Sequence[Path], destination: Destination, on_delivered: Delivered | None = None) -> list[str]:
    """Deliver files in order and return the SOP Instance UIDs that the destination accepted.

    Args:
        paths: DICOM files.
        destination: where to.
        on_delivered: called with each SOP Instance UID as soon as it is accepted, so that a caller can record it
            before anything else fails.

    Raises:
        DeliveryError: an object was refused; the message names its SOP class and the status, and
            `medxai.transport.failures.is_retryable` tells whether trying again makes sense.
        MedxaiError: the optional package for this kind of destination is missing.
    """
    if not paths:
        return []
    deliver = store if destination.kind == "dimse" else stow
    accepted: list[str] = []
    for uid in deliver(paths, destination):
        accepted.append(uid)
        if on_delivered is not None:
            on_delivered(uid)
    return accepted


def held(destination: Destination, study_uid: str, series_uid: str) -> set[str] | None:
    """SOP Instance UIDs that the destination holds of a series: QIDO-RS, or C-FIND at the IMAGE level.

    Returns:
        The UIDs, or None when the destination cannot be asked (a node that stores and answers no queries).

    Raises:
        DeliveryError: it does not answer.
    """
    if destination.kind == "dimse":
        return images(destination, study_uid, series_uid)
    return instances(destination, study_uid, series_uid)
