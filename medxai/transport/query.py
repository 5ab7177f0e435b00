"""C-FIND (PS3.4 annex C, Study Root): what a node has."""

from __future__ import annotations

from collections.abc import Mapping

from medxai.errors import DeliveryError
from medxai.settings import Destination
from medxai.transport.associate import association, library
from medxai.transport.failures import RetryableError

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
_SYNTAXES = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2")


def find(node: Destination, level: str, keys: Mapping[str, str], wanted: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the matches of a query.

    Args:
        node: whom to ask.
        level: ``STUDY``, ``SERIES`` or ``IMAGE``.
        keys: attribute keyword -> value to match.
        wanted: keywords that each match is returned with.

    Raises:
        DeliveryError: the node does not answer queries, or refused this one.
    """
    from pydicom import Dataset

    library()
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    for name in wanted:
        setattr(asked, name, "")
    for name, value in keys.items():
        setattr(asked, name, value)
    with association(node, [(STUDY_ROOT_FIND, _SYNTAXES)], query=True) as made:
        found = []
        for status, identifier in made.send_c_find(asked, STUDY_ROOT_FIND):
            code = status.get("Status")
            if code is None:
                raise RetryableError(f"{node.name} gave no answer to a query within {node.response_seconds:g} s")
            if code in (0xFF00, 0xFF01) and identifier is not None:
                found.append({name: str(identifier.get(name, "") or "") for name in wanted})
            elif code not in (0x0000, 0xFF00, 0xFF01):
                kind = RetryableError if code == 0xA700 else DeliveryError
                raise kind(f"{node.name} refused a query with status 0x{code:04X}")
        return found


def images(node: Destination, study_uid: str, series_uid: str) -> set[str] | None:
    """SOP Instance UIDs of a series; None when the node cannot be asked.

    Raises:
        RetryableError: the node does not answer.
    """
    keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
    try:
        return {row["SOPInstanceUID"] for row in find(node, "IMAGE", keys, ("SOPInstanceUID",))}
    except RetryableError:
        raise
    except DeliveryError:
        return None
