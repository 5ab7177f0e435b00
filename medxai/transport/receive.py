"""The Storage and Verification SCP of the listener (PS3.4 annexes A and B)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from medxai.errors import MedxaiError
from medxai.settings_network import Listen
from medxai.transport.associate import library, make_entity
from medxai.transport.failures import missing
from medxai.transport.incoming import Incoming, NotUnderstoodError, file_head, identify
from medxai.transport.rate import Rate
from medxai.transport.spool import Spool, SpoolFullError
from medxai.transport.tls import server_context

if TYPE_CHECKING:
    from medxai.transport.guarded_server import GuardedServer

logger = logging.getLogger(__name__)

#: Statuses of PS3.4 table B.2-1 and PS3.7 annex C.
SUCCESS = 0x0000
NOT_AUTHORISED = 0x0124
OUT_OF_RESOURCES = 0xA700
MISMATCH = 0xA900
NOT_UNDERSTOOD = 0xC000

#: What the reader decodes (`medxai.ingest.dicom_file`), most wanted first.
SYNTAXES = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
VERIFICATION = "1.2.840.10008.1.1"

IsOurs = Callable[[str], bool]


class Receiver:
    """Answers C-ECHO and C-STORE until it is stopped.

    An object is answered with success once its file is whole and synchronised. No header value, address or title of a
    caller that is not allowed appears in a log line.

    Args:
        listen: settings.
        spool: where objects go.
        is_ours: tells the UIDs of our own results, which an archive may route back: they are acknowledged and dropped.
    """

    def __init__(self, listen: Listen, spool: Spool, is_ours: IsOurs = lambda _uid: False) -> None:
        self._listen = listen
        self._spool = spool
        self._is_ours = is_ours
        self._rate = Rate(listen.objects_per_second)
        self._current: dict[int, str] = {}
        self._server: GuardedServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on, also when the settings say 0 (any)."""
        return int(self._server.server_address[1]) if self._server is not None else self._listen.port

    def start(self) -> None:
        """Begin to listen.

        Raises:
            MedxaiError: the port is taken, pynetdicom is not installed, or a certificate cannot be used.
        """
        pynetdicom = library()
        try:
            from medxai.transport.guarded_server import GuardedServer
        except ImportError:  # pragma: no cover - library() has imported it
            raise missing("pynetdicom") from None
        evt = pynetdicom.evt
        listen = self._listen
        entity = make_entity(listen.aet)
        entity.require_calling_aet = list(listen.titles)
        entity.require_called_aet = True
        entity.maximum_associations = listen.associations
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = listen.idle_seconds
        for context in pynetdicom.AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, list(SYNTAXES))
        entity.add_supported_context(VERIFICATION)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_PDU_RECV, self._on_the_way),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_CONN_CLOSE, self._closed),
        ]
        try:
            self._server = entity.make_server(
                (listen.host, listen.port),
                evt_handlers=handlers,
                server_class=GuardedServer,
                tls=server_context(listen.tls) if listen.tls is not None else None,
                object_bytes=listen.object_bytes,
                patience=listen.idle_seconds,
                most=listen.associations,
            )
        except OSError as error:
            msg = (
                f"{listen.host}:{listen.port} cannot be listened on ({error.strerror}); another listener may run there"
            )
            raise MedxaiError(msg) from None
        entity._servers.append(self._server)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="receiver", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; associations that are open are aborted, objects without an answer come again."""
        server, self._server = self._server, None
        if server is None:
            return
        open_now = list(server.active_associations)
        server.shutdown()
        for association in open_now:
            association.abort()
        if self._thread is not None:
            self._thread.join(10)

    def _store(self, event: Any) -> Any:
        """Answer one C-STORE request."""
        code, comment = self._answer(event)
        if code == SUCCESS:
            return code
        from pydicom import Dataset

        status = Dataset()
        status.Status = code
        status.ErrorComment = comment[:64]
        return status

    def _answer(self, event: Any) -> tuple[int, str]:
        association, request = event.assoc, event.request
        title = str(association.requestor.ae_title).strip()
        if not self._listen.allows(title, association.requestor.address_info.address):
            logger.warning("refused an object of %s: not from this address", title)
            return NOT_AUTHORISED, "calling from this address is not allowed"
        self._rate.wait()
        buffer, syntax = request.DataSet, str(event.context.transfer_syntax)
        data = buffer.getbuffer() if buffer is not None else memoryview(b"")
        try:
            found = identify(data, syntax)
            return self._keep(association, request, found, data, syntax, overflowed=buffer.overflowed)
        except NotUnderstoodError as error:
            logger.warning("refused an object of %s: %s", title, error)
            return NOT_UNDERSTOOD, str(error)
        except SpoolFullError as error:
            logger.warning("refused an object of %s: %s", title, error)
            return OUT_OF_RESOURCES, error.reason
        except OSError as error:
            logger.error("an object of %s was not kept: %s", title, error.strerror or type(error).__name__)
            return OUT_OF_RESOURCES, "it could not be written"
        finally:
            data.release()

    def _keep(
        self,
        association: Any,
        request: Any,
        found: Incoming,
        data: memoryview,
        syntax: str,
        *,
        overflowed: bool,
    ) -> tuple[int, str]:
        if found.sop_uid != str(request.AffectedSOPInstanceUID):
            return MISMATCH, "SOPInstanceUID is not that of the request"
        if found.sop_class != str(request.AffectedSOPClassUID):
            return MISMATCH, "SOPClassUID is not that of the request"
        if overflowed:
            reason = f"an object is larger than object_bytes ({self._listen.object_bytes} bytes)"
            self._spool.refuse(found.study_uid, reason)
        if self._is_ours(found.sop_uid):
            return SUCCESS, ""
        head = file_head(found.sop_class, found.sop_uid, syntax)
        key = self._spool.store(found.study_uid, found.sop_uid, (head, data))
        self._current[id(association)] = key
        return SUCCESS, ""

    def _on_the_way(self, event: Any) -> None:
        """A part of an object came: the study of this association is not quiet, however slow the line is."""
        key = self._current.get(id(event.assoc))
        if key is not None and event.assoc.dimse.message is not None:
            self._spool.touch(key)

    def _rejected(self, event: Any) -> None:
        asked = event.assoc.requestor.primitive
        calling, called = (_printable(getattr(asked, f"{name}_ae_title", "")) for name in ("calling", "called"))
        if calling not in self._listen.titles:
            reason = "it is not in listen.calling"
        elif called != self._listen.aet.strip():
            reason = f"it calls {called!r}, we are {self._listen.aet.strip()!r}"
        else:
            reason = f"{self._listen.associations} associations are open (listen.associations)"
        logger.warning("rejected an association of %r: %s", calling, reason)

    def _closed(self, event: Any) -> None:
        self._current.pop(id(event.assoc), None)


def _printable(title: Any) -> str:
    """An application entity title without anything that a log or a terminal would act on."""
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in str(title).strip())[:16]
