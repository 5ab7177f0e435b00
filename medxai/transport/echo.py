"""Asking a node whether it answers at all: C-ECHO (PS3.4 annex A), or the smallest QIDO-RS query."""

from __future__ import annotations

from medxai.errors import DeliveryError
from medxai.settings import Destination
from medxai.transport.associate import association
from medxai.transport.failures import RetryableError
from medxai.transport.web import web_client


def echo(node: Destination) -> None:
    """Return when the node answers.

    Raises:
        DeliveryError: it does not, or rejects us.
    """
    if node.kind == "dicomweb":
        with web_client(node) as client:
            client.search_for_studies(limit=1)
        return
    with association(node, [("1.2.840.10008.1.1", ["1.2.840.10008.1.2"])]) as made:
        code = made.send_c_echo().get("Status")
    if code is None:
        raise RetryableError(f"{node.name} gave no answer within {node.response_seconds:g} s")
    if code != 0:
        raise DeliveryError(f"{node.name} answered an echo with status 0x{code:04X}")
