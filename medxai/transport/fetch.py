"""Fetching studies into the spool: QIDO-RS and WADO-RS, or C-FIND with C-MOVE or C-GET (PS3.4 annex C)."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medxai.errors import DeliveryError, IngestError, MedxaiError
from medxai.ingest.identifiers import valid_uid
from medxai.settings import Destination
from medxai.transport.associate import MOST_CONTEXTS, association, library
from medxai.transport.failures import RetryableError
from medxai.transport.incoming import NotUnderstoodError, file_head, identify
from medxai.transport.query import find
from medxai.transport.receive import MISMATCH, NOT_UNDERSTOOD, OUT_OF_RESOURCES, SUCCESS, SYNTAXES
from medxai.transport.spool import Spool, SpoolFullError, study_key
from medxai.transport.web import retrieve, search_studies

if TYPE_CHECKING:
    from pydicom import Dataset

logger = logging.getLogger(__name__)

STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
#: Explicit and implicit VR little endian.
_PLAIN = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")


def matching_studies(node: Destination, keys: Mapping[str, str]) -> list[str]:
    """StudyInstanceUIDs that match a query.

    Args:
        node: whom to ask.
        keys: attribute keyword -> value, for example ``{"StudyDate": "20240101-20240131", "ModalitiesInStudy": "CT"}``.

    Raises:
        DeliveryError: the node refused, or does not answer.
    """
    if node.kind == "dicomweb":
        return search_studies(node, keys)
    rows = find(node, "STUDY", keys, ("StudyInstanceUID",))
    return list(dict.fromkeys(row["StudyInstanceUID"] for row in rows if row["StudyInstanceUID"]))


def fetch_study(
    node: Destination, study_uid: str, spool: Spool, *, series_uid: str | None = None, move_to: str | None = None
) -> tuple[str, int]:
    """Fetch a study, or one series of it, into the spool and queue it; no quiet time is waited for.

    Args:
        node: where it is.
        study_uid: StudyInstanceUID.
        spool: where it goes.
        series_uid: SeriesInstanceUID, or None for all.
        move_to: our own application entity title; a listener of this name must be running for C-MOVE.

    Returns:
        Pseudonym of the study, and the number of objects that came.

    Raises:
        DeliveryError: the node refused, does not answer, or did not send everything.
        IngestError: `study_uid` is not a UID.
        SpoolFullError: it does not fit.
    """
    for uid in (study_uid, series_uid):
        if uid is not None and not valid_uid(uid):
            msg = "the identifier of the study or series is not a valid UID"
            raise IngestError(msg)
    key = study_key(study_uid)
    before = spool.records.get(key)
    spool.records.hold(key)
    try:
        count = _fetch(node, study_uid, series_uid, spool, move_to)
    except Exception as error:
        reason = error.reason if isinstance(error, MedxaiError) else f"unexpected {type(error).__name__}"
        spool.records.let_go(key, before, reason)
        raise
    spool.queue(key)
    return key, count


def _fetch(node: Destination, study_uid: str, series_uid: str | None, spool: Spool, move_to: str | None) -> int:
    if node.kind == "dicomweb":
        count = _fetch_web(node, study_uid, series_uid, spool)
    elif node.retrieve == "get":
        count = _fetch_get(node, study_uid, series_uid, spool)
    else:
        if move_to is None:
            msg = f"{node.name} is fetched by C-MOVE, which needs the listener: set listen, or retrieve: get"
            raise DeliveryError(msg)
        count = _fetch_move(node, study_uid, series_uid, move_to)
    if not count:
        raise DeliveryError(f"{node.name} has nothing of this study", study=study_key(study_uid))
    return count


def _fetch_web(node: Destination, study_uid: str, series_uid: str | None, spool: Spool) -> int:
    count = 0
    for dataset in retrieve(node, study_uid, series_uid):
        buffer = io.BytesIO()
        try:
            dataset.save_as(buffer, enforce_file_format=True)
        except Exception as error:
            msg = f"{node.name} sent an object that is not DICOM ({type(error).__name__})"
            raise DeliveryError(msg, study=study_key(study_uid)) from None
        if str(dataset.get("StudyInstanceUID", "")) != study_uid or not dataset.get("SOPInstanceUID"):
            msg = f"{node.name} sent an object of another study, or one without identifiers"
            raise DeliveryError(msg, study=study_key(study_uid))
        spool.store(study_uid, str(dataset.SOPInstanceUID), (buffer.getbuffer(),))
        count += 1
    return count


def _query(study_uid: str, series_uid: str | None) -> Dataset:
    from pydicom import Dataset

    asked = Dataset()
    asked.QueryRetrieveLevel = "SERIES" if series_uid else "STUDY"
    asked.StudyInstanceUID = study_uid
    if series_uid:
        asked.SeriesInstanceUID = series_uid
    return asked


def _fetch_move(node: Destination, study_uid: str, series_uid: str | None, move_to: str) -> int:
    library()
    with association(node, [(STUDY_ROOT_MOVE, _PLAIN)], query=True) as made:
        answers = made.send_c_move(_query(study_uid, series_uid), move_to, STUDY_ROOT_MOVE)
        return _sub_operations(node, answers, study_key(study_uid), f"; check that it knows {move_to} and its port")


def _fetch_get(node: Destination, study_uid: str, series_uid: str | None, spool: Spool) -> int:
    pynetdicom = library()
    level = {"StudyInstanceUID": study_uid, **({"SeriesInstanceUID": series_uid} if series_uid else {})}
    rows = find(node, "IMAGE" if series_uid else "SERIES", level, ("SeriesInstanceUID", "SOPClassUID", "Modality"))
    classes = dict.fromkeys(row["SOPClassUID"] for row in rows if row["SOPClassUID"])
    if not classes:  # SOP classes are no key of the SERIES level: offer all that fit into one association
        storage = [str(context.abstract_syntax) for context in pynetdicom.StoragePresentationContexts]
        classes = dict.fromkeys(storage[: MOST_CONTEXTS - 1])
    roles = [pynetdicom.build_role(uid, scp_role=True) for uid in classes]
    key = study_key(study_uid)

    def keep(event: Any) -> int:
        request, syntax = event.request, str(event.context.transfer_syntax)
        data = request.DataSet.getbuffer()
        try:
            found = identify(data, syntax)
            if found.study_uid != study_uid or found.sop_uid != str(request.AffectedSOPInstanceUID):
                return MISMATCH
            head = file_head(found.sop_class, found.sop_uid, syntax)
            spool.store(found.study_uid, found.sop_uid, (head, data))
        except NotUnderstoodError as error:
            logger.warning("%s: refused an object: %s", key, error)
            return NOT_UNDERSTOOD
        except (SpoolFullError, OSError) as error:
            logger.warning("%s: refused an object: %s", key, getattr(error, "reason", type(error).__name__))
            return OUT_OF_RESOURCES
        finally:
            data.release()
        return SUCCESS

    contexts = [(STUDY_ROOT_GET, _PLAIN), *((uid, SYNTAXES) for uid in classes)]
    handlers = [(pynetdicom.evt.EVT_C_STORE, keep)]
    with association(node, contexts, query=True, roles=roles, handlers=handlers) as made:
        answers = made.send_c_get(_query(study_uid, series_uid), STUDY_ROOT_GET)
        return _sub_operations(node, answers, key, "")


def _sub_operations(node: Destination, answers: Any, key: str, advice: str) -> int:
    """Number of objects of a C-MOVE or C-GET that ended well (PS3.4 tables C.4-2 and C.4-3)."""
    for status, _ in answers:
        code = status.get("Status")
        if code is None:
            raise RetryableError(f"{node.name} gave no answer within {node.response_seconds:g} s", study=key)
        if code in (0xFF00, 0xFF01):
            continue
        failed = int(status.get("NumberOfFailedSuboperations", 0) or 0)
        completed = int(status.get("NumberOfCompletedSuboperations", 0) or 0)
        warned = int(status.get("NumberOfWarningSuboperations", 0) or 0)
        if code == 0x0000 and not failed:
            return completed + warned
        if code == 0xB000 and not failed:
            return completed + warned
        kind = RetryableError if 0xA700 <= code <= 0xA7FF else DeliveryError
        what = f"{failed} objects did not come" if failed else "nothing came"
        raise kind(f"{node.name} ended with status 0x{code:04X}, {what}{advice}", study=key)
    raise RetryableError(f"{node.name} ended without a final answer", study=key)
