"""DICOMweb (PS3.18): one session with limits, certificates and a token; STOW-RS, QIDO-RS and WADO-RS."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medxai.errors import DeliveryError, SettingsError
from medxai.settings import Destination
from medxai.transport.c_store import class_name, syntax_of
from medxai.transport.failures import BrokenTransferError, BusyError, RefusedObjectError, RetryableError, missing
from medxai.transport.tls import client_context

if TYPE_CHECKING:
    from pydicom import Dataset
    from requests import PreparedRequest, Response, Session

#: HTTP answers that are about what was sent, not about who sent it.
_ABOUT_CONTENT = (400, 409, 413, 415, 422)
#: Rows asked for at once.
_PAGE = 1000


@contextmanager
def web_client(node: Destination) -> Iterator[Any]:
    """Yield a DICOMweb client whose failures are DeliveryErrors.

    Raises:
        DeliveryError: the service refused, or does not answer.
        MedxaiError: dicomweb-client is not installed.
        SettingsError: the token's environment variable is not set, or a certificate cannot be used.
    """
    try:
        from dicomweb_client import DICOMwebClient
    except ImportError:
        raise missing("dicomweb-client") from None
    with web_session(node) as session:
        client = DICOMwebClient(node.url, session=session)
        # The outbox decides when to try again; the client's own half minute would only hide the cause.
        client.set_http_retry_params(retry=False)
        yield client


@contextmanager
def web_session(node: Destination) -> Iterator[Session]:
    """Yield an HTTP session whose failures are DeliveryErrors.

    Raises:
        DeliveryError: the service refused, or does not answer.
        SettingsError: the token's environment variable is not set, or a certificate cannot be used.
    """
    try:
        import requests
    except ImportError:
        raise missing("dicomweb-client") from None
    session = make_session(node)
    try:
        yield session
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        kind = RefusedObjectError if code in _ABOUT_CONTENT else DeliveryError
        kind = BusyError if code >= 500 or code in (408, 429) else kind
        raise kind(f"{node.name} answered HTTP {code} at {node.url}") from None
    except requests.exceptions.SSLError:
        msg = f"{node.name} ({node.url}): the certificates do not match; check tls: ca, certificate, host_name"
        raise RetryableError(msg) from None
    except (requests.exceptions.ConnectTimeout, requests.exceptions.ConnectionError) as error:
        # A connection that was never made has moved nothing; a broken one may have.
        begun = not isinstance(error, requests.exceptions.ConnectTimeout) and "establish" not in str(error)
        raise _silent(node, error, begun=begun) from None
    except (requests.RequestException, OSError) as error:
        raise _silent(node, error, begun=True) from None
    finally:
        session.close()


def _silent(node: Destination, error: Exception, *, begun: bool) -> RetryableError:
    kind = BrokenTransferError if begun else RetryableError
    return kind(f"{node.name} ({node.url}) did not answer ({type(error).__name__})")


def make_session(node: Destination) -> Session:
    """Return a session with time limits, certificates and token of a node.

    Raises:
        SettingsError: the token's environment variable is not set, or a certificate cannot be used.
    """
    import requests
    from requests.adapters import HTTPAdapter

    context = client_context(node.tls) if node.tls is not None else None
    host_name = node.tls.host_name if node.tls is not None else None

    class Limited(HTTPAdapter):
        """Requests without a limit would wait for ever."""

        def init_poolmanager(self, *args: Any, **settings: Any) -> None:
            if context is not None:
                settings["ssl_context"] = context
            if host_name is not None:
                settings |= {"server_hostname": host_name, "assert_hostname": host_name}
            super().init_poolmanager(*args, **settings)

        def send(self, request: PreparedRequest, **settings: Any) -> Response:  # type: ignore[override]
            settings["timeout"] = (node.connect_seconds, node.response_seconds)
            return super().send(request, **settings)

    session = requests.Session()
    # A node is called as the settings say: no proxy, .netrc or CA bundle of the environment comes in between.
    session.trust_env = False
    if node.tls is not None and node.tls.ca is not None:
        session.verify = str(node.tls.ca)
    session.mount("http://", Limited())
    session.mount("https://", Limited())
    if node.token_env:
        token = os.environ.get(node.token_env, "")
        if not token:
            msg = f"the environment variable {node.token_env} with the token is not set"
            raise SettingsError(msg, study=node.name)
        session.headers["Authorization"] = f"Bearer {token}"
    return session


def stow(paths: Sequence[Path], node: Destination) -> Iterator[str]:
    """Yield accepted SOP Instance UIDs; one request per object, so that an answer belongs to one object.

    Raises:
        DeliveryError: see `medxai.transport.send.send`.
    """
    import pydicom

    with web_client(node) as client:
        for path in paths:
            sop_class, _ = syntax_of(path)
            dataset = pydicom.dcmread(path)
            uid = str(dataset.SOPInstanceUID)
            response = client.store_instances([dataset], study_instance_uid=str(dataset.StudyInstanceUID))
            for item in response.get("FailedSOPSequence", []):
                reason = int(item.get("FailureReason", 0))
                kind = RetryableError if 0xA700 <= reason <= 0xA7FF else RefusedObjectError
                raise kind(f"{node.name} refused {class_name(sop_class)} with reason 0x{reason:04X}")
            yield uid


def instances(node: Destination, study_uid: str, series_uid: str) -> set[str]:
    """SOP Instance UIDs of a series, by QIDO-RS.

    Raises:
        DeliveryError: the service refused, or does not answer.
    """
    import requests

    with web_client(node) as client:
        place = {"study_instance_uid": study_uid, "series_instance_uid": series_uid}
        try:
            return set(_every_row(client.search_for_instances, "00080018", **place))
        except requests.HTTPError as error:
            if error.response is not None and error.response.status_code == requests.codes.not_found:
                return set()  # PS3.18 allows 404 for a study that is not there
            raise


def _every_row(search: Callable[..., list[Any]], tag: str, **asked: Any) -> list[str]:
    """Values of an attribute over all pages of a search, each once, in order.

    A service may return fewer rows than it is asked for (PS3.18 section 8.3.4), so only a page without anything new
    is the last: an empty one, or the same rows again from a service that knows no offsets.
    """
    import requests

    found: dict[str, None] = {}
    while True:
        try:
            rows = search(limit=_PAGE, offset=len(found), **asked)
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            if found and code in (requests.codes.bad_request, requests.codes.not_found):
                return list(found)  # some refuse an offset beyond the last row
            raise
        before = len(found)
        found |= dict.fromkeys(value for row in rows if (value := _value(row, tag)))
        if len(found) == before:
            return list(found)


def search_studies(node: Destination, keys: Mapping[str, str]) -> list[str]:
    """StudyInstanceUIDs that match, by QIDO-RS.

    Raises:
        DeliveryError: the service refused, or does not answer.
    """
    with web_client(node) as client:
        return _every_row(client.search_for_studies, "0020000D", search_filters=dict(keys))


def retrieve(node: Destination, study_uid: str, series_uid: str | None = None) -> Iterator[Dataset]:
    """Yield the instances of a study or series one after the other, by WADO-RS, in the syntax they are stored in.

    Raises:
        DeliveryError: the service refused, or does not answer.
    """
    with web_client(node) as client:
        every = (("application/dicom", "*"),)
        if series_uid:
            yield from client.iter_series(study_uid, series_uid, media_types=every)
        else:
            yield from client.iter_study(study_uid, media_types=every)


def _value(row: Mapping[str, Any], tag: str) -> str:
    values = row.get(tag, {}).get("Value") or [""]
    return str(values[0])
