"""Calling a DIMSE node: one association, with limits and certificates, whose failures are DeliveryErrors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from medxai.errors import DeliveryError
from medxai.settings import Destination
from medxai.transport.failures import RetryableError, missing
from medxai.transport.tls import client_context

if TYPE_CHECKING:
    from pynetdicom.association import Association

#: An association negotiates at most this many presentation contexts (PS3.8 section 9.3.2.2: odd numbers to 255).
MOST_CONTEXTS = 128
#: Bytes of one PDU that we take; the library's 16 KiB cost four times the time.
PDU_BYTES = 131072

Context = tuple[str, Sequence[str]]


def library() -> Any:
    """Import pynetdicom and keep it from logging queries and answers, which hold names.

    Raises:
        MedxaiError: it is not installed.
    """
    try:
        import pynetdicom
        from pynetdicom import _config
    except ImportError:
        raise missing("pynetdicom") from None
    _config.LOG_REQUEST_IDENTIFIERS = False
    _config.LOG_RESPONSE_IDENTIFIERS = False
    _config.LOG_HANDLER_LEVEL = "none"
    return pynetdicom


def make_entity(title: str) -> Any:
    """Return our application entity under a title.

    Raises:
        MedxaiError: pynetdicom is not installed.
    """
    from medxai.export.provenance import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

    entity = library().AE(ae_title=title)
    entity.maximum_pdu_size = PDU_BYTES
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    return entity


@contextmanager
def association(
    node: Destination,
    contexts: Sequence[Context],
    *,
    query: bool = False,
    roles: Sequence[Any] = (),
    handlers: Sequence[Any] = (),
) -> Iterator[Association]:
    """Yield an established association, which is released at the end.

    Args:
        node: whom to call.
        contexts: abstract syntax with its transfer syntaxes.
        query: call the address for queries of the node.
        roles: SCP/SCU role selections.
        handlers: pynetdicom event handlers.

    Raises:
        DeliveryError: it was rejected.
        RetryableError: the node does not answer.
        SettingsError: the certificates cannot be used.
    """
    entity = make_entity(node.calling_aet)
    entity.acse_timeout = entity.connection_timeout = node.connect_seconds
    entity.dimse_timeout = entity.network_timeout = node.response_seconds
    for abstract, syntaxes in contexts:
        entity.add_requested_context(abstract, list(syntaxes))
    aet, port = node.aet, node.port
    if query:
        aet, port = node.query_aet or node.aet, node.query_port or node.port
    arguments: dict[str, Any] = {"ae_title": aet, "ext_neg": list(roles), "evt_handlers": list(handlers)}
    if node.tls is not None:
        arguments["tls_args"] = (client_context(node.tls), node.tls.host_name or node.host)
    made = entity.associate(node.host, port, **arguments)
    if not made.is_established:
        raise _unassociated(made, node, aet, port)
    try:
        yield made
    finally:
        if made.is_established:
            made.release()


def _unassociated(made: Association, node: Destination, aet: str, port: int) -> DeliveryError:
    where = f"{node.name} ({node.host}:{port}, AE {aet})"
    if made.is_rejected:
        answer = made.acceptor.primitive
        reason = getattr(answer, "reason_str", "no reason given") if answer is not None else "no reason given"
        # Result 2 is "rejected transient" (PS3.8 table 9-21): the peer itself asks to try again.
        kind = RetryableError if getattr(answer, "result", 1) == 2 else DeliveryError
        return kind(f"{where} rejected the association: {reason}; check that it knows {node.calling_aet}")
    if made.rejected_contexts and not made.accepted_contexts:
        return DeliveryError(f"{where} accepts nothing of what was offered; check that it provides this service")
    hint = "check host, port and that the node is running"
    if node.tls is not None:
        hint += ", and that its certificate and ours are accepted (tls: ca, certificate, host_name)"
    return RetryableError(f"{where} did not answer; {hint}")
