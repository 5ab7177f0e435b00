"""Delivery of DICOM files: C-STORE (PS3.4 annex B) or STOW-RS (PS3.18 section 10.5), with an answer per object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai.errors import DeliveryError, MedxaiError
from medxai.export.naming import uid_name
from medxai.settings import Destination

if TYPE_CHECKING:
    from pydicom import Dataset
    from pynetdicom.association import Association
    from requests import PreparedRequest, Response, Session

#: An association negotiates at most this many presentation contexts (PS3.8 section 9.3.2.2: odd numbers to 255).
_MOST_CONTEXTS = 128

Delivered = Callable[[str], None]


class RetryableError(DeliveryError):
    """The destination did not answer or was busy: the same delivery may succeed later."""

    retryable = True


def is_retryable(error: BaseException) -> bool:
    """Return True when the failure was of the line or of a busy destination, not of the object."""
    return bool(getattr(error, "retryable", False))


def send(paths: Sequence[Path], destination: Destination, on_delivered: Delivered | None = None) -> list[str]:
    """Deliver files in order and return the SOP Instance UIDs that the destination accepted.

    Args:
        paths: DICOM files.
        destination: where to.
        on_delivered: called with each SOP Instance UID as soon as it is accepted, so that a caller can record it
            before anything else fails.

    Raises:
        DeliveryError: an object was refused; the message names its SOP class and the status, and
            `is_retryable` tells whether trying again makes sense.
        MedxaiError: the optional package for this kind of destination is missing.
    """
    if not paths:
        return []
    deliver = _store if destination.kind == "dimse" else _stow
    accepted: list[str] = []
    for uid in deliver(paths, destination):
        accepted.append(uid)
        if on_delivered is not None:
            on_delivered(uid)
    return accepted


def present(destination: Destination, study_uid: str, series_uid: str, sop_uid: str) -> bool | None:
    """Return whether the destination holds an object; None when it cannot be asked (DIMSE storage alone).

    Raises:
        DeliveryError: a DICOMweb destination does not answer.
    """
    if destination.kind == "dimse":
        return None
    with _web(destination) as client:
        found = client.search_for_instances(
            study_instance_uid=study_uid,
            series_instance_uid=series_uid,
            search_filters={"SOPInstanceUID": sop_uid},
            limit=1,
        )
    return any(item.get("00080018", {}).get("Value") == [sop_uid] for item in found)


def _missing(package: str) -> MedxaiError:
    return MedxaiError(f"{package} is not installed; deliver after `pip install medxai[network]`")


def _class_name(uid: str) -> str:
    name = uid_name(uid)
    return uid if name == uid else f"{name} ({uid})"


def _store(paths: Sequence[Path], destination: Destination) -> Iterator[str]:
    """Yield accepted SOP Instance UIDs of one C-STORE association."""
    import pydicom

    try:
        from pynetdicom import AE
    except ImportError:
        raise _missing("pynetdicom") from None
    entity = AE(ae_title=destination.calling_aet)
    entity.acse_timeout = entity.connection_timeout = destination.connect_seconds
    entity.dimse_timeout = entity.network_timeout = destination.response_seconds
    needed = dict.fromkeys(_syntax(path) for path in paths)
    if len(needed) > _MOST_CONTEXTS:
        raise DeliveryError(f"{destination.name}: more than {_MOST_CONTEXTS} kinds of objects in one delivery")
    for sop_class, syntax in needed:
        entity.add_requested_context(sop_class, syntax)
    association = entity.associate(destination.host, destination.port, ae_title=destination.aet)
    if not association.is_established:
        raise _unassociated(association, destination)
    try:
        accepted = {(c.abstract_syntax, str(c.transfer_syntax[0])) for c in association.accepted_contexts}
        for path in paths:
            sop_class, syntax = _syntax(path)
            if (sop_class, syntax) not in accepted:
                what = f"{_class_name(sop_class)} in transfer syntax {_class_name(syntax)}"
                raise DeliveryError(f"{destination.name} does not accept {what}")
            dataset = pydicom.dcmread(path)
            try:
                status = association.send_c_store(dataset)
            except (RuntimeError, OSError) as error:
                raise RetryableError(f"{destination.name}: the association broke ({type(error).__name__})") from error
            _check(status, sop_class, destination)
            yield str(dataset.SOPInstanceUID)
    finally:
        if association.is_established:
            association.release()


def _syntax(path: Path) -> tuple[str, str]:
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    try:
        meta = read_file_meta_info(path)
        return str(meta.MediaStorageSOPClassUID), str(meta.TransferSyntaxUID)
    except (InvalidDicomError, AttributeError, OSError) as error:
        raise DeliveryError(f"{path.name} is not a readable DICOM file ({type(error).__name__})") from error


def _unassociated(association: Association, destination: Destination) -> DeliveryError:
    where = f"{destination.name} ({destination.host}:{destination.port}, AE {destination.aet})"
    if association.is_rejected:
        answer = association.acceptor.primitive
        reason = getattr(answer, "reason_str", "no reason given") if answer is not None else "no reason given"
        # Result 2 is "rejected transient" (PS3.8 table 9-21): the peer itself asks to try again.
        kind = RetryableError if getattr(answer, "result", 1) == 2 else DeliveryError
        return kind(f"{where} rejected the association: {reason}; check that it knows {destination.calling_aet}")
    return RetryableError(f"{where} did not answer; check host, port and that the node is running")


def _check(status: Dataset, sop_class: str, destination: Destination) -> None:
    """Raise unless a C-STORE status is success or warning (PS3.4 table B.2-1)."""
    code = status.get("Status")
    name = _class_name(sop_class)
    if code is None:
        raise RetryableError(f"{destination.name} gave no answer to {name} within {destination.response_seconds:g} s")
    if code == 0x0000 or 0xB000 <= code <= 0xBFFF:
        return
    # A7xx is "out of resources" and passes; all other failures are about the object.
    kind = RetryableError if 0xA700 <= code <= 0xA7FF else DeliveryError
    comment = str(status.get("ErrorComment", "") or "").strip()
    raise kind(f"{destination.name} refused {name} with status 0x{code:04X}" + (f": {comment}" if comment else ""))


@contextmanager
def _web(destination: Destination) -> Iterator[Any]:
    """Yield a DICOMweb client whose failures are DeliveryErrors."""
    try:
        import requests
        from dicomweb_client import DICOMwebClient
    except ImportError:
        raise _missing("dicomweb-client") from None
    session = _session(destination)
    try:
        client = DICOMwebClient(destination.url, session=session)
        # The worklist decides when to try again; the client's own half minute would only hide the cause.
        client.set_http_retry_params(retry=False)
        yield client
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        kind = RetryableError if code >= 500 or code in (408, 429) else DeliveryError
        raise kind(f"{destination.name} answered HTTP {code} at {destination.url}") from error
    except (requests.RequestException, OSError) as error:
        where = f"{destination.name} ({destination.url})"
        raise RetryableError(f"{where} did not answer ({type(error).__name__})") from error
    finally:
        session.close()


def _session(destination: Destination) -> Session:
    import requests
    from requests.adapters import HTTPAdapter

    class Limited(HTTPAdapter):
        """Requests without a limit would wait for ever."""

        def send(self, request: PreparedRequest, **settings: Any) -> Response:  # type: ignore[override]
            settings["timeout"] = (destination.connect_seconds, destination.response_seconds)
            return super().send(request, **settings)

    session = requests.Session()
    session.mount("http://", Limited())
    session.mount("https://", Limited())
    return session


def _stow(paths: Sequence[Path], destination: Destination) -> Iterator[str]:
    """Yield accepted SOP Instance UIDs; one request per object, so that an answer belongs to one object."""
    import pydicom

    with _web(destination) as client:
        for path in paths:
            sop_class, _ = _syntax(path)
            dataset = pydicom.dcmread(path)
            uid = str(dataset.SOPInstanceUID)
            response = client.store_instances([dataset], study_instance_uid=str(dataset.StudyInstanceUID))
            for item in response.get("FailedSOPSequence", []):
                reason = int(item.get("FailureReason", 0))
                kind = RetryableError if 0xA700 <= reason <= 0xA7FF else DeliveryError
                raise kind(f"{destination.name} refused {_class_name(sop_class)} with reason 0x{reason:04X}")
            yield uid
