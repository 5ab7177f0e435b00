"""pynetdicom's server with limits that hold before anybody is known: handshakes, PDU sizes, object sizes, threads."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from io import BytesIO
from typing import Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from medxai.transport.associate import PDU_BYTES

logger = logging.getLogger(__name__)

#: Room beside the largest PDU data for headers; A-ASSOCIATE-RQ PDUs of 128 contexts with all syntaxes stay below it.
_PDU_SLACK = 65536
#: A command set holds a few UIDs and titles.
_COMMAND_BYTES = 16384
#: Requests that a caller may have open without having waited for answers: none negotiates more than one.
_UNANSWERED = 4


class CappedBuffer(BytesIO):
    """Holds at most `most` bytes; the rest is counted and dropped."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.seen = 0

    def write(self, data: Any) -> int:
        """Keep what fits."""
        self.seen += len(data)
        room = self.most - self.tell()
        if room > 0:
            super().write(data[:room])
        return len(data)

    @property
    def overflowed(self) -> bool:
        """True when bytes were dropped."""
        return self.seen > self.most


class GuardedSocket(AssociationSocket):  # type: ignore[misc]
    """Reads in large pieces, refuses PDUs that nobody announced, and does not wait for ever for the rest of one."""

    #: Seconds for one PDU.
    patience = 60.0

    def recv(self, nr_bytes: int) -> bytearray:
        """Read exactly `nr_bytes`, or what came before the connection was closed."""
        if nr_bytes > PDU_BYTES + _PDU_SLACK:
            msg = "a PDU is larger than what was agreed on"
            raise OSError(msg)
        if self.socket is None:
            msg = "the connection is closed"
            raise OSError(msg)
        data = bytearray(nr_bytes)
        view, read, limit = memoryview(data), 0, time.monotonic() + self.patience
        while read < nr_bytes:
            self.socket.settimeout(max(0.01, limit - time.monotonic()))
            count = self.socket.recv_into(view[read:])
            if not count:
                break
            read += count
            if time.monotonic() > limit:
                msg = "a PDU took too long"
                raise OSError(msg)
        self.socket.settimeout(self.patience)  # of answers, which go out on the same socket
        view.release()
        del data[read:]
        return data


class GuardedProvider(DIMSEServiceProvider):  # type: ignore[misc]
    """Receives messages into buffers of bounded size."""

    message: Any

    def __init__(self, association: Any, object_bytes: int) -> None:
        super().__init__(association)
        self._object_bytes = object_bytes

    def receive_primitive(self, primitive: Any) -> None:
        """Take a part of a message."""
        message: Any = self.message
        if message is None:
            self.message = message = DIMSEMessage()
            message.data_set = CappedBuffer(self._object_bytes)
            message.encoded_command_set = CappedBuffer(_COMMAND_BYTES)
        if self.msg_queue.qsize() >= _UNANSWERED or message.encoded_command_set.overflowed:
            self.dul.event_queue.put("Evt19")  # as for an invalid PDU: the association is aborted
            return
        super().receive_primitive(primitive)


class GuardedHandler(RequestHandler):  # type: ignore[misc]
    """One connection: the TLS handshake happens here, in its own thread and in limited time."""

    server: GuardedServer
    request: Any

    def handle(self) -> None:
        """Make an association of the connection, or close it."""
        connection = self.request
        connection.settimeout(self.server.patience)
        if self.server.tls is not None:
            try:
                connection = self.server.tls.wrap_socket(connection, server_side=True)
            except (OSError, ssl.SSLError) as error:
                reason = getattr(error, "reason", None) or type(error).__name__
                self.server.turned_away(f"TLS handshake failed ({reason})")
                with contextlib.suppress(OSError):
                    connection.close()
                return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = connection
        super().handle()

    def _create_association(self) -> Any:
        made = super()._create_association()
        made.dul.event_queue.get_nowait()  # "connected" of the socket that is replaced; the new one says it again
        guarded = GuardedSocket(made, client_socket=self.request)
        guarded.patience = self.server.patience
        made.dul.socket = guarded
        made.dimse = GuardedProvider(made, self.server.object_bytes)
        return made


class GuardedServer(ThreadedAssociationServer):  # type: ignore[misc]
    """Listens, with limits; see `medxai.transport.receive`."""

    daemon_threads = True
    #: Connections that the system keeps while all are busy.
    request_queue_size = 64

    def __init__(
        self, *args: Any, tls: ssl.SSLContext | None, object_bytes: int, patience: float, most: int, **settings: Any
    ) -> None:
        self.tls = tls
        self.object_bytes = object_bytes
        self.patience = patience
        self._most = most
        self._open = 0
        self._count = threading.Lock()
        super().__init__(*args, request_handler=GuardedHandler, **settings)

    def turned_away(self, reason: str) -> None:
        """Say that a connection did not get as far as an association."""
        logger.warning("a connection was turned away: %s", reason)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Close connections beyond twice the associations: those of callers that say nothing."""
        return len(self.active_associations) + self._open < 2 * self._most + 8

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Run one connection up to its association; failures are not printed."""
        with self._count:
            self._open += 1
        try:
            self.finish_request(request, client_address)
        except Exception as error:
            self.turned_away(type(error).__name__)
            self.shutdown_request(request)
        finally:
            with self._count:
                self._open -= 1

    def _bind_defaults(self) -> None:
        from pynetdicom import evt

        for event in evt._INTERVENTION_EVENTS:  # the library's logging handlers cost time and quote messages
            self.bind(event, evt.get_default_handler(event))
